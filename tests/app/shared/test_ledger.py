"""Workers, a housekeeper and a supervisor: the supervisor's budgets are exactly what was spent, whoever dies when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater

from tests.builders import usage_row
from tests.end_to_end.end_to_end_harness import eventually
from tests.ratelimit.limiter_contract import NOON, key
from tests.usage.memory_usage_store import MemoryUsageStore
from tests.workers.connected import Connected, connected
from twisted_vllm.app.processes.supervised_budgets import SupervisedBudgets
from twisted_vllm.app.shared import ledger as shared_ledger
from twisted_vllm.app.shared.ledger import HousekeptLedger, tell_position
from twisted_vllm.app.shared.ledger_messages import POSITION, Follow, SpoolEnd
from twisted_vllm.auth.records import Spend
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.usage.spool.followed import FollowedSpool
from twisted_vllm.usage.spool.following_writer import FollowingWriter
from twisted_vllm.workers.link import Link
from twisted_vllm.workers.siblings import HOUSEKEEPER

#: what each row costs
COST = 7
WHO = key(max_budget=10**12)
SETTLED = "test.settled"


@attrs.define(eq=False)
class Process:
    """A worker or a housekeeper, but for the rest."""

    number: int
    link: Link
    spool: FollowedSpool
    writer: FollowingWriter | None = None
    housekept: HousekeptLedger | None = None


class Gateway:
    """A supervisor with a limiter, and processes that tell it what they settle."""

    def __init__(self, reactor: Any, directory: Path, processes: Connected) -> None:
        self.reactor = reactor
        self.directory = directory
        self.processes = processes
        self.store = MemoryUsageStore()
        self.limiter = LocalLimiter()
        self.budgets = SupervisedBudgets(processes.hub, self.limiter)
        self.limiter.budget_of(WHO, NOON)
        self.all: list[Process] = []
        self.rows = 0
        processes.hub.on(SETTLED, int, self._settled)

    def _settled(self, cost: int, sender: int) -> None:
        self.limiter.generation = self.budgets.reconciliation.generation_of(sender)
        self.limiter.settle(self.limiter.admit([WHO], "m", 0, COST, NOON), 0, cost, NOON)

    async def start(self, slot: int) -> Process:
        number = len(self.all)
        link = self.processes.start(number, slot)
        spool = FollowedSpool(self.directory, group="g")
        spool.open()
        process = Process(number, link, spool)
        self.all.append(process)
        tell_position(link, spool, lambda: None)
        if slot == HOUSEKEEPER:
            housekept = HousekeptLedger(link, spool, self._spends, self.reactor, shares_spend=False)
            process.housekept = housekept
            process.writer = FollowingWriter(
                self.reactor, spool, self.store, housekept.committed, housekept.history_changed, interval=0.01
            )
            process.writer.start()
            housekept.start(process.writer)
        link.ready()
        await eventually(self.reactor, lambda: number in self.processes.hub.ready)
        return process

    def _spends(self) -> Deferred[list[Spend]]:
        spent = sum(row.cost for row in self.store.counted)
        return succeed([Spend("key", "k1", spent, 0, spent)])

    def serve(self, process: Process, count: int = 1, *, settles: bool = True) -> None:
        """Have a worker serve requests: it settles, and its rows are safe."""
        for _ in range(count):
            if settles:
                process.link.tell(SETTLED, COST)
            process.spool.append(usage_row(self.rows))
            self.rows += 1
        process.spool.flush()

    async def kill(self, process: Process) -> None:
        """End a process without a word."""
        process.link.close()
        if process.housekept is not None:
            process.housekept.stop()
        if process.writer is not None:
            process.writer._stopping.set()
            assert process.writer._thread is not None
            process.writer._thread.join()
        process.spool._files.close_segment()
        claim, process.spool._claim = process.spool._claim, None
        if claim is not None:
            claim.release()
        await eventually(self.reactor, lambda: process.number not in self.processes.hub.connected)

    @property
    def spent(self) -> tuple[int, int]:
        """What the limiter has from the database, and what it still waits for."""
        [budget] = self.limiter.budgets()
        return budget.saved, budget.unsaved

    async def until_spent(self, rows: int) -> None:
        await eventually(self.reactor, lambda: self.spent == (rows * COST, 0))

    async def stop(self) -> None:
        for process in self.all:
            if process.housekept is not None:
                process.housekept.stop()
            if process.writer is not None and process.spool.name:
                await process.writer.stop()
            elif process.spool.name:
                process.spool.close()


@pytest.fixture
def gateway(reactor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    monkeypatch.setattr(shared_ledger, "RETRY_SECONDS", 0.02)
    processes = connected(reactor)
    found = Gateway(reactor, tmp_path, processes)
    yield found
    pytest_twisted.blockon(Deferred.fromCoroutine(found.stop()))
    processes.close()
    pytest_twisted.blockon(deferLater(reactor, 0.02))


async def test_what_workers_spend_is_counted_once_before_and_after_it_is_written(gateway: Gateway) -> None:
    one = await gateway.start(1)
    await gateway.start(0)
    two = await gateway.start(2)
    for _ in range(5):
        gateway.serve(one, 2)
        gateway.serve(two)
        await deferLater(gateway.reactor, 0.01)
        assert sum(gateway.spent) <= gateway.rows * COST
    await gateway.until_spent(15)


async def test_a_housekeeper_that_dies_after_it_wrote_leaves_no_amount_behind(gateway: Gateway) -> None:
    one = await gateway.start(1)
    first = await gateway.start(0)
    gateway.serve(one, 3)
    await gateway.until_spent(3)
    # it writes, and tells nothing
    assert first.housekept is not None
    assert first.writer is not None
    first.writer._on_committed = lambda updates: None
    gateway.serve(one, 2)
    await eventually(gateway.reactor, lambda: len(gateway.store.counted) == 5)
    await gateway.kill(first)
    gateway.serve(one)
    await eventually(gateway.reactor, lambda: sum(gateway.spent) == 6 * COST)
    await gateway.start(0)
    await gateway.until_spent(6)


async def test_rows_that_a_dead_worker_did_not_settle_take_nothing_from_what_others_spent(gateway: Gateway) -> None:
    one, two = await gateway.start(1), await gateway.start(2)
    await gateway.start(0)
    gateway.serve(one, 2)
    gateway.serve(two)
    await gateway.until_spent(3)
    gateway.store.flushes = False
    gateway.serve(two, 4)
    gateway.serve(one, 3, settles=False)
    await eventually(gateway.reactor, lambda: sum(gateway.spent) == 7 * COST)
    await gateway.kill(one)
    gateway.serve(two)
    await eventually(gateway.reactor, lambda: sum(gateway.spent) >= 8 * COST)
    gateway.store.flushes = True
    await gateway.until_spent(11)


async def test_budgets_that_only_the_supervisor_knows_are_told_too(gateway: Gateway) -> None:
    """As those of end users without a record."""
    one = await gateway.start(1)
    first = await gateway.start(0)
    gateway.serve(one, 3)
    await gateway.until_spent(3)
    assert first.writer is not None
    first.writer._on_committed = lambda updates: None
    gateway.serve(one, 2)
    await eventually(gateway.reactor, lambda: len(gateway.store.counted) == 5)
    await gateway.kill(first)
    gateway._spends = lambda: succeed([])  # type: ignore[method-assign]
    await gateway.start(0)
    await gateway.until_spent(5)


async def test_a_worker_that_does_not_answer_delays_what_is_told_and_nothing_is_wrong(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await gateway.start(1)
    await gateway.start(0)
    gateway.serve(one, 2)
    await gateway.until_spent(2)
    answers: list[Deferred[SpoolEnd]] = []
    hung = gateway.processes.start(50, 2)

    def never(message: Follow, sender: int) -> Deferred[SpoolEnd]:
        answers.append(Deferred())
        return answers[-1]

    hung.answers(POSITION, Follow, never)
    hung.ready()
    await eventually(gateway.reactor, lambda: bool(answers))
    gateway.serve(one, 3)
    await eventually(gateway.reactor, lambda: len(gateway.store.counted) == 5)
    await deferLater(gateway.reactor, 0.1)
    assert gateway.spent == (2 * COST, 3 * COST)
    # it ends, and the housekeeper reconciles
    hung.close()
    await gateway.until_spent(5)


async def test_an_outage_while_budgets_are_reconciled_is_waited_for(gateway: Gateway) -> None:
    one, two = await gateway.start(1), await gateway.start(2)
    await gateway.start(0)
    gateway.serve(one, 2)
    await gateway.until_spent(2)
    gateway.store.unavailable = True
    gateway.serve(two, 2)
    await gateway.kill(two)
    gateway.serve(one)
    await eventually(gateway.reactor, lambda: gateway.spent == (2 * COST, 3 * COST))
    gateway.store.unavailable = False
    await gateway.until_spent(5)


async def test_the_database_of_another_history_is_loaded_anew(gateway: Gateway) -> None:
    one = await gateway.start(1)
    await gateway.start(0)
    gateway.serve(one, 3)
    await gateway.until_spent(3)
    gateway.store.marks.clear()
    gateway.store.counted.clear()
    gateway.store.was_restored = True
    gateway.serve(one, 1)
    # the rows are still in the spool
    await eventually(gateway.reactor, lambda: len(gateway.store.counted) == 4)
    await gateway.until_spent(4)


def test_totals_go_in_messages_of_a_bounded_size() -> None:
    sent: list[tuple[str, int]] = []

    class Siblings:
        def tell(self, topic: str, message: Any) -> None:
            sent.append((topic, len(message.totals)))

    spends: Mapping[str, int] = {f"k{number}": number for number in range(4_500)}
    shared_ledger._tell_loaded(
        Siblings(),  # type: ignore[arg-type]
        [Spend("key", id, amount, 0, amount) for id, amount in spends.items()],
    )
    assert sent == [("ledger.loaded", 2_000), ("ledger.loaded", 2_000), ("ledger.loaded", 500)]
