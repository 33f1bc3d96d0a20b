"""Entries of the audit log, for its tests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from twisted_vllm.storage.paging import PageQuery
from twisted_vllm.storage.records import AuditRecord
from twisted_vllm.storage.transaction import Transaction

NEWEST_FIRST = PageQuery(size=1000, sort_by="at")


def entry(at: datetime, number: int = 0, actor: str = "master") -> AuditRecord:
    return AuditRecord(at, actor, actor, "key/update", "key", f"key-{number}", None, {"n": number}, f"request-{number}")


def write(transaction: Transaction, entries: Sequence[AuditRecord]) -> None:
    for each in entries:
        transaction.write_audit(each)


def times(transaction: Transaction) -> list[datetime]:
    """Return the times of all entries, the newest first."""
    return [each.at for each in transaction.page_of_audit(NEWEST_FIRST, None, None).records]
