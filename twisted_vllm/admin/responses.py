"""Sends JSON and errors, and turns failures into errors."""

from __future__ import annotations

from typing import Any, cast

import msgspec
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed

from twisted_vllm.context import RequestContext
from twisted_vllm.errors import PRIVATE_RESPONSE, GatewayError, MethodNotAllowed, NotFound
from twisted_vllm.mounts import route_below_mount

_log = Logger()


def send(request: IRequest, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    """Set the status and headers of a response and return its body."""
    request.setResponseCode(status)
    for name, value in headers:
        request.setHeader(name, value)
    for name, value in PRIVATE_RESPONSE:
        request.setHeader(name, value)
    # Responses contain keys, and health changes: no cache may store them.
    request.setHeader(b"cache-control", b"no-store")
    request.setHeader(b"content-length", b"%d" % len(body))
    return body


def send_json(request: IRequest, value: object, status: int = 200) -> bytes:
    """Set the status and headers of a JSON response and return its body."""
    return send(request, status, [(b"content-type", b"application/json")], msgspec.json.encode(value))


def send_error(request: IRequest, error: GatewayError) -> bytes:
    """Set the status and headers of an error response and return its body."""
    return send(request, error.status, error.headers(), error.body(_context_of(request).without_secrets))


def send_failure(request: IRequest, failure: Failure) -> bytes:
    """Set the status and headers of the error response for a failure and return its body."""
    if isinstance(failure.value, WerkzeugMethodNotAllowed):
        # RFC 9110, section 15.5.6: a 405 response lists the methods that are allowed.
        request.setHeader(b"allow", ", ".join(sorted(failure.value.valid_methods or ())).encode("ascii"))
    return send_error(request, error_of(failure, request))


def _context_of(request: IRequest) -> RequestContext:
    # the type is not IRequest's: the gateway's own request has a context
    context: RequestContext = cast(Any, request).context
    return context


def error_of(failure: Failure, request: IRequest) -> GatewayError:
    """Return the error that the client sees. An unexpected failure is logged, and the client sees nothing of it."""
    error = failure.value
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, WerkzeugMethodNotAllowed):
        methods = sorted(set(error.valid_methods or ()) - {"HEAD"})
        return MethodNotAllowed(f"This route takes {' and '.join(methods)}.")
    if isinstance(error, HTTPException) and (error.code or 500) < 500:
        return _no_route(cast(Any, request).path)
    _log.failure("an admin request failed", failure=failure, log_secrets=_context_of(request).secrets)
    return GatewayError("The gateway failed to answer. Its log says why.")


def _no_route(path: bytes) -> NotFound:
    below = route_below_mount(path)
    if below is not None:
        return NotFound(f"The gateway has no such route. vLLM's route of this kind is {below}.")
    return NotFound(
        "The gateway has no such route. vLLM's are below /vllm, and its inference routes also at the root; GET / lists "
        "the gateway's own."
    )
