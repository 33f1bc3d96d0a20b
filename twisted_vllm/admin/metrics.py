"""The gateway's metrics, for Prometheus."""

from __future__ import annotations

from twisted.web.iweb import IRequest

from twisted_vllm.admin.authorize import AdminAuthenticator
from twisted_vllm.admin.respond import send
from twisted_vllm.observability.metrics import Metrics


class MetricsEndpoint:
    """``GET /metrics``; nothing in it names a key, a user or a model."""

    def __init__(self, metrics: Metrics, gatekeeper: AdminAuthenticator | None) -> None:
        """Show metrics.

        Args:
            metrics: them.
            gatekeeper: lets administrators read them, and nobody else; None lets everybody.
        """
        self._metrics = metrics
        self._gatekeeper = gatekeeper

    def metrics(self, request: IRequest) -> bytes:
        """Answer ``GET /metrics``: the gateway's own metrics, as Prometheus' text or OpenMetrics."""
        if self._gatekeeper is not None:
            self._gatekeeper.administrator_of(request)
        accept = request.requestHeaders.getRawHeaders(b"accept", [b""])
        body, content_type = self._metrics.expose(b",".join(accept).decode("latin-1"))
        return send(request, 200, [(b"content-type", content_type.encode("ascii"))], body)
