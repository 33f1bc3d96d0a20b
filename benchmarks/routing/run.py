"""One run of a contestant in a scenario, on caches that were just emptied."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import attrs

from benchmarks.routing.contestants import Contestant, Fleet
from benchmarks.routing.doors import Door, doors
from benchmarks.routing.scenarios import Scenario
from benchmarks.routing.servers import Counters, counters, outcome, reset
from benchmarks.routing.talking import Load, percentile, talk
from benchmarks.table import Column, Row

COLUMNS = (
    Column("hit", "prefix\nhit ratio", 3),
    Column("of_alone", "of one\nserver's", 2),
    Column("share", "busiest\nserver %", 1),
    Column("p50", "first event\np50 ms"),
    Column("p99", "first event\np99 ms"),
    Column("refused", "failed\nbefore it"),
    Column("cut", "failed\nafter it"),
    Column("turns", "turns"),
)


def measure(contestant: Contestant, fleet: Fleet, scenario: Scenario, load: Load, directory: Path) -> Row:
    """Run a contestant once, and return its figures.

    Raises:
        CannotStart: it does not start, or a server's cache cannot be emptied.
    """
    for server in fleet.servers:
        reset(server, fleet.model)
    with ExitStack() as stack:
        used, leaving = fleet, None
        if scenario.leaves:
            ways = stack.enter_context(doors(list(fleet.servers)))
            used = attrs.evolve(fleet, servers=[each.target for each in ways])
            leaving = _Leaving(ways[-1], fleet, load.users * load.turns)
        target = stack.enter_context(contestant(used, directory))
        before = [counters(server) for server in fleet.servers]
        turns = talk(target, scenario, load, leaving or _unwatched)
        added = [counters(server).since(was) for server, was in zip(fleet.servers, before, strict=True)]
    firsts = [1000 * turn.first for turn in turns if turn.first is not None and not turn.failed]
    caches = outcome(added)
    # a server that is away has no share
    shared = (
        caches
        if leaving is None
        else outcome([all_of_it.since(away) for all_of_it, away in zip(added, leaving.away, strict=True)])
    )
    return {
        "hit": caches.hit_ratio,
        "share": None if shared.busiest is None else 100 * shared.busiest,
        "p50": percentile(firsts, 50),
        "p99": percentile(firsts, 99),
        "refused": sum(turn.failed and turn.first is None for turn in turns),
        "cut": sum(turn.failed and turn.first is not None for turn in turns),
        "turns": len(turns),
    }


def _unwatched(_: int) -> None:
    """Nothing happens in between."""


class _Leaving:
    """Shuts a door after a third of the turns, and opens it after two thirds, the cache behind it empty.

    Attributes:
        away: what the servers' counters grew by in between.
    """

    def __init__(self, door: Door, fleet: Fleet, turns: int) -> None:
        self.away: list[Counters] = [Counters(0, 0, 0)] * len(fleet.servers)
        self._door = door
        self._fleet = fleet
        self._turns = turns
        self._before: list[Counters] = []

    def __call__(self, over: int) -> None:
        """So many turns are over."""
        if over == self._turns // 3:
            self._door.shut()
            self._before = [counters(server) for server in self._fleet.servers]
        elif over == 2 * self._turns // 3:
            now = [counters(server) for server in self._fleet.servers]
            self.away = [each.since(was) for each, was in zip(now, self._before, strict=True)]
            reset(self._fleet.servers[-1], self._fleet.model)
            self._door.open()
