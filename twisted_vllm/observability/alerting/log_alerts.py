"""Events of the log that are alerts: those that `AlertMark` marks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.threadable import isInIOThread
from zope.interface import implementer

from twisted_vllm.observability.alerting.alerts import HIGH, LOW, MEDIUM, Alert

_LEVELS = {LogLevel.critical: HIGH, LogLevel.error: HIGH, LogLevel.warn: MEDIUM, LogLevel.info: LOW}


@implementer(ILogObserver)
class LogAlerts:
    """Makes alerts of marked events, in any thread; hands them over in the reactor's."""

    def __init__(self, reactor: Any, redact: Callable[[str], str], tell: Callable[[Alert], None]) -> None:
        """Set up.

        Args:
            reactor: a provider of ``IReactorFromThreads``.
            redact: removes secrets from text.
            tell: gets the alerts, in the reactor's thread.
        """
        self._reactor = reactor
        self._redact = redact
        self._tell = tell

    def __call__(self, event: LogEvent) -> None:
        """Take an event. Those at level debug only repeat earlier alerts."""
        kind = event.get("alert")
        if kind is None:
            return
        level = _LEVELS.get(event.get("log_level", LogLevel.info))
        if level is None:
            return
        alert = Alert(kind, str(event.get("alert_about", "")), self._redact(formatEvent(event)), level)
        if isInIOThread():
            self._tell(alert)
        else:
            self._reactor.callFromThread(self._tell, alert)
