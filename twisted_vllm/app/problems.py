"""Looks what is wrong with the gateway, once a minute and whenever somebody asks, for all processes.

The process that housekeeps looks, so that all who ask are told the same, and since when.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from twisted_vllm.observability.metrics.registry import Snapshot
from twisted_vllm.observability.problems.facts import (
    DiskFact,
    Facts,
    Figures,
    Problem,
    ProblemsReport,
    ServerFact,
)
from twisted_vllm.ratelimit.allowance import TEAM
from twisted_vllm.ratelimit.used_budget import UsedBudget
from twisted_vllm.upstreams.health_report import SLEEPING
from twisted_vllm.upstreams.router import ModelGroup
from twisted_vllm.upstreams.server_state import ServerState
from twisted_vllm.workers.siblings import HOUSEKEEPER, Siblings
from twisted_vllm.workers.topics import NoAnswer

if TYPE_CHECKING:
    from twisted_vllm.observability.problems.memory import ProblemMemory

#: the topic of the question
PROBLEMS = "overview.problems"

#: seconds between two looks, and between two that somebody asks for: at least, and if the last one took long
INTERVAL, ASKED, LONG = 60.0, 5.0, 15.0
#: if the last one took so many times less, the next one may follow
_TIMES = 100.0
#: seconds that the housekeeper has to look
_SECONDS = 5.0


_SILENT = Problem(
    code="housekeeper_silent",
    severity="critical",
    subject_type="process",
    subject="housekeeper",
    message="The housekeeper does not answer: what is shown is what one worker knows. Rows of the ledger wait on disk.",
    advice="It is started again within a second if it ended, and killed if it stays silent for 30 seconds. Look at the "
    "log if this lasts.",
    since=None,
    runbook="docs/alerts.md#processessilent",
)


class Sources(msgspec.Struct, frozen=True):
    """Where the facts come from.

    Attributes:
        snapshot: collects the metrics of all processes at a time in Unix seconds.
        groups: returns the model groups.
        budgets: returns the budgets that are used most.
        team_name: returns the name of a team; empty if it is not known.
        want_teams: asks for the names of teams.
        file_is_lost: returns whether the database's file is gone, for any process.
        directories: returns what the gateway writes to: what is there in words, and where.
    """

    snapshot: Callable[[float], Snapshot | Deferred[Snapshot]]
    groups: Callable[[], Iterable[ModelGroup]]
    budgets: Callable[[], Iterable[UsedBudget]]
    team_name: Callable[[str], str]
    want_teams: Callable[[set[str]], None]
    file_is_lost: Callable[[], bool]
    directories: Callable[[], Iterable[tuple[str, Path]]]


class ProblemWatch:
    """Knows what is wrong."""

    _log = Logger()

    def __init__(self, siblings: Siblings, reactor: Any, sources: Sources) -> None:
        """Set up; `start` begins to look.

        Args:
            siblings: the other processes.
            reactor: the clock; its seconds are Unix seconds.
            sources: where the facts come from.
        """
        self._siblings = siblings
        self._reactor = reactor
        self._sources = sources
        self._memory: ProblemMemory | None = None
        self._loop = LoopingCall(self._tick)
        self._loop.clock = reactor
        self._began = reactor.seconds()
        self._answer = b""
        self._next = 0.0
        self._waiting: list[Deferred[bytes]] | None = None
        if siblings.housekeeps:
            siblings.answers(PROBLEMS, type(None), lambda question, asker: self._current())

    def start(self) -> None:
        """Look now and then, where this is done."""
        if self._siblings.housekeeps:
            self._loop.start(INTERVAL, now=False)

    def stop(self) -> None:
        """Look no more. Idempotent."""
        if self._loop.running:
            self._loop.stop()

    def _tick(self) -> None:
        # a failure is in the log
        self._current().addErrback(lambda failure: None)

    @inlineCallbacks
    def report(self) -> Any:
        """Return the JSON of a `ProblemsReport`."""
        if self._siblings.housekeeps:
            answer = yield self._current()
            return answer
        housekeeper = next((number for number, slot in self._siblings.others.items() if slot == HOUSEKEEPER), None)
        if housekeeper is not None:
            try:
                answer = yield self._siblings.ask_one(housekeeper, PROBLEMS, None, bytes, _SECONDS)
            except NoAnswer:
                pass
            else:
                return answer
        answer = yield self._current()
        report = msgspec.json.decode(answer, type=ProblemsReport)
        return msgspec.json.encode(msgspec.structs.replace(report, problems=[_SILENT, *report.problems]))

    def _current(self) -> Deferred[bytes]:
        """Return the JSON of a report that is young enough, or a new one; those who ask meanwhile get the same."""
        result: Deferred[bytes] = Deferred()
        if self._answer and self._reactor.seconds() < self._next:
            result.callback(self._answer)
        elif self._waiting is not None:
            self._waiting.append(result)
        else:
            self._waiting = [result]
            self._look()
        return result

    @inlineCallbacks
    def _look(self) -> Any:
        try:
            outcome: Any = yield self._new_answer()
            self._answer = outcome
        except Exception as error:
            self._log.failure("It could not be found out what is wrong with the gateway")
            outcome = error
        waiting, self._waiting = self._waiting or [], None
        for each in waiting:
            if isinstance(outcome, Exception):
                each.errback(outcome)
            else:
                each.callback(outcome)

    @inlineCallbacks
    def _new_answer(self) -> Any:
        now = self._reactor.seconds()
        snapshot: Snapshot = yield maybeDeferred(self._sources.snapshot, now)
        # Imported here: a gateway that has just begun does without.
        from twisted_vllm.observability.problems.memory import ProblemMemory
        from twisted_vllm.observability.problems.rules import WANTED

        self._memory = self._memory or ProblemMemory()
        problems = self._memory.judge(self._facts(now, Figures(snapshot.families, WANTED)))
        took = self._reactor.seconds() - now
        self._next = now + max(ASKED, min(_TIMES * took, LONG))
        report = ProblemsReport(problems=problems, looked_at=_moment(now), watched_since=_moment(self._began))
        return msgspec.json.encode(report)

    def _facts(self, now: float, figures: Figures) -> Facts:
        sources = self._sources
        budgets = list(sources.budgets())
        sources.want_teams({each.id for each in budgets if each.kind == TEAM})
        return Facts(
            now=now,
            figures=figures,
            servers=list(_servers(sources.groups())),
            budgets=[_named(each, sources.team_name) for each in budgets],
            disks=list(_disks(sources.directories())),
            file_is_lost=sources.file_is_lost(),
        )


def _named(budget: UsedBudget, team_name: Callable[[str], str]) -> UsedBudget:
    if budget.name or budget.kind != TEAM:
        return budget
    return msgspec.structs.replace(budget, name=team_name(budget.id))


def _servers(groups: Iterable[ModelGroup]) -> Iterator[ServerFact]:
    found: dict[str, tuple[ServerState, list[str]]] = {}
    for group in groups:
        for each in group.destinations:
            found.setdefault(each.state.name, (each.state, []))[1].append(group.name)
    for state, names in found.values():
        breaker = state.breaker
        sleeps = state.sleeping and breaker.closed
        yield ServerFact(
            state.name,
            list(dict.fromkeys(names)),
            SLEEPING if sleeps else breaker.state,
            breaker.reason,
            max(breaker.since, state.sleep_changed),
        )


def _disks(directories: Iterable[tuple[str, Path]]) -> Iterator[DiskFact]:
    by_disk: dict[tuple[int, int], tuple[list[str], int, int]] = {}
    for use, path in directories:
        try:
            found = os.statvfs(path)
        except OSError:
            # the component that writes there says so
            continue
        key = (found.f_fsid, found.f_blocks)
        by_disk.setdefault(key, ([], found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize))[0].append(use)
    for uses, free, total in by_disk.values():
        yield DiskFact(" and ".join(uses), free, total)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)
