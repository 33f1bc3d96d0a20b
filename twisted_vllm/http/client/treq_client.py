"""treq's client without what treq does to requests and responses.

treq's HTTPClient shares one cookie jar among all users, follows redirects, asks for gzip and decodes it, parses the URL
anew and drops Content-Length. A pass-through must do none of that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IResponse

from twisted_vllm.http.client.agent import UpstreamAgent
from twisted_vllm.http.client.exchange import UpstreamExchange


class PassThroughClient(HTTPClient):
    """Sends requests as they are and gives responses as they come.

    Attributes:
        forward: sends an exchange to a configured server: `UpstreamAgent.forward`, or what comes before it.
    """

    def __init__(self, agent: UpstreamAgent, forward: Callable[[UpstreamExchange], None] | None = None) -> None:
        """Make the client.

        Args:
            agent: the agent.
            forward: sends an exchange to a configured server, if not the agent at once.
        """
        super().__init__(agent)
        self.forward = forward or agent.forward

    def request(  # type: ignore[override]  # the options that alter a request or a response are not offered
        self,
        method: str | bytes,
        url: str | bytes,
        *,
        headers: Headers | None = None,
        data: IBodyProducer | None = None,
        **refused: Any,
    ) -> Deferred[IResponse]:
        """Send a request to `url`; no option of treq's that would alter it is taken."""
        refused.pop("_stacklevel", None)  # where treq's get() and the like would lay a warning
        if refused:
            raise TypeError(f"a pass-through takes no {', '.join(sorted(refused))}")
        # those give the method as text
        method = method.encode("ascii") if isinstance(method, str) else method
        url = url.encode("ascii") if isinstance(url, str) else url
        return self._agent.request(method, url, headers, data)
