"""One run of a contestant in a scenario, on caches that were just emptied."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import attrs

from benchmarks.routing.contestants import Contestant, Fleet
from benchmarks.routing.doors import Door, doors
from benchmarks.routing.scenarios import Scenario
from benchmarks.routing.servers import counters, outcome, reset
from benchmarks.routing.talking import Load, percentile, talk
from benchmarks.table import Column, Row

COLUMNS = (
    Column("hit", "prefix\nhit ratio", 3),
    Column("share", "busiest\nserver %", 1),
    Column("p50", "first event\np50 ms"),
    Column("p99", "first event\np99 ms"),
    Column("failed", "failed\nturns"),
    Column("turns", "turns"),
)


def measure(contestant: Contestant, fleet: Fleet, scenario: Scenario, load: Load, directory: Path) -> Row:
    """Run a contestant once, and return its figures.

    Raises:
        CannotStart: it does not start, or a server's cache cannot be emptied.
    """
    for server in fleet.servers:
        reset(server)
    with ExitStack() as stack:
        used = fleet
        progress: Callable[[int], None] = _unwatched
        if scenario.leaves:
            ways = stack.enter_context(doors(list(fleet.servers)))
            used = attrs.evolve(fleet, servers=[each.target for each in ways])
            progress = _leaving(ways[-1], fleet, load.users * load.turns)
        target = stack.enter_context(contestant(used, directory))
        before = [counters(server) for server in fleet.servers]
        turns = talk(target, scenario, load, progress)
        added = [counters(server).since(was) for server, was in zip(fleet.servers, before, strict=True)]
    firsts = [1000 * turn.first for turn in turns if turn.first is not None and not turn.failed]
    caches = outcome(added)
    return {
        "hit": caches.hit_ratio,
        "share": None if caches.busiest is None else 100 * caches.busiest,
        "p50": percentile(firsts, 50),
        "p99": percentile(firsts, 99),
        "failed": sum(turn.failed for turn in turns),
        "turns": len(turns),
    }


def _unwatched(_: int) -> None:
    """Nothing happens in between."""


def _leaving(door: Door, fleet: Fleet, turns: int) -> Callable[[int], None]:
    """Return what shuts a door after a third of the turns, and opens it after two thirds, the cache behind it empty."""

    def progress(over: int) -> None:
        if over == turns // 3:
            door.shut()
        elif over == 2 * turns // 3:
            reset(fleet.servers[-1])
            door.open()

    return progress
