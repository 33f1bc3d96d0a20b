"""Requests that the gateway itself sends to a server."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from twisted_vllm.config.settings import Server
from twisted_vllm.http.client.raw_headers import RawHeaders
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.client.treq_client import PassThroughClient


def get_json(client: PassThroughClient, server: Server, path: bytes) -> Deferred[UpstreamResponse]:
    """Ask a server for JSON, with its own key.

    Args:
        client: sends the request.
        server: the server.
        path: the path below its base path.

    Returns:
        The response, as from `PassThroughClient.request`.
    """
    pairs = [(b"Host", server.host_header), (b"Accept", b"application/json")]
    if server.api_key is not None:
        pairs.append((b"Authorization", b"Bearer " + server.api_key.reveal().encode()))
    headers = RawHeaders.from_pairs(pairs)
    return client.request(b"GET", server.url + path, headers=headers, server=server, again=lambda: headers)
