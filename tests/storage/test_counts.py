"""How many records a list has."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, event
from sqlalchemy.engine import Engine

from tests.storage.memory_database import MemoryDatabase
from twisted_vllm.storage.counts import MAX_COUNTS, Counts
from twisted_vllm.storage.paging import PageQuery
from twisted_vllm.storage.records import UserRecord
from twisted_vllm.storage.store import change_in
from twisted_vllm.storage.transaction import Transaction

_NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_counts_are_kept_until_something_changes() -> None:
    database, counts, counted = MemoryDatabase(), Counts(), list[str]()

    def note(_connection: Connection, _cursor: object, text: str, *_: object) -> None:
        if text.startswith("SELECT count(*)"):
            counted.append(text)

    def total(role: str = "") -> int:
        query = PageQuery(sort_by="user_id", equals={"user_role": role} if role else {})
        page = database.run_now(lambda connection: Transaction(connection, counts=counts).users.page(query))
        return page.total_count

    def add(name: str, role: str) -> None:
        user = UserRecord(name, _NOW, _NOW, "master", "master", user_role=role)
        database.run_now(lambda connection: change_in(connection, lambda transaction: transaction.users.insert(user)))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        add("ada", "internal_user")
        assert (total(), total("proxy_admin"), total()) == (1, 0, 1)
        assert len(counted) == 2
        add("bob", "proxy_admin")
        assert (total(), total("proxy_admin"), total()) == (2, 1, 2)
        assert len(counted) == 4
        for number in range(MAX_COUNTS + 1):
            assert total(f"role-{number}") == 0
        assert total("x" * 3_000) == 0
    finally:
        event.remove(Engine, "before_cursor_execute", note)
