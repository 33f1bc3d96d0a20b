"""One writer for several processes: every row of each is moved once, and amounts are told when they may be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs as captured_logs

from tests.builders import usage_row, usage_rows
from tests.conftest import LoggedFailures
from tests.usage.memory_usage_store import MemoryUsageStore
from twisted_vllm.usage.interfaces import Position, SpendUpdate
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool import following_writer as following_module
from twisted_vllm.usage.spool import writer_threads
from twisted_vllm.usage.spool.followed import FollowedSpool
from twisted_vllm.usage.spool.following_writer import FollowingWriter, Scope
from twisted_vllm.usage.spool.spool import Spool

#: how long a test waits for the writer's thread, in seconds
PATIENCE = 10.0


class Machine:
    """A housekeeper's writer, and the spools of workers."""

    def __init__(self, reactor: Any, directory: Path, store: MemoryUsageStore) -> None:
        self.reactor = reactor
        self.directory = directory
        self.store = store
        self.own = FollowedSpool(directory)
        self.spent: list[SpendUpdate] = []
        self.changes = 0
        self.writer = FollowingWriter(
            reactor, self.own, store, self.spent.extend, self._changed, interval=0.01, retention=None
        )
        self.workers: list[FollowedSpool] = []

    def _changed(self) -> None:
        self.changes += 1

    def start(self) -> Machine:
        self.own.open()
        self.writer.start()
        return self

    def worker(self) -> FollowedSpool:
        """Start a worker, which the writer follows."""
        spool = FollowedSpool(self.directory, segment_bytes=1_000)
        spool.open()
        spool.followed_by(self.own.name)
        self.workers.append(spool)
        self.writer.follow(spool.name)
        return spool

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "the writer did not do it in time"
            await deferLater(self.reactor, 0.005)

    async def spend(self, *scopes: Scope) -> Mapping[Scope, tuple[int, int]]:
        found: list[Mapping[Scope, tuple[int, int]]] = []
        await self.writer.spend_of(scopes, found.append)
        return found[0]

    def stop(self) -> Deferred[None]:
        return self.writer.stop()

    def files(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir())


def put(spool: FollowedSpool, *rows: UsageRow) -> None:
    for row in rows:
        spool.append(row)
    spool.flush()


@pytest.fixture
def store() -> MemoryUsageStore:
    return MemoryUsageStore()


@pytest.fixture
def make_machine(reactor: Any, tmp_path: Path, store: MemoryUsageStore) -> Iterator[Callable[[], Machine]]:
    machines: list[Machine] = []

    def make() -> Machine:
        machines.append(Machine(reactor, tmp_path, store))
        return machines[-1]

    yield make
    store.unavailable = False
    for machine in machines:
        for worker in machine.workers:
            worker.close()
        if machine.own.name:
            pytest_twisted.blockon(machine.stop())


@pytest.fixture
def machine(make_machine: Callable[[], Machine]) -> Machine:
    return make_machine().start()


@pytest_twisted.ensureDeferred
async def test_rows_of_all_processes_share_transactions_and_are_told_as_own(machine: Machine) -> None:
    one, two = machine.worker(), machine.worker()
    for number in range(0, 100, 2):
        put(one, usage_row(number))
        put(two, usage_row(number + 1))
    put(machine.own, usage_row(100))
    await machine.until(lambda: len(machine.store.counted) == 101)
    assert sorted(machine.store.counted, key=lambda row: row.time) == usage_rows(101)
    await machine.until(lambda: sum(each.amount for each in machine.spent) == 101 * 7)
    assert machine.spent[-1].total == 101 * 7
    assert max(machine.store.batches) > 20
    assert machine.writer.pending().rows == 0


@pytest_twisted.ensureDeferred
async def test_segments_of_living_processes_go_and_all_goes_once_they_have_ended(machine: Machine) -> None:
    one = machine.worker()
    for number in range(60):
        put(one, usage_row(number))
        await deferLater(machine.reactor, 0.001)
    await machine.until(lambda: len(list(machine.directory.glob(f"{one.name}-*"))) == 1)
    name = one.name
    one.close()
    machine.writer._next_recovery = 0.0
    await machine.until(lambda: not any(each.startswith(name) for each in machine.files()))
    assert machine.store.counted == usage_rows(60)
    assert name not in machine.store.marks
    await machine.stop()
    assert machine.files() == []
    assert machine.store.marks == {}


@pytest_twisted.ensureDeferred
async def test_spools_of_processes_of_other_gateways_are_left_alone(machine: Machine) -> None:
    other = Spool(machine.directory)
    other.open()
    put(other, usage_row(1))
    one = machine.worker()
    put(one, usage_row(2))
    await machine.until(lambda: bool(machine.store.counted))
    machine.writer._next_recovery = 0.0
    await deferLater(machine.reactor, 0.05)
    assert machine.store.counted == [usage_row(2)]
    other.close()
    machine.writer._next_recovery = 0.0
    await machine.until(lambda: len(machine.store.counted) == 2)
    # what another gateway's process left is nobody's amount here
    await machine.until(lambda: len(machine.spent) == 2)
    assert [each.amount for each in machine.spent] == [7, 0]


@pytest_twisted.ensureDeferred
async def test_the_next_housekeeper_goes_on_where_the_last_one_was(
    make_machine: Callable[[], Machine], monkeypatch: pytest.MonkeyPatch, store: MemoryUsageStore
) -> None:
    first = make_machine().start()
    one = first.worker()
    put(one, *usage_rows(10))
    await first.until(lambda: len(store.counted) == 10)
    # it dies: nothing of it is closed
    first.writer._stopping.set()
    assert first.writer._thread is not None
    first.writer._thread.join()
    put(one, *usage_rows(10, 10))
    second = make_machine().start()
    second.writer.follow(one.name)
    put(one, *usage_rows(10, 20))
    await second.until(lambda: len(store.counted) == 30)
    assert store.counted == usage_rows(30)


@pytest_twisted.ensureDeferred
async def test_a_spool_whose_amounts_are_not_equally_far_is_moved_alone_first(machine: Machine) -> None:
    one, two = machine.worker(), FollowedSpool(machine.directory, segment_bytes=1_000)
    two.open()
    machine.workers.append(two)
    put(two, *usage_rows(2, 50))
    middle = two.end
    for number in range(52, 60):
        put(two, usage_row(number))
    # the spend of two rows is in the database, of which no sum is
    machine.store.uneven.add(two.name)
    machine.store.marks[two.name] = middle
    machine.writer.follow(two.name)
    put(one, usage_row(0))
    await machine.until(lambda: len(machine.store.counted) == 9)
    await machine.until(lambda: not machine.writer._catching_up)
    put(two, usage_row(60))
    await machine.until(lambda: len(machine.store.counted) == 10)
    assert sorted(row.time for row in machine.store.counted) == sorted(
        row.time for row in [usage_row(0), *usage_rows(9, 52)]
    )


@pytest_twisted.ensureDeferred
async def test_while_held_rows_are_moved_to_positions_and_no_amount_is_told(machine: Machine) -> None:
    one, two, late = machine.worker(), machine.worker(), FollowedSpool(machine.directory)
    machine.store.flushes = False
    put(one, *usage_rows(3))
    await machine.until(lambda: len(machine.store.kept) == 3)
    await machine.writer.hold()
    put(one, usage_row(3))
    put(two, usage_row(4))
    ends = {one.name: one.end, two.name: two.end, machine.own.name: machine.own.end}
    put(one, usage_row(5))
    put(two, usage_row(6))
    late.open()
    machine.workers.append(late)
    machine.writer.follow(late.name)
    put(late, usage_row(7))
    gone = FollowedSpool(machine.directory)
    gone.open()
    put(gone, usage_row(8))
    gone.close()
    await machine.writer.move_to(ends)
    assert {row.request_id for row in machine.store.counted} == {f"request-{number}" for number in (0, 1, 2, 3, 4, 8)}
    assert machine.spent == []
    assert await machine.spend(("key", "k1"), ("key", "k2")) == {("key", "k1"): (0, 42)}
    machine.store.flushes = True
    machine.writer.go_on()
    await machine.until(lambda: len(machine.store.counted) == 9)
    await machine.until(lambda: sum(each.amount for each in machine.spent) == 21)


@pytest_twisted.ensureDeferred
async def test_a_process_that_is_about_to_end_is_waited_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    one = machine.worker()
    await machine.until(lambda: one.name in machine.writer._spools)
    await machine.writer.hold()
    put(one, usage_row(1))
    moved = machine.writer.move_to({}, [one.name])
    await deferLater(machine.reactor, 0.2)
    assert not moved.called
    one.close()
    await moved
    assert machine.store.counted == [usage_row(1)]
    # one that does not end in time holds nobody up
    monkeypatch.setattr(following_module, "ENDING_SECONDS", 0.1)
    two = machine.worker()
    await machine.writer.hold()
    await machine.writer.move_to({}, [two.name])
    machine.writer.go_on()


@pytest_twisted.ensureDeferred
async def test_an_outage_loses_nothing_and_keeps_nothing_in_memory(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_threads, "MAX_BACKOFF", 0.02)
    one = machine.worker()
    put(one, usage_row(0))
    await machine.until(lambda: len(machine.store.counted) == 1)
    machine.store.unavailable = True
    for number in range(1, 200):
        put(one, usage_row(number))
    await machine.until(lambda: machine.store.attempts > 5)
    await machine.until(lambda: machine.writer.pending().bytes > 30_000)
    assert 50 < machine.writer.pending().rows < 800
    assert machine.writer.pending().seconds >= 0
    late = machine.worker()
    put(late, usage_row(200))
    machine.store.unavailable = False
    await machine.until(lambda: len(machine.store.counted) == 201)
    assert sorted(machine.store.counted, key=lambda row: row.time) == usage_rows(201)


@pytest_twisted.ensureDeferred
async def test_after_the_database_was_restored_what_is_left_is_read_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_threads, "MAX_BACKOFF", 0.02)
    one = machine.worker()
    put(one, *usage_rows(5))
    await machine.until(lambda: len(machine.store.counted) == 5)
    # an older state, without those
    machine.store.marks.clear()
    machine.store.counted.clear()
    machine.store.was_restored = True
    put(one, usage_row(5))
    await machine.until(lambda: len(machine.store.counted) == 6)
    assert machine.store.counted == usage_rows(6)
    assert machine.changes == 1
    put(one, usage_row(6))
    await machine.until(lambda: len(machine.store.counted) == 7)


@pytest_twisted.ensureDeferred
async def test_damaged_lines_of_a_process_that_ended_are_set_aside(
    machine: Machine, logged_failures: LoggedFailures
) -> None:
    one = machine.worker()
    put(one, usage_row(1))
    name = one.name
    with (machine.directory / f"{name}-000001.spool").open("ab") as file:
        file.write(b"half a li")
    await machine.until(lambda: len(machine.store.counted) == 1)
    assert machine.writer.batch_writer.quarantined == 0
    one._files.close_segment()
    one.close()
    machine.writer._next_recovery = 0.0
    await machine.until(lambda: machine.writer.batch_writer.quarantined == 1)
    await machine.until(lambda: not any(each.startswith(name) for each in machine.files()))
    logged_failures.flush()


@pytest_twisted.ensureDeferred
async def test_a_name_that_is_being_taken_over_is_not_followed_as_well(
    make_machine: Callable[[], Machine], store: MemoryUsageStore
) -> None:
    machine = make_machine()
    gone = FollowedSpool(machine.directory)
    gone.open()
    name = gone.name
    put(gone, usage_row(1))
    gone.close()
    store.unavailable = True
    machine.own.open()
    machine.writer.recover(0.1)
    machine.writer.follow(name)
    store.unavailable = False
    machine.writer.start()
    await machine.until(lambda: len(store.counted) == 1)
    await machine.until(lambda: not any(each.startswith(name) for each in machine.files()))
    # the worker is named again, late
    machine.writer.follow(name)
    machine.writer._next_recovery = 0.0
    await machine.until(lambda: not machine.writer._new_names)
    await machine.until(lambda: name not in machine.writer._spools)
    assert store.counted == [usage_row(1)]


@pytest_twisted.ensureDeferred
async def test_an_end_without_a_database_leaves_the_rows_in_the_spools(
    machine: Machine, store: MemoryUsageStore, make_machine: Callable[[], Machine]
) -> None:
    one = machine.worker()
    await machine.until(lambda: one.name in machine.writer._spools)
    store.unavailable = True
    put(one, *usage_rows(3))
    put(machine.own, usage_row(3))
    one.close()
    with captured_logs() as events:
        await machine.stop()
    assert any("stay in the spool" in event["log_format"] for event in events)
    store.unavailable = False
    later = make_machine().start()
    await later.until(lambda: len(store.counted) == 4)


def test_positions_are_those_of_whole_rows(tmp_path: Path) -> None:
    spool = FollowedSpool(tmp_path)
    spool.open()
    assert spool.end > Position(1, 0)
    put(spool, usage_row(1))
    before = spool.end
    spool.finish()
    assert spool.end == Position(2, 0) > before
    spool.close()
