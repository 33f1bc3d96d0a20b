"""What a finished request leaves in the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network

from twisted_vllm.gateway.forwarded import client_address
from twisted_vllm.gateway.resource import Forwarding
from twisted_vllm.observe.lines import iso_time
from twisted_vllm.observe.record import RequestRecord
from twisted_vllm.wire.request import GatewayRequest

#: characters of a path that stand in the log
ROUTE_LIMIT = 512


class Recorder:
    """Makes records of requests.

    Args:
        trusted_proxies: whose word is taken for the client's address.
        now: the time in Unix seconds.
    """

    def __init__(
        self, trusted_proxies: Sequence[IPv4Network | IPv6Network] = (), now: Callable[[], float] = time.time
    ) -> None:
        self._trusted_proxies = tuple(trusted_proxies)
        self._now = now

    def record(self, request: GatewayRequest, seconds: float) -> RequestRecord:
        """Return the record of `request`, which ended at `seconds` of the clock that it began by."""
        note = request.note
        route, model, server, outcome = request.path or b"", "", "", ""
        if isinstance(note, Forwarding):
            route = note.entry.target.path
            if note.admitted is not None:
                model = note.admitted.model
                server = note.admitted.server.name
            if note.relay is not None:
                outcome = note.relay.outcome
        principal = request.principal
        elapsed = seconds - request.started
        return RequestRecord(
            time=iso_time(self._now() - elapsed),
            request_id=request.request_id.decode("ascii"),
            client=client_address(request.channel.peer.host, request.head, self._trusted_proxies),
            key_name="" if principal is None else principal.name,
            key_hash="" if principal is None else principal.hash_prefix,
            method=request.method.decode("latin-1"),
            route=route[:ROUTE_LIMIT].decode("latin-1"),
            model=model,
            server=server,
            status=request.status,
            outcome=outcome or _outcome(request),
            error=request.error_code,
            bytes_in=request.body_received,
            bytes_out=request.sentLength,
            first_byte_ms=None if request.first_byte is None else _milliseconds(request.first_byte - request.started),
            total_ms=_milliseconds(elapsed),
        )


def _outcome(request: GatewayRequest) -> str:
    """Return how a request ended that no server was asked about."""
    if not request.finished:
        return "client_disconnected"
    if request.status >= 500:
        return "failed"
    return "refused" if request.error_code else "completed"


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
