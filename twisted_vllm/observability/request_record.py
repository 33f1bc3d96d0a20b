"""The log record of a request."""

from __future__ import annotations

import msgspec


class RequestRecord(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One finished request. In JSON, fields with their default value are omitted.

    Attributes:
        time: when it began, ISO 8601 in UTC with milliseconds.
        request_id: the ``x-request-id`` that the client and vLLM saw.
        client: the client's address.
        key_name: the key's alias or ``sk-...abcd``, ``master``, ``anonymous``, or empty if it is unknown.
        key_hash: the first digits of the key's SHA-256, or empty.
        method: the HTTP method.
        route: the route of vLLM or of the gateway's own that it asked for, as ``/key/{key}/regenerate``; the path
            without its query if there is no such route.
        model: the model that the body names; empty if it names none or was not read.
        server: the name of the vLLM server; empty without one.
        status: the status sent to the client; 0 without one.
        outcome: ``completed``, ``refused``, ``client_disconnected``, ``upstream_failed``, ``upstream_error``,
            ``revoked``, ``cut`` or ``failed``.
        error: the gateway's own error code, or empty.
        bytes_in: received bytes of the request's body; for a tunnel, the client's bytes.
        bytes_out: sent bytes of the response's body; for a tunnel, the server's bytes.
        first_byte_ms: from the request's head to the first byte of the response, in milliseconds; ``None`` without one.
        total_ms: from the request's head to its end, milliseconds.
        queued_ms: how long it waited for a server that had its ``max_concurrent_requests`` in flight, in milliseconds;
            ``None`` if it did not.
        repeated_as: the ``x-request-id`` that vLLM saw of its last attempt; empty if it was sent once.
        attempts: the attempts that failed before it, each a server and a reason; empty if there was none.
        fallback: the model that was asked in place of the one that the body names; empty if none was.
        trace_id: the id of its trace, 32 hex digits; empty if it is not traced.
    """

    time: str
    request_id: str
    client: str
    key_name: str
    key_hash: str
    method: str
    route: str
    model: str
    server: str
    status: int
    outcome: str
    error: str
    bytes_in: int
    bytes_out: int
    first_byte_ms: float | None
    total_ms: float
    queued_ms: float | None = None
    repeated_as: str = ""
    attempts: str = ""
    fallback: str = ""
    trace_id: str = ""
