"""The parts of the telemetry: when they observe, and how they start and stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tests.conftest import LoggedFailures
from twisted_vllm.app.telemetry.part import TelemetryPart
from twisted_vllm.app.telemetry.telemetry import Telemetry
from twisted_vllm.config.settings import Settings
from twisted_vllm.context import Peer, RequestContext
from twisted_vllm.lifecycle import Lifecycle, RequestObserver


class Counting(RequestObserver):
    """Counts finished requests."""

    def __init__(self) -> None:
        self.count = 0

    def finished(self, context: RequestContext) -> None:
        self.count += 1


class Switched(TelemetryPart):
    """Observes while the paths have aliases."""

    def __init__(self) -> None:
        self.counting = Counting()
        self.on = False
        self.stopping: Deferred[None] | None = None

    def observers(self) -> Sequence[RequestObserver]:
        return (self.counting,) if self.on else ()

    def prepare(self, settings: Settings) -> Callable[[], None]:
        def apply() -> None:
            self.on = settings.path_aliases

        return apply

    def stop(self) -> Deferred[None] | None:
        return self.stopping


@pytest.fixture
def telemetry() -> Any:
    made = SimpleNamespace(always=Counting(), part=Switched(), lifecycle=Lifecycle())
    events: Any = SimpleNamespace(consumers=(), selective=(), finished=lambda context: None)
    surroundings: Any = SimpleNamespace(events=events)
    made.telemetry = Telemetry(surroundings, Settings(), made.lifecycle, [made.always], parts=[made.part])
    return made


def finish(made: Any) -> tuple[int, int]:
    made.lifecycle.finished(RequestContext(Peer("192.0.2.1", False), 10.0))
    return made.always.count, made.part.counting.count


def test_a_part_observes_while_the_settings_say_so(telemetry: Any) -> None:
    assert finish(telemetry) == (1, 1)
    telemetry.telemetry.prepare(Settings(path_aliases=False))()
    assert finish(telemetry) == (2, 1)
    telemetry.telemetry.prepare(Settings())()
    assert finish(telemetry) == (3, 2)


def test_what_was_prepared_changes_nothing_until_it_is_put_into_effect(telemetry: Any) -> None:
    telemetry.telemetry.prepare(Settings(path_aliases=False))
    assert finish(telemetry) == (1, 1)


def test_it_has_stopped_when_the_last_part_has(telemetry: Any) -> None:
    telemetry.part.stopping = Deferred()
    stopped: list[object] = []
    telemetry.telemetry.stop().addCallback(stopped.append)
    assert stopped == []
    telemetry.part.stopping.callback(None)
    assert stopped == [None]


def test_a_part_that_cannot_be_stopped_is_logged_and_keeps_nobody_waiting(
    telemetry: Any, logged_failures: LoggedFailures
) -> None:
    telemetry.part.stopping = Deferred()
    stopped: list[object] = []
    telemetry.telemetry.stop().addCallback(stopped.append)
    telemetry.part.stopping.errback(Failure(ZeroDivisionError()))
    assert stopped == [None]
    assert len(logged_failures.flush(ZeroDivisionError)) == 1
