"""Who looks what is wrong, and how often."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.core import GaugeMetricFamily
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from tests.admin.admin_harness import value_of
from tests.end_to_end.end_to_end_harness import eventually
from tests.workers.connected import Connected, connected
from twisted_vllm.app.problems import ASKED, INTERVAL, ProblemWatch, Sources
from twisted_vllm.observability.metrics.registry import Snapshot
from twisted_vllm.ratelimit.used_budget import UsedBudget
from twisted_vllm.workers.siblings import ALONE, Siblings

START = 1_000_000.0


class Watched:
    """A watch, and what it looks at."""

    def __init__(
        self, clock: Clock, siblings: Siblings = ALONE, directories: tuple[tuple[str, Path], ...] = ()
    ) -> None:
        self.clock = clock
        self.looks = 0
        self.values: dict[str, float] = {}
        self.groups: list[Any] = []
        self.budgets: list[UsedBudget] = []
        self.waits: Deferred[Snapshot] | None = None
        self.team_names: dict[str, str] = {}
        self.wanted: set[str] = set()
        sources = Sources(
            snapshot=self._snapshot,
            groups=lambda: self.groups,
            budgets=lambda: self.budgets,
            team_name=lambda id: self.team_names.get(id, ""),
            want_teams=self.wanted.update,
            file_is_lost=lambda: False,
            directories=lambda: directories,
        )
        self.watch = ProblemWatch(siblings, clock, sources)
        self.watch.start()

    def _snapshot(self, now: float) -> Any:
        self.looks += 1
        families = [GaugeMetricFamily(f"vllm_passthrough_{name}", "", value=each) for name, each in self.values.items()]
        return Snapshot(now, families) if self.waits is None else self.waits

    def codes(self) -> list[str]:
        return [each["code"] for each in json.loads(value_of(self.watch.report()))["problems"]]


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.advance(START)
    return clock


@pytest.fixture
def processes(reactor: Any) -> Iterator[Connected]:
    found = connected(reactor)
    yield found
    found.close()


def test_it_looks_once_a_minute_so_that_it_knows_since_when(clock: Clock) -> None:
    watched = Watched(clock)
    watched.values = {"database_up": 0}
    clock.pump([INTERVAL] * 5)
    assert watched.looks == 5
    clock.advance(10)
    [problem] = json.loads(value_of(watched.watch.report()))["problems"]
    assert problem["since"] == "1970-01-12T13:47:40Z"
    watched.watch.stop()
    assert clock.getDelayedCalls() == []


def test_those_who_ask_within_seconds_share_one_look(clock: Clock) -> None:
    watched = Watched(clock)
    assert watched.codes() == watched.codes() == []
    watched.values = {"database_up": 0}
    clock.advance(ASKED - 0.1)
    assert (watched.codes(), watched.looks) == ([], 1)
    clock.advance(0.2)
    assert (watched.codes(), watched.looks) == (["database_away"], 2)
    watched.watch.stop()


def test_a_look_that_takes_long_is_seldom_repeated(clock: Clock) -> None:
    watched = Watched(clock)
    watched.waits = Deferred()
    asked = [watched.watch.report(), watched.watch.report()]
    clock.advance(0.12)
    watched.waits.callback(Snapshot(START, []))
    first, second = (value_of(each) for each in asked)
    assert first == second
    watched.waits = None
    clock.advance(11)
    watched.codes()
    assert watched.looks == 1
    clock.advance(1)
    watched.codes()
    assert watched.looks == 2
    watched.watch.stop()


def test_a_look_that_fails_fails_for_those_who_asked_and_the_next_one_works(clock: Clock, logged_failures: Any) -> None:
    watched = Watched(clock)
    watched.waits = fail(RuntimeError("no"))
    asked = watched.watch.report()
    with pytest.raises(RuntimeError):
        value_of(asked)
    assert len(logged_failures.flush(RuntimeError)) == 1
    watched.waits = None
    assert watched.codes() == []
    watched.watch.stop()


def test_servers_budgets_and_disks_are_looked_at(clock: Clock, tmp_path: Path) -> None:
    watched = Watched(clock, directories=(("the spool", tmp_path), ("the database", tmp_path / "none")))
    breaker = SimpleNamespace(closed=False, state="dead", reason="timeout", since=START - 60)
    state = SimpleNamespace(name="gpu-1:8000", sleeping=False, breaker=breaker, sleep_changed=0.0)
    watched.groups = [SimpleNamespace(name=name, destinations=[SimpleNamespace(state=state)]) for name in ("qwen", "x")]
    watched.budgets = [UsedBudget("team", "t1", 9, 10, float("inf")), UsedBudget("key", "k1", 1, 10, 0.0, "ada")]
    watched.team_names = {"t1": "Red"}
    found = json.loads(value_of(watched.watch.report()))["problems"]
    assert [(each["code"], each["subject"]) for each in found] == [
        ("model_without_server", "qwen"),
        ("model_without_server", "x"),
        ("budget_90", "team/t1"),
        ("server_down", "gpu-1:8000"),
    ]
    assert "the team Red" in found[2]["message"]
    assert found[3]["since"] == "1970-01-12T13:45:40Z"
    assert watched.wanted == {"t1"}
    watched.watch.stop()


async def test_a_worker_asks_the_housekeeper_and_says_so_if_it_is_silent(
    processes: Connected, clock: Clock, reactor: Any
) -> None:
    links = [await processes.ready(number, number) for number in range(2)]
    housekeeper, worker = (Watched(clock, link) for link in links)
    housekeeper.values = {"database_up": 0}
    found = json.loads(await worker.watch.report())
    assert [each["code"] for each in found["problems"]] == ["database_away"]
    assert worker.looks == 0
    links[0].close()
    await eventually(reactor, lambda: not links[1].others)
    found = json.loads(await worker.watch.report())
    assert [each["code"] for each in found["problems"]] == ["housekeeper_silent"]
    for each in (housekeeper, worker):
        each.watch.stop()
