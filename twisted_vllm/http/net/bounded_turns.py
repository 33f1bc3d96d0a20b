"""Runs long work in steps, so that the reactor serves everybody else in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from twisted.internet.task import CooperativeTask, Cooperator

#: seconds of work in one turn of the reactor, of all tasks together; the last step may take some milliseconds more
SLICE = 0.003

#: runs an iterator in steps, between which the reactor serves others
Cooperate = Callable[[Iterator[Any]], CooperativeTask[Any]]


def turn_cooperator(reactor: Any) -> Cooperator:
    """Return what runs iterators in turns of the reactor, each for at most `SLICE` and one step.

    Args:
        reactor: a provider of IReactorTime.
    """
    seconds = reactor.seconds

    def begin_turn() -> Callable[[], bool]:
        end = seconds() + SLICE
        return lambda: seconds() >= end

    return Cooperator(begin_turn, partial(reactor.callLater, 0))
