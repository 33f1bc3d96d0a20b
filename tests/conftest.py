"""Guards around every test, and fixtures for all tests.

A test that leaves a delayed call, a listening port or a connection on the reactor fails, and so does one during which a
failure or a critical event is logged, an unhandled error in a Deferred among them. A test that wants such an event asks
for ``logged_failures`` and flushes it.

Nothing here imports the reactor while it is loaded: pytest-twisted installs it first, so that ``--reactor`` works.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, settings
from twisted.internet.error import ConnectionAborted
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogEvent, LogLevel, eventAsText, globalLogBeginner
from twisted.python.failure import Failure
from zope.interface import implementer

# how long an example takes says more about the machine than about the code
settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=100 if os.environ.get("FULL_LOAD") else 50,
)
settings.load_profile("any machine")

# the assertions of harnesses and contracts tell what they saw, as those of test modules do
pytest.register_assert_rewrite(
    "tests.admin",
    "tests.app",
    "tests.auth",
    "tests.benchmarks",
    "tests.bodies",
    "tests.config",
    "tests.end_to_end",
    "tests.http",
    "tests.identification",
    "tests.live",
    "tests.observability",
    "tests.packaging",
    "tests.proxy",
    "tests.ratelimit",
    "tests.services",
    "tests.simulator",
    "tests.storage",
    "tests.upstreams",
    "tests.usage",
    "tests.usage_export",
)

#: turns of the reactor after which a closing connection counts as left behind
SETTLING_TURNS = 50
#: from this turn on each turn waits, to give the kernel time for what is in transit
PATIENT_FROM_TURN = 20
PATIENT_SECONDS = 0.01

#: the critical event that Twisted logs before the one that carries a Deferred's failure
DEFERRED_HEADLINE = "Unhandled error in Deferred:"


@implementer(ILogObserver)
class LoggedFailures:
    """Logged events that carry a failure or are critical, until a test flushes them."""

    def __init__(self) -> None:
        self._events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        """Observe one event of ``twisted.logger``."""
        if event.get("log_format") == DEFERRED_HEADLINE:
            return
        if "log_failure" in event or "failure" in event or event.get("log_level") is LogLevel.critical:
            self._events.append(event)

    def flush(self, *types: type[BaseException]) -> list[Failure | None]:
        """Remove and return what was logged so far: all, or only failures of these types.

        Returns:
            The failures in their order; ``None`` stands for a critical event without one.
        """
        # A Deferred logs its unhandled error when it is collected.
        gc.collect()
        taken: list[LogEvent] = []
        kept: list[LogEvent] = []
        for event in self._events:
            failure = event.get("log_failure", event.get("failure"))
            (taken if not types or (failure and failure.check(*types)) else kept).append(event)
        self._events = kept
        return [event.get("log_failure", event.get("failure")) for event in taken]

    def take_texts(self) -> list[str]:
        """Remove and return everything, each event as text with its traceback."""
        events, self._events = self._events, []
        return [eventAsText(event) for event in events]


_LOGGED = LoggedFailures()


def pytest_configure() -> None:
    """Watch the log from the first import of a test module on.

    Before logging begins, Twisted keeps every event, with all that it refers to, and prints those that are critical.
    """
    # pytest asks for Twisted's before each test
    importlib.metadata.version = cache(importlib.metadata.version)
    globalLogBeginner.beginLoggingTo([_LOGGED], discardBuffer=True, redirectStandardIO=False)


def pytest_collection_finish() -> None:
    """Exempt what the imports made from later collections, so that one after every test stays cheap."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run for what was logged after the last test."""
    gc.unfreeze()
    gc.collect()
    texts = _LOGGED.take_texts()
    if texts:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print("\nlogged after the last test:\n" + "\n".join(texts))


@pytest.fixture(scope="session")
def reactor(twisted_greenlet: object) -> Any:
    """The reactor that pytest-twisted installed, running."""
    from twisted.internet import reactor  # noqa: TID251 - the one place of the tests that names it

    # The first turn installs the reactor's own wakers, which are no test's leftovers.
    pytest_twisted.blockon(deferLater(reactor, 0, lambda: None))
    return reactor


@pytest.fixture(scope="module", autouse=True)
def _old_objects() -> None:
    """Exempt what outlives a module from later collections, until the one at the end of the run."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def logged_failures() -> LoggedFailures:
    """The logged failures, for a test that expects one: ``assert logged_failures.flush(ValueError)``."""
    return _LOGGED


@pytest.fixture(autouse=True)
def _no_leftovers(reactor: Any) -> Iterator[None]:
    """Fail the test for what it leaves on the reactor or in the log."""
    calls = set(reactor.getDelayedCalls())
    selectables = {*reactor.getReaders(), *reactor.getWriters()}
    promotions = _promotions()
    yield
    found = _settle(reactor, calls, selectables)
    # what a short test made is all young: the old objects are not looked at again after each of 15,000 tests
    gc.collect(1 if _promotions() == promotions else 2)
    logged = _LOGGED.take_texts()
    if found:
        _remove(reactor, found)
        pytest.fail("left on the reactor:\n" + "\n".join(repr(leftover) for leftover in found), pytrace=False)
    if logged:
        pytest.fail("logged, and not expected:\n" + "\n".join(logged), pytrace=False)


def _promotions() -> int:
    """Return how many collections have made old objects of young ones."""
    return sum(generation["collections"] for generation in gc.get_stats()[1:])


def _leftovers(reactor: Any, calls: set[Any], selectables: set[Any]) -> list[Any]:
    left_calls = [call for call in reactor.getDelayedCalls() if call not in calls]
    return left_calls + list({*reactor.getReaders(), *reactor.getWriters()} - selectables)


def _settle(reactor: Any, calls: set[Any], selectables: set[Any]) -> list[Any]:
    """Return what is left after closing connections had time to close."""
    found = _leftovers(reactor, calls, selectables)
    for turn in range(SETTLING_TURNS):
        if not found:
            break
        seconds = 0 if turn < PATIENT_FROM_TURN else PATIENT_SECONDS
        pytest_twisted.blockon(deferLater(reactor, seconds, lambda: None))
        found = _leftovers(reactor, calls, selectables)
    return found


def _remove(reactor: Any, found: list[Any]) -> None:
    """Remove the leftovers, so that only the test that made them fails."""
    for leftover in found:
        if hasattr(leftover, "cancel"):
            leftover.cancel()
            continue
        reactor.removeReader(leftover)
        reactor.removeWriter(leftover)
        leftover.connectionLost(Failure(ConnectionAborted()))
    _LOGGED.take_texts()
