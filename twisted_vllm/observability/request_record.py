"""The log record of a request."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import msgspec

from twisted_vllm.context import RequestContext

#: characters of a path, or of a model's name, to log
TEXT_LIMIT = 512
#: characters to search for secrets: a secret that is cut would not be recognised
READ_LIMIT = 1024
#: paths and names of models that are remembered, because they repeat
MAX_TEXTS = 1024


class RequestRecord(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One finished request. In JSON, fields with their default value are omitted.

    Attributes:
        time: when it began, ISO 8601 in UTC with milliseconds.
        request_id: the ``x-request-id`` that the client and vLLM saw.
        client: the client's address.
        key_name: the key's alias or ``sk-...abcd``, ``master``, ``anonymous``, or empty if it is unknown.
        key_hash: the first digits of the key's SHA-256, or empty.
        method: the HTTP method.
        route: the server's path without its query, or the gateway's own path.
        model: the model that the body names; empty if it names none or was not read.
        server: the name of the vLLM server; empty without one.
        status: the status sent to the client; 0 without one.
        outcome: ``completed``, ``refused``, ``client_disconnected``, ``upstream_failed``, ``upstream_error``,
            ``revoked`` or ``failed``.
        error: the gateway's own error code, or empty.
        bytes_in: received bytes of the request's body; for a tunnel, the client's bytes.
        bytes_out: sent bytes of the response's body; for a tunnel, the server's bytes.
        first_byte_ms: from the request's head to the first byte of the response, in milliseconds; ``None`` without one.
        total_ms: from the request's head to its end, milliseconds.
        queued_ms: how long it waited for a server that had its ``max_concurrent_requests`` in flight, in milliseconds;
            ``None`` if it did not.
        repeated_as: the ``x-request-id`` that vLLM saw of its second attempt; empty if it was sent once.
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


class ClientText:
    """Removes secrets from client-supplied text, such as a key in a path or in place of a model's name."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._redact = redact
        self._clean = lru_cache(maxsize=MAX_TEXTS)(lambda text: redact(text)[:TEXT_LIMIT])

    def clean(self, text: str) -> str:
        """Return a text without secrets, cut to `TEXT_LIMIT` characters."""
        return self._clean(text[:READ_LIMIT])

    def request_id(self, context: RequestContext) -> str:
        """Return the id of a request; a client's id without secrets."""
        request_id = context.request_id.decode("ascii")
        return self._redact(request_id) if b"x-request-id" in context.head.first else request_id


def route_of(context: RequestContext) -> bytes:
    """Return the server's path, or the gateway's own path; nothing of a target that is not a path.

    Such a target may contain a password (``http://user:password@host``).
    """
    if context.authorization is not None:
        return context.authorization.path
    path = context.head.target.partition(b"?")[0]
    return path if path.startswith(b"/") else b""
