"""Creates the parts of the telemetry, and gives them the settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.app.telemetry.alerting import Alerting
from twisted_vllm.app.telemetry.contents import ContentsPart
from twisted_vllm.app.telemetry.otlp_metrics import OtlpMetricsPart
from twisted_vllm.app.telemetry.part import Surroundings, TelemetryPart
from twisted_vllm.app.telemetry.process_metrics import ProcessMetrics
from twisted_vllm.app.telemetry.request_metrics import RequestMetricsPart
from twisted_vllm.app.telemetry.sinks import SinksPart
from twisted_vllm.app.telemetry.slow_requests import SlowRequestLog
from twisted_vllm.app.telemetry.tracing import TracingPart
from twisted_vllm.config.settings import Settings
from twisted_vllm.lifecycle import Lifecycle, RequestObserver


def make_parts(surroundings: Surroundings) -> tuple[TelemetryPart, ...]:
    """Return all parts, in the order in which they observe."""
    return (
        # the first to stop: the others get what it still has
        ContentsPart(surroundings),
        # before what may tell of something at the start
        Alerting(surroundings),
        ProcessMetrics(surroundings),
        RequestMetricsPart(surroundings),
        TracingPart(surroundings),
        OtlpMetricsPart(surroundings),
        SlowRequestLog(surroundings),
        SinksPart(surroundings),
    )


class Telemetry:
    """All parts of the telemetry: metrics, traces, sinks, alerts, prompts and answers.

    Attributes:
        parts: the parts, in the order in which they observe.
    """

    _log = Logger()

    def __init__(
        self,
        surroundings: Surroundings,
        settings: Settings,
        lifecycle: Lifecycle,
        observers: Sequence[RequestObserver],
        parts: Sequence[TelemetryPart] | None = None,
    ) -> None:
        """Create the parts and put the settings into effect.

        Args:
            surroundings: what the parts may observe.
            settings: the settings.
            lifecycle: notifies the observers of requests.
            observers: the observers of requests that are no part of the telemetry; they are told first.
            parts: the parts, in the order in which they observe; None makes all that there are.

        Raises:
            ConfigError: the settings cannot be used.
        """
        self._lifecycle = lifecycle
        self._observers = tuple(observers)
        self._events = surroundings.events
        self.parts = make_parts(surroundings) if parts is None else tuple(parts)
        self.prepare(settings)()

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Prepare other settings, in any thread; see `TelemetryPart.prepare`."""
        prepared = [part.prepare(settings) for part in self.parts]

        def apply() -> None:
            for each in prepared:
                each()
            observers = [observer for part in self.parts for observer in part.observers()]
            if self._events.consumers or self._events.selective:
                observers.append(self._events)
            first = [observer for part in self.parts for observer in part.first_observers()]
            self._lifecycle.reconfigure([*first, *self._observers, *observers])

        return apply

    def start(self) -> None:
        """Start all parts."""
        for part in self.parts:
            part.start()

    def stop(self) -> Deferred[None]:
        """Stop all parts; the Deferred fires when the last one has stopped."""
        waiting = [stopping.addErrback(self._failed) for part in self.parts if (stopping := part.stop()) is not None]
        return gatherResults(waiting).addCallback(lambda _: None)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("A part of the telemetry could not be stopped", failure)
