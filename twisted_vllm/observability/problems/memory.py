"""What was found before: since when a problem lasts, and by how much counters rose."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime

from twisted_vllm.observability.problems.facts import Facts, Found, Problem
from twisted_vllm.observability.problems.rules import find

#: the most problems that are told, the gravest first, and the most samples of counters of which former values are kept
MOST_PROBLEMS, MOST_COUNTERS = 200, 500
#: seconds between two values of a counter that are kept
_STEP = 15.0

_GRAVITY = {"critical": 0, "warning": 1, "info": 2}


class ProblemMemory:
    """Judges facts, one look after the other."""

    def __init__(self) -> None:
        """Remember nothing."""
        self._first: dict[tuple[str, str], float] = {}
        self._counters: dict[tuple[str, tuple[str, ...]], deque[tuple[float, float]]] = {}
        self._has_looked = False
        self._now = 0.0

    def judge(self, facts: Facts) -> list[Problem]:
        """Return what is wrong, the gravest first, then what began last."""
        self._now = now = facts.now
        found = list(find(facts, self))
        self._first = {
            key: min(self._first.get(key, now), now) for key in ((each.code, each.subject) for each in found)
        }
        self._forget_counters()
        self._has_looked = True
        return self._told(found)

    def _told(self, found: Iterable[Found]) -> list[Problem]:
        shown = []
        for each in found:
            first = self._first[each.code, each.subject]
            if self._now - first >= each.hold:
                shown.append((_GRAVITY[each.severity], -(first if each.since is None else each.since), each))
        shown.sort(key=lambda entry: entry[:2])
        return [_problem(each, -since) for _, since, each in shown[:MOST_PROBLEMS]]

    def increase(self, name: str, labels: tuple[str, ...], value: float, seconds: float) -> float:
        """Return by how much a counter rose in so many seconds, and keep its value.

        What was counted before the first look is not known, so it is no rise.
        """
        key = (name, labels)
        values = self._counters.get(key)
        if values is None:
            if len(self._counters) >= MOST_COUNTERS:
                return 0.0
            # one with labels that was not there at the first look began at 0
            first = 0.0 if labels and self._has_looked else value
            values = self._counters[key] = deque([(self._now, first)])
        if value < values[-1][1]:
            # its process began anew
            values.clear()
            values.append((self._now, 0.0))
        while len(values) > 1 and values[1][0] <= self._now - seconds:
            values.popleft()
        rise = value - values[0][1]
        if self._now - values[-1][0] >= _STEP:
            values.append((self._now, value))
        return rise

    def _forget_counters(self) -> None:
        """Forget counters that nobody told for an hour: a process or a sink is gone."""
        old = self._now - 3_600.0
        gone = [key for key, values in self._counters.items() if values[-1][0] < old]
        for key in gone:
            del self._counters[key]


def _problem(found: Found, since: float) -> Problem:
    return Problem(
        code=found.code,
        severity=found.severity,
        subject_type=found.subject_type,
        subject=found.subject,
        message=found.message,
        advice=found.advice,
        since=datetime.fromtimestamp(int(since), UTC),
        runbook=f"docs/alerts.md#{found.alert.lower()}" if found.alert else "",
    )
