"""How often the connections are looked through, and how much of the time that takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, CooperativeTask, Cooperator

from tests.admin.admin_harness import value_of
from twisted_vllm.auth.records import Principal
from twisted_vllm.context import Peer, RequestContext
from twisted_vllm.http.headers import RequestHead
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.live_requests import LiveQuery, LiveReport
from twisted_vllm.proxy.in_flight import STEP
from twisted_vllm.proxy.live_requests import LOOK_SECONDS, LOOK_TIMES, LiveRequests

#: seconds of a turn of the reactor
TURN = 1e-6

HEAD = RequestHead(b"POST", b"/vllm/v1/chat/completions", b"HTTP/1.1", [(b"host", b"gateway")])


class Request:
    """A request in flight, as far as a look goes."""

    dispatched = body_complete = True
    work = None
    body_received = sentLength = 0

    def __init__(self, name: str, started: float) -> None:
        self.context = RequestContext(Peer("192.0.2.1", False), started)
        self.context.head = HEAD
        self.context.request_id = name.encode()
        self.context.principal = Principal("key", "alias", "0123abcd", key_id="id")
        # that there is one is all that matters
        self.context.authorization = self  # type: ignore[assignment]
        self.route = self
        self.name = "/v1/chat/completions"


class Connection:
    """A connection with one request."""

    def __init__(self, number: int) -> None:
        self.requests = [Request(f"r{number}", float(number))]


class Watched:
    """Requests in flight, and a stopwatch that each step of a look advances.

    Attributes:
        steps: how many steps were made.
    """

    def __init__(self, count: int, step_seconds: float = 0.0) -> None:
        self.clock = Clock()
        self.clock.advance(10_000.0)
        self.connections = [Connection(number) for number in range(count)]
        self.looks = self.steps = 0
        self._stopwatch = 0.0
        self._step_seconds = step_seconds
        self._cooperator = Cooperator(lambda: lambda: True, scheduler=lambda step: self.clock.callLater(TURN, step))
        self.live = LiveRequests(
            self._look,
            dict,
            ClientText(str),
            lambda context: context.peer.host,
            self._cooperate,
            self.clock,
            self._time,
        )

    def _look(self) -> Any:
        self.looks += 1
        return self.connections

    def _time(self) -> float:
        # each step asks when it begins and when it ends
        self._stopwatch += self._step_seconds / 2
        return self._stopwatch

    def _cooperate(self, steps: Iterator[Any]) -> CooperativeTask[Any]:
        return self._cooperator.cooperate(self._counted(steps))

    def _counted(self, steps: Iterator[Any]) -> Iterator[Any]:
        for each in steps:
            self.steps += 1
            yield each

    def ask(self, query: LiveQuery | None = None) -> Deferred[LiveReport]:
        return self.live.report(LiveQuery() if query is None else query)

    def settle(self) -> None:
        """Let all steps be made that are due."""
        for _ in range(100):
            self.clock.advance(TURN)

    def answer(self, query: LiveQuery | None = None) -> LiveReport:
        asked = self.ask(query)
        self.settle()
        found: LiveReport = value_of(asked)
        return found


def test_a_look_goes_in_steps_between_which_others_are_served() -> None:
    watched = Watched(5 * STEP)
    asked = watched.ask()
    watched.clock.advance(TURN)
    assert watched.steps < 5
    watched.settle()
    assert (value_of(asked).total, watched.steps) == (5 * STEP, 5)


def test_all_questions_within_two_seconds_share_one_look() -> None:
    watched = Watched(3)
    first = [watched.ask(), watched.ask(LiveQuery(limit=1)), watched.ask(LiveQuery(key="nobody"))]
    watched.settle()
    assert [value_of(each).matching for each in first] == [3, 3, 0]
    watched.clock.advance(LOOK_SECONDS - 0.1)
    assert watched.answer().total == 3
    assert watched.looks == 1
    watched.clock.advance(0.1)
    watched.connections.pop()
    assert (watched.answer().total, watched.looks) == (2, 2)


def test_only_who_sorts_by_tokens_has_them_read() -> None:
    watched = Watched(3)
    watched.answer()
    watched.answer(LiveQuery(sort="tokens"))
    assert watched.looks == 2
    # which serves the others as well
    watched.answer()
    watched.answer(LiveQuery(sort="tokens"))
    assert watched.looks == 2
    # nor do two looks follow, while somebody sorts by tokens
    watched.clock.advance(LOOK_SECONDS)
    waiting = [watched.ask(), watched.ask(LiveQuery(sort="tokens")), watched.ask()]
    watched.settle()
    assert [value_of(each).total for each in waiting] == [3, 3, 3]
    assert watched.looks == 3
    watched.clock.advance(3 * LOOK_SECONDS)
    waiting = [watched.ask(), watched.ask(LiveQuery(sort="tokens"))]
    watched.settle()
    assert [value_of(each).total for each in waiting] == [3, 3]
    assert watched.looks == 5


def test_a_look_takes_a_hundredth_of_the_time_at_most() -> None:
    watched = Watched(2 * STEP, step_seconds=0.1)
    watched.answer()
    # two steps, and the sorting
    watched.clock.advance(LOOK_TIMES * 0.15 - 0.1)
    watched.answer()
    assert watched.looks == 1
    watched.clock.advance(LOOK_TIMES * 0.15)
    watched.answer()
    assert watched.looks == 2


def test_what_has_ended_since_the_look_is_neither_named_nor_counted() -> None:
    watched = Watched(3)
    watched.answer()
    watched.connections[0].requests[0].context.ended = 1.0
    for _ in range(2):
        found = watched.answer()
        assert (found.total, [each.request_id for each in found.requests]) == (2, ["r1", "r2"])
    assert watched.looks == 1


def test_nothing_of_a_look_is_kept_when_it_is_over() -> None:
    watched = Watched(3)
    watched.answer()
    watched.clock.advance(LOOK_SECONDS)
    assert not watched.clock.getDelayedCalls()
    watched.answer()
    watched.live.stop()
    watched.live.stop()
    assert not watched.clock.getDelayedCalls()


def test_a_fault_reaches_who_asks_and_the_next_look_is_made() -> None:
    watched = Watched(1)
    broken = watched.connections[0].requests[0]
    context, broken.context = broken.context, None  # type: ignore[assignment]
    asked = watched.ask()
    watched.settle()
    with pytest.raises(AttributeError):
        value_of(asked)
    broken.context = context
    assert watched.answer().total == 1
