"""Starts and stops the sinks. Their modules are loaded once the settings name a sink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from twisted_vllm.app.telemetry.part import Surroundings, TelemetryPart
from twisted_vllm.config.settings import Settings


class SinksPart(TelemetryPart):
    """The sinks of the settings."""

    def __init__(self, surroundings: Surroundings) -> None:
        """Set up; there are no sinks before settings name some."""
        self._surroundings = surroundings
        self._running: Any = None
        self._is_started = False

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Open what the sinks need; return what puts them in place of the present ones."""
        running = self._running
        if running is None:
            if not settings.all_sinks:
                return lambda: None
            # a megabyte, which a gateway without sinks does not need
            from twisted_vllm.app.telemetry.running_sinks import RunningSinks

            running = RunningSinks(self._surroundings)
        apply: Callable[[], None] = running.prepare(settings)

        def use() -> None:
            if self._running is None:
                self._running = running
                if self._is_started:
                    running.start()
            apply()
            if not settings.all_sinks:
                # as a gateway that never had any
                self._running = None

        return use

    def start(self) -> None:
        """Start to deliver."""
        self._is_started = True
        if self._running is not None:
            self._running.start()

    def stop(self) -> Deferred[None] | None:
        """Deliver what waits."""
        self._is_started = False
        stopping: Deferred[None] | None = None if self._running is None else self._running.stop()
        return stopping
