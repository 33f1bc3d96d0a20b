"""Prompts and answers for the traces and sinks that get the events of requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from twisted_vllm.app.telemetry.part import Surroundings, TelemetryPart
from twisted_vllm.config.settings import Settings
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.observability.contents.metrics import ContentsMetrics

if TYPE_CHECKING:
    from twisted_vllm.observability.contents.bodies_log import BodiesLog


class ContentsPart(TelemetryPart):
    """Keeps prompts and answers by ``passthrough.log_bodies``, models, teams and keys, while something wants them."""

    def __init__(self, surroundings: Surroundings) -> None:
        """Create it: nothing is kept yet."""
        self._surroundings = surroundings
        self._log: BodiesLog | None = None
        self._settings: Settings | None = None
        self._counted = ContentsMetrics()
        surroundings.metrics.add(self._counted)

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Return what uses other settings."""

        def apply() -> None:
            self._settings = settings
            if self._log is not None:
                _configure(self._log, settings)

        return apply

    def observers(self) -> Sequence[RequestObserver]:
        """Observe nothing. By now it is known whether anything gets events: if not, nothing is kept."""
        events, forwarder = self._surroundings.events, self._surroundings.forwarder
        if not (events.consumers or events.selective):
            forwarder.contents = None
            return ()
        if self._log is None:
            self._log = self._make_log()
        forwarder.contents = self._log
        # and it stays: there may be requests in flight
        events.render = self._log.render
        return ()

    def _make_log(self) -> BodiesLog:
        # few gateways need what this loads
        from twisted_vllm.observability.contents.bodies_log import BodiesLog

        log = BodiesLog(self._surroundings.redact, self._surroundings.forwarder.cooperate, self._counted)
        self._counted.used = lambda: log.memory.used
        assert self._settings is not None, "it was prepared"
        _configure(log, self._settings)
        return log

    def stop(self) -> Deferred[None] | None:
        """Hand over what is not handed over yet, before the others stop."""
        if self._log is not None:
            self._log.finish()
        return None


def _configure(log: BodiesLog, settings: Settings) -> None:
    log.reconfigure(
        settings.log_bodies,
        texts_off=settings.turn_off_message_logging,
        allows_no_log=not settings.global_disable_no_log_param,
    )
