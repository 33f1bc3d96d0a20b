"""treq's client without what treq does to requests and responses.

treq's HTTPClient shares one cookie jar among all users, follows redirects, asks for gzip and decodes it, parses the URL
anew and drops Content-Length. A pass-through must do none of that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IResponse

from twisted_vllm.config.settings import Server
from twisted_vllm.wire.agent import UpstreamAgent
from twisted_vllm.wire.exchange import Informational
from twisted_vllm.wire.response import UpstreamResponse


class PassThroughClient(HTTPClient):
    """Sends requests as they are and gives responses as they come."""

    def __init__(self, agent: UpstreamAgent) -> None:
        super().__init__(agent)
        self.forward_over = agent.forward

    def request(  # type: ignore[override]  # the options that alter a request or a response are not offered
        self,
        method: bytes,
        url: bytes,
        *,
        headers: Headers | None = None,
        data: IBodyProducer | None = None,
        **refused: Any,
    ) -> Deferred[IResponse]:
        """Send a request to `url`; no option of treq's that would alter it is taken."""
        if refused:
            raise TypeError(f"a pass-through takes no {', '.join(sorted(refused))}")
        return self._agent.request(method, url, headers, data)

    def forward(
        self,
        server: Server,
        method: bytes,
        target: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes | IBodyProducer | None = None,
        informational: Informational | None = None,
    ) -> Deferred[UpstreamResponse]:
        """Send a request to a configured server; see `UpstreamAgent.forward`."""
        return self.forward_over(server, method, target, headers, body, informational)
