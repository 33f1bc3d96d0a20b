"""What becomes of end users: plain steps on one transaction, each with its note in the audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from twisted_vllm.admin.acts import AuditContext
from twisted_vllm.admin.customer_schemas import NewCustomerRequest, UpdateCustomerRequest
from twisted_vllm.admin.litellm import shown
from twisted_vllm.errors import Conflict, NotFound
from twisted_vllm.storage.records import EndUserRecord
from twisted_vllm.storage.transaction import Transaction

_KIND = "end_user"


def _new(user_id: str, act: AuditContext, values: Mapping[str, Any]) -> EndUserRecord:
    return EndUserRecord(
        user_id=user_id,
        created_at=act.now,
        created_by=act.actor,
        updated_at=act.now,
        updated_by=act.actor,
        **values,
    )


def add(transaction: Transaction, act: AuditContext, asked: NewCustomerRequest) -> EndUserRecord:
    """Make an end user.

    Raises:
        Conflict: there is such a one.
    """
    if transaction.end_users.get(asked.user_id) is not None:
        raise Conflict("Another customer has this id already. Send another `user_id`.", param="user_id")
    return _insert(transaction, act, _new(asked.user_id, act, asked.values(asked.__struct_fields__)))


def _insert(transaction: Transaction, act: AuditContext, record: EndUserRecord) -> EndUserRecord:
    transaction.end_users.insert(record)
    act.note(transaction, _KIND, record.user_id, None, record)
    return record


def update(
    transaction: Transaction, act: AuditContext, asked: UpdateCustomerRequest, given: Mapping[str, Any]
) -> EndUserRecord:
    """Change an end user.

    Raises:
        NotFound: there is none.
    """
    record = transaction.end_users.get(asked.user_id)
    if record is None:
        raise NotFound(f"No customer has the id `{shown(asked.user_id)}`.", param="user_id")
    return _change(transaction, act, record, asked.values(given, record.allowance))


def _change(
    transaction: Transaction, act: AuditContext, record: EndUserRecord, values: Mapping[str, Any]
) -> EndUserRecord:
    changed = attrs.evolve(record, **values, updated_at=act.now, updated_by=act.actor)
    transaction.end_users.replace(record.user_id, changed)
    act.note(transaction, _KIND, record.user_id, record, changed)
    return changed


def block(transaction: Transaction, act: AuditContext, user_ids: Sequence[str]) -> list[EndUserRecord]:
    """Block end users; one that is not known yet is made."""
    known = {record.user_id: record for record in transaction.end_users.among("user_id", user_ids)}
    blocked = {"blocked": True}
    return [
        _change(transaction, act, known[user_id], blocked)
        if user_id in known
        else _insert(transaction, act, _new(user_id, act, blocked))
        for user_id in user_ids
    ]


def unblock(transaction: Transaction, act: AuditContext, user_ids: Sequence[str]) -> list[EndUserRecord]:
    """Unblock end users, all or none.

    Raises:
        NotFound: one of them is not known.
    """
    return [_change(transaction, act, record, {"blocked": False}) for record in _known(transaction, user_ids)]


def delete(transaction: Transaction, act: AuditContext, user_ids: Sequence[str]) -> int:
    """Delete end users, all or none, and return how many. What they spent stays in the ledger alone.

    Raises:
        NotFound: one of them is not known.
    """
    records = _known(transaction, user_ids)
    found = [record.user_id for record in records]
    transaction.end_users.delete(found)
    transaction.spend.forget(_KIND, found)
    for record in records:
        act.note(transaction, _KIND, record.user_id, record, None)
    return len(records)


def _known(transaction: Transaction, user_ids: Sequence[str]) -> list[EndUserRecord]:
    known = {record.user_id: record for record in transaction.end_users.among("user_id", user_ids)}
    for user_id in user_ids:
        if user_id not in known:
            raise NotFound(f"No customer has the id `{shown(user_id)}`. Nothing was changed.", param="user_ids")
    return [known[user_id] for user_id in user_ids]
