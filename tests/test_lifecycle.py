"""Observers are told of the events that they override, in their order, and cannot harm each other."""

from __future__ import annotations

import pytest

from tests.conftest import LoggedFailures
from twisted_vllm.context import Peer, RequestContext
from twisted_vllm.lifecycle import Lifecycle, RequestObserver

EVENTS = ("admitted", "sent", "first_byte", "finished")


class Everything(RequestObserver):
    """Writes down each event."""

    def __init__(self, name: str, told: list[tuple[str, str, RequestContext]]) -> None:
        self._name = name
        self._told = told

    def admitted(self, context: RequestContext) -> None:
        self._told.append((self._name, "admitted", context))

    def sent(self, context: RequestContext) -> None:
        self._told.append((self._name, "sent", context))

    def first_byte(self, context: RequestContext) -> None:
        self._told.append((self._name, "first_byte", context))

    def finished(self, context: RequestContext) -> None:
        self._told.append((self._name, "finished", context))


class Failing(RequestObserver):
    """Fails at the end of each request."""

    def finished(self, context: RequestContext) -> None:
        raise ZeroDivisionError


def live(lifecycle: Lifecycle, context: RequestContext) -> None:
    for observers in (lifecycle.admitted, lifecycle.sent, lifecycle.first_byte):
        for observe in observers:
            observe(context)
    lifecycle.finished(context)


@pytest.fixture
def context() -> RequestContext:
    return RequestContext(Peer("192.0.2.1", False), 10.0)


def test_observers_are_told_of_each_event_in_their_order(context: RequestContext) -> None:
    told: list[tuple[str, str, RequestContext]] = []
    live(Lifecycle([Everything("a", told), Everything("b", told)]), context)
    assert told == [(name, event, context) for event in EVENTS for name in ("a", "b")]


def test_events_that_nobody_overrides_have_nobody_to_tell() -> None:
    lifecycle = Lifecycle([Failing(), RequestObserver()])
    assert (lifecycle.admitted, lifecycle.sent, lifecycle.first_byte) == ((), (), ())


def test_an_observer_that_fails_is_logged_and_keeps_nothing_from_the_others(
    context: RequestContext, logged_failures: LoggedFailures
) -> None:
    told: list[tuple[str, str, RequestContext]] = []
    Lifecycle([Failing(), Everything("a", told)]).finished(context)
    assert told == [("a", "finished", context)]
    assert len(logged_failures.flush(ZeroDivisionError)) == 1


def test_others_are_told_once_it_is_reconfigured(context: RequestContext) -> None:
    told: list[tuple[str, str, RequestContext]] = []
    lifecycle = Lifecycle([Everything("a", told)])
    lifecycle.reconfigure([Everything("b", told)])
    live(lifecycle, context)
    assert told == [("b", event, context) for event in EVENTS]
