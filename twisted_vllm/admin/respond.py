"""How the admin API reads a request and answers it."""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed

from twisted_vllm.errors import GatewayError, InvalidRequest, MethodNotAllowed, NotFound, StoreUnavailable

T = TypeVar("T")

#: seconds that a client waits for the store; longer than the store's own limits, so that those speak first
STORE_SECONDS = 30

_log = Logger()


def send_json(request: IRequest, value: object, status: int = 200) -> bytes:
    """Set the status and headers of a JSON answer and return its body."""
    return send(request, status, [(b"content-type", b"application/json")], msgspec.json.encode(value))


def send_error(request: IRequest, error: GatewayError) -> bytes:
    """Set the status and headers of a refusal and return its body."""
    return send(request, error.status, error.headers(), error.body())


def send(request: IRequest, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    """Set the status and headers of an answer and return its body."""
    request.setResponseCode(status)
    for name, value in headers:
        request.setHeader(name, value)
    # Answers hold keys, and health changes: no cache may keep either.
    request.setHeader(b"cache-control", b"no-store")
    request.setHeader(b"content-length", b"%d" % len(body))
    return body


def refuse(request: IRequest, failure: Failure) -> bytes:
    """Set the status and headers of the refusal that a failure becomes, and return its body."""
    if isinstance(failure.value, WerkzeugMethodNotAllowed):
        # RFC 9110 §15.5.6: a 405 says which methods there are.
        request.setHeader(b"allow", ", ".join(sorted(failure.value.valid_methods or ())).encode("ascii"))
    return send_error(request, _error_of(failure))


def _error_of(failure: Failure) -> GatewayError:
    """Return what the client sees; what was not foreseen is logged, and the client sees nothing of it."""
    error = failure.value
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, WerkzeugMethodNotAllowed):
        methods = sorted(set(error.valid_methods or ()) - {"HEAD"})
        return MethodNotAllowed(f"This route takes {' and '.join(methods)}.")
    if isinstance(error, HTTPException) and (error.code or 500) < 500:
        return NotFound("The gateway has no such route. vLLM's routes are below /vllm; GET / lists the gateway's own.")
    _log.failure("an admin request failed", failure=failure)
    return GatewayError("The gateway failed to answer. Its log says why.")


def read_object(request: IRequest) -> dict[str, Any]:
    """Return the JSON object that is the request's body; an empty body is an empty object.

    Raises:
        InvalidRequest: it is not a JSON object.
    """
    content = request.content
    body: bytes = b"" if content is None else content.read()
    if not body.strip():
        return {}
    try:
        found = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        # msgspec's own error and UnicodeDecodeError are ValueErrors. Their words would tell the caller little more.
        raise InvalidRequest("The body is not valid JSON.") from None
    if not isinstance(found, dict):
        raise InvalidRequest("The body must be a JSON object, as in {}.")
    return found


def read_query(request: IRequest) -> dict[str, str]:
    """Return the parameters of the query.

    Raises:
        InvalidRequest: one is given more than once or has a NUL, or there are too many.
    """
    query = request.uri.partition(b"?")[2]
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError:
        raise InvalidRequest("The query is not valid: it must be percent-encoded UTF-8.") from None
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidRequest("The query gives a parameter more than once.")
    for name, value in found.items():
        if "\0" in value:
            # PostgreSQL takes none, not even to compare
            raise InvalidRequest(f"`{name}` has a NUL character, which nothing has that is kept.", param=name)
    return found


def shielded(work: Deferred[T], clock: IReactorTime) -> Deferred[T]:
    """Return a Deferred that follows `work`, and can be cancelled without touching it.

    A client that goes away cancels its request. What it began must still end: the store and the index may not differ.

    Args:
        work: what to follow; a failure that nobody waits for any more is logged.
        clock: measures how long the client waits, :data:`STORE_SECONDS` at most.
    """
    waiting: Deferred[T] = Deferred()

    def tell(result: T | Failure) -> None:
        if waiting.called:
            if isinstance(result, Failure) and not result.check(GatewayError):
                _log.failure("an admin request failed after its client had gone", failure=result)
        elif isinstance(result, Failure):
            waiting.errback(result)
        else:
            waiting.callback(result)

    def too_slow(_cancelled: object, _seconds: float) -> T:
        raise StoreUnavailable(
            "The database takes too long to answer. What was asked may still be done: look before trying again.",
            retry_after=STORE_SECONDS,
        )

    work.addBoth(tell)
    waiting.addTimeout(STORE_SECONDS, clock, onTimeoutCancel=too_slow)
    return waiting
