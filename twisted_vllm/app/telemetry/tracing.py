"""Switches traces on and off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from twisted_vllm.app.telemetry.otlp_receivers import Receiver, trace_receivers
from twisted_vllm.app.telemetry.part import Surroundings, TelemetryPart
from twisted_vllm.config.settings import Settings
from twisted_vllm.config.tracing import TracingSettings
from twisted_vllm.lifecycle import RequestObserver


class TracingPart(TelemetryPart):
    """Traces of requests. Their modules are loaded once the settings ask for traces."""

    def __init__(self, surroundings: Surroundings) -> None:
        """Set up; nothing is traced before settings say so."""
        self._surroundings = surroundings
        # `traces.Traces`, once there are any
        self._traces: Any = None
        self._is_started = False

    def first_observers(self) -> Sequence[RequestObserver]:
        """Begin traces of refused requests before the log writes their lines."""
        return () if self._traces is None else self._traces.observers()

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Read the files of the destinations; return what switches traces on, over or off."""
        tracing = settings.tracing
        receivers = trace_receivers(tracing, self._surroundings.directory)
        if not tracing.active and self._traces is None:
            return lambda: None
        from twisted_vllm.app.telemetry.traces import Traces

        def apply() -> None:
            if self._traces is None:
                self._traces = Traces(self._surroundings)
                if self._is_started:
                    self._traces.start()
            self._apply(tracing, receivers)

        return apply

    def start(self) -> None:
        """Start to export."""
        self._is_started = True
        if self._traces is not None:
            self._traces.start()

    def stop(self) -> Deferred[None] | None:
        """Export what waits."""
        self._is_started = False
        stopping: Deferred[None] | None = None if self._traces is None else self._traces.stop()
        return stopping

    def _apply(self, tracing: TracingSettings, receivers: Mapping[str, Receiver]) -> None:
        self._traces.apply(tracing, receivers)
        if not tracing.active:
            self._traces = None
