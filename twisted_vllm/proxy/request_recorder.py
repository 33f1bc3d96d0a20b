"""What a finished request leaves in the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network

from twisted_vllm.errors import Draining
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.observability.logging.lines import iso_time
from twisted_vllm.observability.logging.redaction import Redactor
from twisted_vllm.observability.request_record import RequestRecord
from twisted_vllm.proxy.forwarded import address_of
from twisted_vllm.proxy.resource import RequestContext

#: characters of a path, or of a model's name, that stand in the log
TEXT_LIMIT = 512
#: characters that are looked at for it: a secret that is cut through would not be recognised
READ_LIMIT = 1024


class RequestRecorder:
    """Makes records of requests.

    Args:
        trusted_proxies: whose word is taken for the client's address.
        redact: takes secrets out of what a client wrote: a key in a path, or in the place of a model's name.
        now: the time in Unix seconds.
    """

    def __init__(
        self,
        trusted_proxies: Sequence[IPv4Network | IPv6Network] = (),
        redact: Callable[[str], str] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._trusted_proxies = tuple(trusted_proxies)
        self._now = now
        self._redact = redact = redact or Redactor()
        # the same few paths and models come again and again
        self._clean = lru_cache(maxsize=1024)(lambda text: redact(text[:READ_LIMIT])[:TEXT_LIMIT])

    def record(self, request: GatewayRequest, seconds: float) -> RequestRecord:
        """Return the record of `request`, which ended at `seconds` of the clock that it began by."""
        note = request.note
        model = server = outcome = ""
        queued = None
        if not isinstance(note, RequestContext):
            route = _own_route(request)
        else:
            route = note.entry.target.path
            model = note.model
            server = note.server
            if note.relay is not None:
                outcome = note.relay.outcome
                queued = note.relay.queued
        if not outcome or (outcome == "client_disconnected" and request.finished):
            outcome = _outcome(request)
        error = request.error_code
        if outcome == "client_disconnected" and request.channel.site.aborted:
            # it is the gateway that left
            outcome, error = "failed", Draining.code
        if request.revoked:
            outcome = "revoked"
        principal = request.principal
        elapsed = seconds - request.started
        request_id = request.request_id.decode("ascii")
        client = address_of(request, self._trusted_proxies)
        first_byte = request.first_byte
        return RequestRecord(
            time=iso_time(self._now() - elapsed),
            request_id=self._redact(request_id) if b"x-request-id" in request.head else request_id,
            client=client,
            key_name="" if principal is None else principal.name,
            key_hash="" if principal is None else principal.hash_prefix,
            method=request.method.decode("latin-1"),
            route=self._clean(route.decode("latin-1")),
            model=self._clean(model) if model else "",
            server=server,
            status=request.status,
            outcome=outcome,
            error=error,
            bytes_in=request.body_received,
            bytes_out=request.sentLength,
            first_byte_ms=None if first_byte is None else round((first_byte - request.started) * 1000, 3),
            total_ms=round(elapsed * 1000, 3),
            queued_ms=None if queued is None else round(queued * 1000, 3),
        )


def _own_route(request: GatewayRequest) -> bytes:
    """Return the path as it came; of a target that is no path, nothing: it may hold a password."""
    path: bytes = request.uri.partition(b"?")[0]
    return path if path.startswith(b"/") else b""


def _outcome(request: GatewayRequest) -> str:
    """Return how a request ended that no server was asked about, or whose answer was not the server's."""
    if not request.finished:
        return "client_disconnected"
    if request.status >= 500 and request.error_code != Draining.code:
        return "failed"
    return "refused" if request.error_code else "completed"
