"""A change is answered when all processes have it, or after a moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from tests.end_to_end.end_to_end_harness import eventually
from tests.workers.connected import Connected, connected
from twisted_vllm.app.shared import changes as shared_changes
from twisted_vllm.app.shared.changes import SharedChanges
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.workers.link import Link


class Reading:
    """Counts the reads of a registry, which `hold` keeps waiting."""

    def __init__(self) -> None:
        self.reads = 0
        self.hold: Deferred[None] | None = None
        self.fails = False

    def catch_up(self) -> Deferred[None]:
        self.reads += 1
        if self.fails:
            failed: Deferred[None] = Deferred()
            failed.errback(Failure(StoreUnavailable("away")))
            return failed
        if self.hold is None:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self.hold.addCallback(waiting.callback)
        return waiting


@pytest.fixture
def processes(reactor: Any) -> Iterator[Connected]:
    found = connected(reactor)
    yield found
    found.close()


def sharing(link: Link) -> tuple[SharedChanges, Reading]:
    changes, reading = SharedChanges(link), Reading()
    changes.follow(reading)  # type: ignore[arg-type]  # it has what is used of a registry
    return changes, reading


async def begin(processes: Connected, count: int) -> tuple[list[SharedChanges], list[Reading]]:
    found = [sharing(await processes.ready(number, number)) for number in range(count)]
    return [changes for changes, _ in found], [reading for _, reading in found]


async def test_a_change_waits_until_all_others_have_read_it(processes: Connected, reactor: Any) -> None:
    changes, readings = await begin(processes, 3)
    readings[2].hold = Deferred()
    told = changes[0].tell()
    await eventually(reactor, lambda: readings[1].reads == readings[2].reads == 1)
    assert not told.called
    readings[2].hold.callback(None)
    await told
    assert readings[0].reads == 0


async def test_many_changes_at_once_are_two_reads(processes: Connected) -> None:
    changes, readings = await begin(processes, 2)
    for each in [changes[0].tell() for _ in range(1_000)]:
        await each
    assert readings[1].reads == 2


async def test_a_process_alone_waits_for_nobody(processes: Connected) -> None:
    changes, _ = await begin(processes, 1)
    assert changes[0].tell().called


async def test_a_frozen_process_holds_up_one_change(
    processes: Connected, reactor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_changes, "PATIENCE", 0.05)
    changes, readings = await begin(processes, 3)
    readings[2].hold = hold = Deferred[None]()
    began = reactor.seconds()
    await changes[0].tell()
    assert reactor.seconds() - began >= 0.04
    for _ in range(50):
        await changes[0].tell()
    assert readings[1].reads == 51
    # it is not asked again before its answer, or the end of its time
    assert readings[2].reads < 51
    readings[2].hold = None
    hold.callback(None)
    # it answers the next question, and is waited for again
    before = readings[2].reads

    async def answers() -> bool:
        await changes[0].tell()
        return readings[2].reads > before

    while not await answers():
        pass
    await eventually(reactor, lambda: not changes[0]._late)


async def test_a_database_that_is_away_holds_up_nobody(processes: Connected) -> None:
    changes, readings = await begin(processes, 2)
    readings[1].fails = True
    await changes[0].tell()
    await changes[0].tell()
    assert readings[1].reads == 2


async def test_a_process_that_ends_is_not_waited_for(processes: Connected, reactor: Any) -> None:
    changes, readings = await begin(processes, 2)
    readings[1].hold = Deferred()
    told = changes[0].tell()
    await eventually(reactor, lambda: readings[1].reads == 1)
    processes.links[1].close()
    await told
    assert changes[0].tell().called


async def test_a_process_that_begins_reads_what_it_missed_once_all_others_know_of_it(
    processes: Connected, reactor: Any
) -> None:
    changes, _ = await begin(processes, 2)
    link = processes.start(7, 2)
    late, reading = sharing(link)
    link.ready()
    await late.join(link, reactor)
    assert reading.reads == 1
    assert set(link.others) == {0, 1}
    # a change from now on is told to it
    for each in changes:
        await each.tell()
    assert reading.reads == 3


async def test_a_process_begins_although_the_database_is_away(processes: Connected, reactor: Any) -> None:
    link = processes.start(7, 2)
    late, reading = sharing(link)
    reading.fails = True
    link.ready()
    await late.join(link, reactor)
    assert reading.reads == 1
