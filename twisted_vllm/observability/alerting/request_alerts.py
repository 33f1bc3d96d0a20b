"""Alerts about finished requests: those that failed, and those that took long."""

from __future__ import annotations

from collections.abc import Callable

from twisted_vllm.config.alert_types import FAILURES, TOO_SLOW
from twisted_vllm.context import RequestContext
from twisted_vllm.errors import Draining
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.observability.alerting.alerts import HIGH, LOW, Alert
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.request_event import FAULTS


class RequestAlerts(RequestObserver):
    """Tells of requests for models that failed or took long."""

    def __init__(self, text: ClientText, threshold: float, tell: Callable[[Alert], None]) -> None:
        """Set up.

        Args:
            text: removes secrets from text of clients.
            threshold: how long a request takes that is told, in seconds.
            tell: gets the alerts.
        """
        self._text = text
        self._threshold = threshold
        self._tell = tell

    def finished(self, context: RequestContext) -> None:
        """Look at a request."""
        outcome = context.outcome
        if outcome in FAULTS or (context.status >= 500 and outcome == "completed" and context.sent):
            if context.authorization is not None and context.error_code != Draining.code:
                reason = context.error_code or (f"status {context.status}" if context.status >= 400 else outcome)
                self._tell_of(context, FAILURES, HIGH, f"failed a request: {reason}")
        elif context.ended - context.started >= self._threshold and context.sent and not context.head.protocols:
            self._tell_of(context, TOO_SLOW, LOW, f"took {context.duration:.0f} s for a request")

    def _tell_of(self, context: RequestContext, kind: str, level: str, what: str) -> None:
        # a request that no server took was meant for one all the same
        server = context.server if context.sent else None
        about = context.group if server is None else server.name
        key = "none" if context.principal is None else context.principal.name
        text = (
            f"{about or 'the default server'} {what} (model {self._text.model(context) or 'unnamed'}, "
            f"request {self._text.request_id(context)}, key {key})"
        )
        self._tell(Alert(kind, about, text, level))
