"""treq's client without its changes to requests and responses.

treq's HTTPClient shares one cookie jar among all users, follows redirects, requests gzip and decodes it, parses the URL
again and drops Content-Length. A pass-through must do none of this.
"""

from __future__ import annotations

from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer

from twisted_vllm.config.settings import Server
from twisted_vllm.http.client.interfaces import NO_PROTOCOLS, Again, Ended, Informational, IUpstreamAgent, Sent
from twisted_vllm.http.client.response import UpstreamResponse


class PassThroughClient(HTTPClient):
    """Sends requests and returns responses unchanged."""

    _agent: IUpstreamAgent

    def __init__(self, agent: IUpstreamAgent) -> None:
        super().__init__(agent)

    def request(  # type: ignore[override]  # treq's options that alter a request or a response are not offered
        self,
        method: str | bytes,
        url: str | bytes,
        *,
        headers: Headers | None = None,
        data: bytes | IBodyProducer | None = None,
        server: Server | None = None,
        protocols: frozenset[bytes] = NO_PROTOCOLS,
        informational: Informational | None = None,
        on_sent: Sent | None = None,
        again: Again | None = None,
        on_ended: Ended | None = None,
        **refused: Any,
    ) -> Deferred[UpstreamResponse]:
        """Send a request; see `IUpstreamAgent`.

        Args:
            data: the body: bytes, or a producer that streams it.
            refused: treq options that would change the request or the response.

        Raises:
            TypeError: one of those was passed.
        """
        if refused:
            refused.pop("_stacklevel", None)  # of treq's get() and the like
            if refused:
                raise TypeError(f"a pass-through takes no {', '.join(sorted(refused))}")
        if isinstance(method, str):
            method = method.encode("ascii")
        if isinstance(url, str):
            url = url.encode("ascii")
        return self._agent.request(
            method,
            url,
            headers,
            data,
            server=server,
            protocols=protocols,
            informational=informational,
            on_sent=on_sent,
            again=again,
            on_ended=on_ended,
        )
