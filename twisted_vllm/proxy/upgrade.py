"""Upgrades to another protocol, such as WebSocket: the request to the server, and the tunnel after its 101."""

from __future__ import annotations

from twisted_vllm.auth.credentials import SUBPROTOCOLS, without_keys
from twisted_vllm.errors import Draining
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.headers import HeaderList, RequestHead, ResponseHead, listed
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.http.tunnel import SwitchedResponse, Tunnel
from twisted_vllm.proxy.relay import Relay

#: the subprotocol that OpenAI's clients offer beside the key
REALTIME = b"realtime"


def upgrade_headers(head: RequestHead) -> HeaderList:
    """Return the headers that request from the server what of the client's upgrade is tunnelled, without its key."""
    headers = [(b"Connection", b"Upgrade"), (b"Upgrade", b", ".join(sorted(head.protocols)))]
    subprotocols = without_keys(head.first.get(SUBPROTOCOLS, b""))
    if subprotocols:
        headers.append((b"Sec-WebSocket-Protocol", subprotocols))
    return headers


class UpgradeRelay(Relay):
    """Joins client and server after the server's 101; any other response is relayed as usual."""

    _tunnel: Tunnel | None = None

    def cancel(self) -> None:
        """The client has disconnected, or its request failed: cut the tunnel unless it has ended."""
        if self._tunnel is None:
            super().cancel()
        elif not self._ended:
            self._ended = True
            self._request.context.outcome = "failed"
            self._tunnel.cut()

    def _begin_response(self, response: UpstreamResponse) -> None:
        if not isinstance(response, SwitchedResponse):
            super()._begin_response(response)
        elif self._request.site.draining:
            self._ended = True
            self._request.answer(Draining("The gateway is shutting down; send the request again.", retry_after=1))
        else:
            self._tunnel = response.tunnel
            self._response = None
            response.tunnel.join(self._request, acknowledged(self._request, response.head), self._tunnel_ended)

    def _tunnel_ended(self, outcome: str) -> None:
        self._ended = True
        self._request.context.outcome = outcome


def acknowledged(request: GatewayRequest, head: ResponseHead) -> ResponseHead:
    """Return the 101 for the client: as received, or with the subprotocol that was offered beside a key.

    A browser that offered subprotocols fails the WebSocket if the server selects none (Fetch, "WebSocket opening
    handshake"), and vLLM 0.32 selects none.
    """
    offered = request.head.first.get(SUBPROTOCOLS, b"")
    if without_keys(offered) == offered or REALTIME not in [entry.strip() for entry in offered.split(b",")]:
        return head
    if listed(head.headers, SUBPROTOCOLS):
        return head
    return ResponseHead(head.status, head.reason, [*head.headers, (b"Sec-WebSocket-Protocol", REALTIME)])
