"""The index follows the store: this process's changes at once, another's when it looks."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from sqlalchemy import Connection
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.storage.memory_database import MemoryDatabase
from tests.storage.store_contract import CREATED, key_record, put, token
from twisted_vllm.auth.grants import Changes, Revision, Snapshot
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.records import Spend
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.ratelimit.allowance import Allowance
from twisted_vllm.storage import tables
from twisted_vllm.storage.database import Database
from twisted_vllm.storage.interfaces import IStore
from twisted_vllm.storage.records import EndUserRecord, ModelRecord
from twisted_vllm.storage.registry import MAX_OVERTAKING, Registry
from twisted_vllm.storage.store import Store
from twisted_vllm.storage.transaction import KEPT_CHANGES, Transaction


@pytest.fixture
def registry(database: Database) -> Registry:
    store = Store(database)
    registry = Registry(store, KeyIndex())
    registry.load(store.load_now())
    return registry


@pytest_twisted.ensureDeferred
async def test_a_change_is_in_the_index_when_its_deferred_fires(registry: Registry) -> None:
    await registry.change(lambda transaction: transaction.keys.insert(key_record(1)))
    assert token(1) in registry.index
    await registry.change(lambda transaction: transaction.delete_keys([key_record(1)]))
    assert token(1) not in registry.index


@pytest_twisted.ensureDeferred
async def test_a_change_that_fails_leaves_the_index_alone_and_the_next_one_runs(registry: Registry) -> None:
    def work(transaction: Any) -> None:
        transaction.keys.insert(key_record(1))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await registry.change(work)
    assert len(registry.index) == 0
    await registry.change(lambda transaction: transaction.keys.insert(key_record(2)))
    assert token(2) in registry.index


@pytest_twisted.ensureDeferred
async def test_what_another_process_changed_is_taken_and_the_rest_kept(registry: Registry, database: Database) -> None:
    await registry.change(lambda transaction: transaction.keys.insert(key_record(1)))
    other = Store(database)
    await put(other, key_record(2))
    assert token(2) not in registry.index
    await registry.follow()
    assert token(2) in registry.index
    kept = registry.index.find(token(1))
    await registry.follow()
    assert kept is not None
    assert registry.index.is_current(kept)
    await other.change(lambda transaction: transaction.delete_keys([key_record(1)]))
    await registry.follow()
    assert token(1) not in registry.index


@pytest_twisted.ensureDeferred
async def test_a_process_that_missed_too_much_reads_everything(registry: Registry, database: Database) -> None:
    def many(transaction: Any) -> None:
        transaction.keys.insert(key_record(1))
        for number in range(KEPT_CHANGES):
            transaction.keys.delete([token(number + 2)])

    await Store(database).change(many)
    await registry.follow()
    assert token(1) in registry.index
    await put(Store(database), key_record(2))
    await registry.follow()
    assert token(2) in registry.index


@pytest_twisted.ensureDeferred
async def test_spend_that_was_set_anew_is_told_here_and_in_other_processes(database: Database) -> None:
    told: list[Spend] = []
    others: list[Spend] = []
    registry = Registry(Store(database), KeyIndex(), told.append)
    other = Registry(Store(database), KeyIndex(), others.append)
    await registry.change(lambda transaction: transaction.spend.set("key", "a", 5, 0))
    await other.follow()
    assert told == others == [Spend("key", "a", 5)]
    await other.follow()
    assert len(others) == 1


@pytest_twisted.ensureDeferred
async def test_a_registry_says_whether_another_process_did_what_it_tells(database: Database) -> None:
    told: list[tuple[str, bool]] = []
    here = Registry(Store(database), KeyIndex(), lambda spend: told.append(("here", here.is_following)))
    there = Registry(Store(database), KeyIndex(), lambda spend: told.append(("there", there.is_following)))
    await there.follow()
    await here.change(lambda transaction: transaction.spend.set("key", "k", 7, 0))
    await there.follow()
    assert told == [("here", False), ("there", True)]
    assert not there.is_following


@pytest_twisted.ensureDeferred
async def test_a_process_that_missed_too_much_is_told_all_that_was_spent(database: Database) -> None:
    told: list[Spend] = []
    registry = Registry(Store(database), KeyIndex(), told.append)

    def many(transaction: Any) -> None:
        transaction.spend.set("team", "x", 5, 0)
        transaction.keys.delete([token(number) for number in range(KEPT_CHANGES)])

    await Store(database).change(many)
    await registry.follow()
    assert told == [Spend("team", "x", 5)]


@pytest_twisted.ensureDeferred
async def test_a_process_that_missed_too_much_is_told_that_a_budget_is_gone(database: Database) -> None:
    gone: list[tuple[str, str]] = []
    registry = Registry(Store(database), KeyIndex(), budget_gone=lambda *scope: gone.append(scope))
    record = key_record(1, allowance=Allowance(max_budget=5))
    await registry.change(lambda transaction: transaction.keys.insert(record))

    def many(transaction: Any) -> None:
        transaction.spend.set("key", record.key_id, 5, 0)
        transaction.replace_key(record, attrs.evolve(record, allowance=Allowance()))
        transaction.keys.delete([token(number) for number in range(10, 10 + KEPT_CHANGES)])

    await Store(database).change(many)
    await registry.follow()
    assert gone == [("key", record.key_id)]


@pytest_twisted.ensureDeferred
async def test_a_budget_that_is_gone_is_told_and_one_that_stays_is_not(database: Database) -> None:
    gone: list[tuple[str, str]] = []
    registry = Registry(Store(database), KeyIndex(), budget_gone=lambda *scope: gone.append(scope))
    record = key_record(1, allowance=Allowance(max_budget=5))
    await registry.change(lambda transaction: transaction.keys.insert(record))
    renewed = attrs.evolve(record, token=token(2))
    await registry.change(lambda transaction: transaction.replace_key(record, renewed))
    assert gone == []
    limited = attrs.evolve(renewed, allowance=Allowance(rpm=5))
    await registry.change(lambda transaction: transaction.replace_key(renewed, limited))
    assert gone == [("key", record.key_id)]
    await registry.change(lambda transaction: transaction.delete_keys([limited]))
    assert len(gone) == 1

    eve = EndUserRecord(user_id="eve", allowance=Allowance(soft_budget=5), **CREATED)
    other = Store(database)
    await other.change(lambda transaction: transaction.end_users.insert(eve))
    await registry.follow()
    await other.change(lambda transaction: transaction.end_users.delete(["eve"]))
    await registry.follow()
    assert gone[1:] == [("end_user", "eve")]


@pytest_twisted.ensureDeferred
async def test_what_was_spent_before_there_was_a_budget_is_told_with_the_budget(database: Database) -> None:
    told: list[Spend] = []
    registry = Registry(Store(database), KeyIndex(), told.append)
    record = key_record(1)

    def work(transaction: Any) -> None:
        transaction.keys.insert(record)
        transaction.keys.insert(key_record(2, allowance=Allowance(max_budget=5)))
        insert = tables.spend.insert().values(kind="key", id=record.key_id, period_start=0, spend=7, total_spend=7)
        transaction.connection.execute(insert)

    await registry.change(work)
    assert told == []
    limited = attrs.evolve(record, allowance=Allowance(max_budget=5))
    await registry.change(lambda transaction: transaction.replace_key(record, limited))
    assert told == [Spend("key", record.key_id, 7, 0, 7)]
    renamed = attrs.evolve(limited, key_alias="other")
    await registry.change(lambda transaction: transaction.replace_key(limited, renamed))
    assert len(told) == 1


@pytest_twisted.ensureDeferred
async def test_a_key_that_was_used_before_another_process_heard_of_it_is_found_and_not_set(database: Database) -> None:
    told: list[Spend] = []
    found: list[Spend] = []
    other = Registry(Store(database), KeyIndex(), told.append, spend_found=found.append)
    record = key_record(1, allowance=Allowance(max_budget=5))

    def work(transaction: Any) -> None:
        transaction.keys.insert(record)
        insert = tables.spend.insert().values(kind="key", id=record.key_id, period_start=0, spend=3, total_spend=3)
        transaction.connection.execute(insert)

    await Store(database).change(work)
    await other.follow()
    assert (told, found) == ([], [Spend("key", record.key_id, 3, 0, 3)])
    await Store(database).change(lambda transaction: transaction.spend.set("key", record.key_id, 0, 0))
    await other.follow()
    assert len(found) == 1
    assert [(spend.id, spend.spend) for spend in told] == [(record.key_id, 0)]


@pytest_twisted.ensureDeferred
async def test_a_database_that_was_restored_to_the_same_number_of_changes_is_read_anew(
    registry: Registry, database: Database, tmp_path: Path
) -> None:
    """A backup, another change after it, and a restore with another change: both histories have two changes."""
    store = Store(database)
    await put(store, key_record(1))

    def copy(source: Path, target: Path) -> None:
        with closing(sqlite3.connect(source)) as origin, closing(sqlite3.connect(target)) as other:
            origin.backup(other)

    copy(tmp_path / "keys.sqlite", tmp_path / "backup.sqlite")
    await put(store, key_record(2))
    await registry.follow()
    before = (await store.load()).revision
    # a restore into the running database, as PostgreSQL's; then an administrator makes a key by another process
    copy(tmp_path / "backup.sqlite", tmp_path / "keys.sqlite")
    await put(Store(database), key_record(3))
    after = (await store.load()).revision
    assert before.number == after.number == 2
    await registry.follow()
    assert [number for number in (1, 2, 3) if token(number) in registry.index] == [1, 3]


@pytest_twisted.ensureDeferred
async def test_who_has_spent_nothing_in_a_restored_database_has_spent_nothing(
    registry: Registry, database: Database
) -> None:
    told: list[Spend] = []
    gone: list[tuple[str, str]] = []
    anew: list[bool] = []
    store = Store(database)
    registry = Registry(store, KeyIndex(), told.append, lambda *scope: gone.append(scope), lambda: anew.append(True))
    records = [key_record(number, allowance=Allowance(max_budget=5)) for number in (1, 2)]
    await put(store, *records)
    await store.change(lambda transaction: transaction.spend.set("key", records[0].key_id, 7, 0))
    await registry.follow()
    told.clear()

    def restore(connection: Connection) -> None:
        connection.execute(tables.changes.update().values(stamp=tables.changes.c.stamp + 1))

    await database.run(restore, writes=True)
    await registry.follow()
    assert (told, gone, anew) == ([Spend("key", records[0].key_id, 7)], [("key", records[1].key_id)], [True])
    await registry.follow()
    assert len(anew) == 1


@implementer(IStore)
class SlowStore(Store):
    """A store whose reads of changes, and whose changes, end when the test lets them."""

    def __init__(self) -> None:
        self.database = MemoryDatabase()
        super().__init__(self.database)
        self.reads: list[Deferred[Any]] = []
        self.changes: list[Deferred[Any]] = []

    def changes_since(self, revision: Any) -> Deferred[Any]:
        return self._hold(self.reads, super().changes_since(revision))

    def change(self, work: Any) -> Deferred[Any]:
        return self._hold(self.changes, super().change(work))

    @staticmethod
    def _hold(held: list[Deferred[Any]], done: Deferred[Any]) -> Deferred[Any]:
        gate: Deferred[Any] = Deferred()
        held.append(gate)
        return gate.addCallback(lambda _: done)


def insert(number: int) -> Any:
    return lambda transaction: transaction.keys.insert(key_record(number))


def test_a_change_does_not_wait_for_a_read_that_hangs_and_the_read_is_thrown_away() -> None:
    store = SlowStore()
    registry = Registry(store, KeyIndex())
    following = registry.follow()
    changing = registry.change(insert(1))
    store.changes.pop().callback(None)
    assert changing.called
    assert token(1) in registry.index
    # it was read before the change: it must not undo it
    store.reads.pop().callback(None)
    assert following.called
    assert token(1) in registry.index


def test_a_read_gets_its_turn_among_changes_that_follow_each_other() -> None:
    store = SlowStore()
    registry = Registry(store, KeyIndex())
    put(Store(store.database), key_record(100))
    for number in range(MAX_OVERTAKING):
        registry.follow()
        registry.change(insert(number))
        store.changes.pop().callback(None)
        store.reads.pop().callback(None)
    assert token(100) not in registry.index
    registry.follow()
    registry.change(insert(50))
    assert store.changes == []
    store.reads.pop().callback(None)
    assert token(100) in registry.index
    store.changes.pop().callback(None)
    assert token(50) in registry.index


def test_a_change_that_waited_too_long_for_others_is_not_begun() -> None:
    store, clock = SlowStore(), Clock()
    registry = Registry(store, KeyIndex(), patience=5.0, monotonic=clock.seconds)
    first, second = registry.change(insert(1)), registry.change(insert(2))
    refused: list[Failure] = []
    second.addErrback(refused.append)
    clock.advance(6)
    store.changes.pop().callback(None)
    assert first.called
    assert refused[0].check(StoreUnavailable)
    assert store.changes == []
    assert token(2) not in registry.index


def model(number: int) -> ModelRecord:
    return ModelRecord(f"m{number}", "qwen", {"model": "hosted_vllm/m"}, {}, **CREATED)


def test_stored_models_are_told_at_the_start_and_at_each_change_of_any_process() -> None:
    told: list[list[str]] = []
    store = Store(MemoryDatabase())
    registry = Registry(
        store, KeyIndex(), models_set=lambda models: told.append(sorted(each.model_id for each in models))
    )
    other = Registry(store, KeyIndex())
    other.change(lambda transaction: transaction.models.insert(model(1)))
    registry.load(store.load_now())
    registry.change(lambda transaction: transaction.models.insert(model(2)))
    other.change(lambda transaction: transaction.models.delete(["m1"]))
    registry.follow()
    # what concerns no model tells nothing
    registry.change(insert(1))
    assert told == [["m1"], ["m1", "m2"], ["m2"]]


def test_a_database_that_was_restored_tells_its_models() -> None:
    told: list[list[str]] = []
    second = Store(MemoryDatabase())
    first = Restored(MemoryDatabase(), second)
    for store, number in ((first, 1), (second, 2)):
        store.change(partial(_insert_model, number))
    registry = Registry(
        first,
        KeyIndex(),
        models_set=lambda models: told.append(sorted(each.model_id for each in models)),
    )
    registry.load(first.load_now())
    registry.follow()
    assert told == [["m1"], ["m2"]]


def _insert_model(number: int, transaction: Transaction) -> None:
    transaction.models.insert(model(number))


class Restored(Store):
    """A store whose database is another after its first read."""

    def __init__(self, database: MemoryDatabase, second: Store) -> None:
        super().__init__(database)
        self._second = second

    def changes_since(self, revision: Revision) -> Deferred[tuple[Revision, Changes | Snapshot | None]]:
        return self._second.changes_since(revision)

    def spend(self) -> Deferred[list[Spend]]:
        return self._second.spend()


@pytest_twisted.ensureDeferred
async def test_one_read_serves_all_who_ask_for_the_latest_changes(registry: Registry, database: Database) -> None:
    await put(Store(database), key_record(1))
    asked = [registry.catch_up() for _ in range(10)]
    for each in asked:
        await each
    assert token(1) in registry.index


@pytest_twisted.ensureDeferred
async def test_whoever_asks_during_a_read_gets_the_next_one(registry: Registry, database: Database) -> None:
    """The read in progress may have begun before the change."""
    first = registry.follow()
    await put(Store(database), key_record(1))
    await registry.catch_up()
    assert token(1) in registry.index
    await first


@pytest_twisted.ensureDeferred
async def test_changes_of_this_process_do_not_keep_those_of_others_from_whoever_asks(
    registry: Registry, database: Database
) -> None:
    await put(Store(database), key_record(1))

    def insert(number: int) -> Deferred[None]:
        return registry.change(lambda transaction: transaction.keys.insert(key_record(number)))

    changes = [insert(number) for number in range(2, 8)]
    await registry.catch_up()
    assert token(1) in registry.index
    for each in changes:
        await each
    assert all(token(number) in registry.index for number in range(1, 8))


@pytest_twisted.ensureDeferred
async def test_two_reads_never_run_at_a_time(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that began earlier would put back what the other has brought."""
    running = most = 0
    store: Any = registry._store
    changes_since = store.changes_since

    def counted(revision: Any) -> Deferred[Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)

        def ended(result: Any) -> Any:
            nonlocal running
            running -= 1
            return result

        read: Deferred[Any] = changes_since(revision)
        return read.addBoth(ended)

    monkeypatch.setattr(store, "changes_since", counted)
    for each in [registry.follow(), registry.catch_up(), registry.follow(), registry.catch_up()]:
        await each
    assert most == 1


@pytest_twisted.ensureDeferred
async def test_whoever_asks_for_the_latest_changes_goes_before_changes_that_wait(
    registry: Registry, database: Database
) -> None:
    done: list[object] = []

    def note(name: object) -> Callable[[object], None]:
        return lambda _: done.append(name)

    changes = [registry.change(partial(_insert_key, number)) for number in range(20)]
    for number, change in enumerate(changes):
        change.addCallback(note(number))
    for name in ("first", "second", "third"):
        registry.catch_up().addCallback(note(name))
    for change in changes:
        await change
    # the first two reads are behind one change each; who asks during a read shares the next one
    assert done.index("first") <= 1
    assert done.index("second") <= 3
    assert done.index("third") == done.index("second") + 1
    await registry.catch_up()
    assert len(registry.index) == 20


@pytest_twisted.ensureDeferred
async def test_reads_behind_the_last_change_all_run(registry: Registry, database: Database) -> None:
    change = registry.change(lambda transaction: transaction.keys.insert(key_record(1)))
    first = registry.catch_up()
    nested: list[Deferred[None]] = []
    first.addCallback(lambda _: nested.append(registry.catch_up()))
    third = registry.catch_up()
    for each in (change, first, third):
        await each
    await nested[0]
    assert token(1) in registry.index
    # the lock is free
    await registry.change(lambda transaction: transaction.keys.insert(key_record(2)))


def _insert_key(number: int, transaction: Transaction) -> None:
    transaction.keys.insert(key_record(number))
