"""The gateway's error responses, each with its HTTP status and code.

The body has OpenAI's shape, ``{"error": {"message", "type", "param", "code"}}``, with LiteLLM's types, and the header
``x-vllm-passthrough-error`` carries the code, so that a caller can distinguish the gateway's refusals from vLLM's own
errors. A message never names a key, a hash or an internal address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

import msgspec

Headers = list[tuple[bytes, bytes]]

ERROR_HEADER = b"x-vllm-passthrough-error"

#: seconds that clients wait at most before they send a request again: OpenAI's and Anthropic's SDKs take no longer
#: ``retry-after``
LONGEST_RETRY = 60

#: on every response of the gateway's own: no page of another origin may embed it, and no browser may take it for a
#: script (Fetch §3.6, §3.7)
PRIVATE_RESPONSE: Headers = [
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
]


class GatewayError(Exception):
    """An error response of the gateway.

    Attributes:
        status: the HTTP status code.
        code: the stable machine-readable code, also sent as ``x-vllm-passthrough-error``.
        type: Anthropic's error type, which is OpenAI's too.
        litellm_type: LiteLLM's type of the same error, which bodies in OpenAI's shape have; None for `type`.
        message: what is wrong and what to do about it, for the caller.
        param: the request parameter at fault, or None.
        retry_after: seconds to wait before a retry, or None.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "api_error"
    litellm_type: str | None = None

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after

    def body(self, clean: Callable[[str], str] = str, *, anthropic: bool = False) -> bytes:
        """Return the JSON body, UTF-8.

        Args:
            clean: removes what the client must not see of its own text, which may be a key in place of a name.
            anthropic: whether it has Anthropic's shape, with param and code in addition; else OpenAI's.
        """
        param = None if self.param is None else clean(self.param)
        kind = self.type if anthropic else self.litellm_type or self.type
        error = {"message": clean(self.message), "type": kind, "param": param, "code": self.code}
        return msgspec.json.encode({"type": "error", "error": error} if anthropic else {"error": error})

    @property
    def is_final(self) -> bool:
        """Whether the same request would be refused again within `LONGEST_RETRY`."""
        if self.status == 429:
            return self.retry_after is None or self.retry_after > LONGEST_RETRY
        return 400 <= self.status < 500 and self.status != 408

    def headers(self) -> Headers:
        """Return the headers of the response, without its framing."""
        headers: Headers = [
            (b"content-type", b"application/json"),
            (ERROR_HEADER, self.code.encode("ascii")),
            *PRIVATE_RESPONSE,
        ]
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self.retry_after is not None:
            headers.append((b"retry-after", b"%d" % self.retry_after))
        if self.is_final:
            # some clients repeat a 401 for minutes, and every 429; OpenAI's and Anthropic's SDKs obey this
            headers.append((b"x-should-retry", b"false"))
        return headers


class InvalidRequest(GatewayError):
    """The request is malformed or incomplete."""

    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class MalformedHttp(InvalidRequest):
    """The bytes are not valid HTTP (RFC 9112); the connection is closed after the response."""

    code = "malformed_http"


class ModelUndetermined(InvalidRequest):
    """A permission depends on the model, and the body does not name it clearly."""

    code = "model_undetermined"


class BodyTooComplex(ModelUndetermined):
    """A body has too many values, or is nested too deeply, to be read."""

    code = "body_too_complex"


class InvalidConfiguration(InvalidRequest):
    """The configuration was read again and cannot be used; the message has all problems. Nothing was changed."""

    code = "invalid_configuration"


class FieldNotAllowed(InvalidRequest):
    """A field of the body is forbidden to the key, or over its limit, or names a URL that the server must not fetch."""

    code = "field_not_allowed"


class MissingApiKey(GatewayError):
    """The request has no credential."""

    status = 401
    code = "missing_api_key"
    type = "authentication_error"
    litellm_type = "auth_error"


class InvalidApiKey(MissingApiKey):
    """The credential is unknown."""

    code = "invalid_api_key"
    litellm_type = "token_not_found_in_db"


class InvalidToken(InvalidApiKey):
    """The credential is a JSON Web Token that is not valid."""

    code = "invalid_token"


class UnverifiedToken(InvalidToken):
    """The credential is a JSON Web Token that was not verified yet."""


class CallerNotLookedUp(UnverifiedToken):
    """It must be looked up whether the user and teams of a caller exist.

    Attributes:
        caller: who it is, a `twisted_vllm.auth.token_claims.TokenCaller`.
    """

    def __init__(self, caller: object) -> None:
        super().__init__("The user or team of this caller could not be looked up now. Try again.")
        self.caller = caller


class TokenNotAllowed(GatewayError):
    """The token is valid, and its user, team or role is not let in."""

    status = 403
    code = "token_not_allowed"
    type = "permission_error"


class IssuerUnavailable(GatewayError):
    """The keys of the issuer of tokens could not be had, or the provider at which people sign in does not answer."""

    status = 503
    code = "issuer_unavailable"


class SignInFailed(GatewayError):
    """Signing in at an OpenID provider did not succeed, or its answer is not valid.

    Attributes:
        reason: what was wrong, for the operator's log: no code, token or secret, and nothing unread.
    """

    status = 403
    code = "sign_in_failed"
    type = "permission_error"

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ExpiredApiKey(MissingApiKey):
    """The key has expired."""

    code = "expired_api_key"
    litellm_type = "expired_key"


class BlockedApiKey(MissingApiKey):
    """An administrator blocked the key."""

    code = "blocked_api_key"


class ModelNotAllowed(GatewayError):
    """The key may not use this model.

    Args:
        level: whose models say so: ``key``, ``user``, ``team`` or ``org``.
    """

    status = 403
    code = "model_not_allowed"
    type = "permission_error"

    def __init__(self, message: str, *, param: str | None = None, level: str = "key") -> None:
        super().__init__(message, param=param)
        self.litellm_type = f"{level}_model_access_denied"


class RouteNotAllowed(GatewayError):
    """The key may not call this route."""

    status = 403
    code = "route_not_allowed"
    type = "permission_error"
    litellm_type = "auth_error"


#: what a client hears whose address is not served
ADDRESS_NOT_ALLOWED = (
    "This gateway does not serve your address. Its operator can add it to general_settings.allowed_ips."
)


class AddressNotAllowed(GatewayError):
    """The operator does not serve this client address."""

    status = 403
    code = "address_not_allowed"


class HostNotAllowed(GatewayError):
    """In open mode, ``Host`` does not name the gateway's own machine: a web page may have chosen the name."""

    status = 403
    code = "host_not_allowed"
    type = "permission_error"


class OriginNotAllowed(GatewayError):
    """In open mode, a web page of another origin sent the request."""

    status = 403
    code = "origin_not_allowed"
    type = "permission_error"


class ServerNotAllowed(GatewayError):
    """The caller may not choose the server of a request."""

    status = 403
    code = "server_not_allowed"
    type = "permission_error"


class EndUserBlocked(GatewayError):
    """An administrator blocked the end user that the caller names."""

    status = 403
    code = "end_user_blocked"
    type = "permission_error"


class RequestCut(GatewayError):
    """An administrator, or somebody whose request it is, ended it while it was in flight."""

    status = 403
    code = "request_cut"
    type = "permission_error"


class TooManyFailures(GatewayError):
    """Too many failed authentications from one address."""

    status = 429
    code = "too_many_failures"
    type = "rate_limit_error"

    @property
    def is_final(self) -> bool:
        """Always: valid keys are served, and waiting makes no key valid."""
        return True


class RateLimitExceeded(GatewayError):
    """A limit of requests, tokens or parallel requests is reached; `limit_headers` say which and for how long."""

    status = 429
    code = "rate_limit_exceeded"
    type = "rate_limit_error"
    litellm_type = "throttling_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        limit_headers: Headers | None = None,
    ) -> None:
        super().__init__(message, param=param, retry_after=retry_after)
        self.limit_headers = limit_headers or []

    def headers(self) -> Headers:
        """Return the headers of the response, without its framing."""
        return super().headers() + self.limit_headers


class TooManyBackgroundResponses(GatewayError):
    """The gateway follows as many background responses as it can, of this key or in all."""

    status = 429
    code = "too_many_background_responses"
    type = "rate_limit_error"


class TooManyReports(GatewayError):
    """So many reports of this key, its user or its team wait already that one more is refused."""

    status = 429
    code = "too_many_reports"
    type = "rate_limit_error"


class TooManyStreams(GatewayError):
    """So many pages of the console that update themselves are open that one more is refused."""

    status = 429
    code = "too_many_streams"
    type = "rate_limit_error"


class ForgedForm(GatewayError):
    """A form of the console came from another page, or from a session that is over."""

    status = 403
    code = "forged_form"
    type = "permission_error"


class BudgetExceeded(GatewayError):
    """The budget of this period is spent, or reserved by requests in flight."""

    status = 429
    code = "budget_exceeded"
    type = "rate_limit_error"
    litellm_type = "budget_exceeded"


class LimitsUnavailable(GatewayError):
    """The supervisor does not answer; or Redis, and the operator refuses limited requests without it."""

    status = 503
    code = "limits_unavailable"


class NotFound(GatewayError):
    """The gateway has no such route or record."""

    status = 404
    code = "not_found"
    type = "invalid_request_error"


class RouteNotFound(NotFound):
    """vLLM has no such route, as far as the gateway knows."""

    code = "route_not_found"


class ModelNotFound(NotFound):
    """No server is configured for this model."""

    code = "model_not_found"


class ResponseNotFound(NotFound):
    """No stored response has this id, or another key made it."""

    code = "response_not_found"


class ServerNotFound(NotFound):
    """The request names a server that is not configured, or that does not serve its model."""

    code = "server_not_found"


class MethodNotAllowed(GatewayError):
    """The route does not support this method."""

    status = 405
    code = "method_not_allowed"
    type = "invalid_request_error"


class RouteMethodNotAllowed(MethodNotAllowed):
    """vLLM has the route, but not for this method."""

    def __init__(self, message: str, methods: Iterable[bytes]) -> None:
        super().__init__(message)
        self.methods = tuple(methods)

    def headers(self) -> Headers:
        """Return the headers of the response, without its framing; ``Allow`` is required (RFC 9110 §15.5.6)."""
        return [*super().headers(), (b"allow", b", ".join(self.methods))]


class Conflict(GatewayError):
    """The record exists already."""

    status = 409
    code = "conflict"
    type = "invalid_request_error"


def in_mib(size: int) -> str:
    """Return a size in bytes for a message: in MiB, or in bytes if it is small."""
    return f"{size / 1_048_576:.1f}".removesuffix(".0") + " MiB" if size >= 104_858 else f"{size} bytes"


class BodyTooLarge(GatewayError):
    """The request's body is over the limit."""

    status = 413
    code = "body_too_large"
    type = "invalid_request_error"

    @classmethod
    def over(cls, setting: str, limit: int, size: int | None, why: str = "") -> BodyTooLarge:
        """Return the error for a body over a limit.

        Args:
            setting: the limit's name in ``passthrough.limits``.
            limit: its value, in bytes.
            size: the body's declared size; None if it is chunked.
            why: a sentence that says why the limit applies.
        """
        has = f"more than {in_mib(limit)}" if size is None else f"{in_mib(size)} ({size} bytes)"
        return cls(
            f"This request's body has {has}. {why}{' ' if why else ''}At most {in_mib(limit)} ({limit} bytes) are "
            f"allowed: send less, or ask the operator to raise passthrough.limits.{setting}."
        )


class UnsupportedMediaType(GatewayError):
    """The Content-Type of the body is not JSON."""

    status = 415
    code = "unsupported_media_type"
    type = "invalid_request_error"


class HeadTooLarge(GatewayError):
    """The request's head is over the limit."""

    status = 431
    code = "head_too_large"
    type = "invalid_request_error"


class RequestTimeout(GatewayError):
    """The client did not send its request in time."""

    status = 408
    code = "request_timeout"
    type = "invalid_request_error"


class UpstreamUnreachable(GatewayError):
    """No connection to the vLLM server could be made, or it closed before the response.

    Attributes:
        fault: what its checks found, as metrics name it; empty if they found nothing. Else ``__cause__`` says why.
    """

    status = 502
    code = "upstream_unreachable"
    fault: str = ""


class UpstreamProtocolError(GatewayError):
    """The vLLM server's response is not HTTP."""

    status = 502
    code = "upstream_protocol_error"


class UpstreamAnswerCut(UpstreamProtocolError):
    """The vLLM server's response ended in its midst: the connection was reset or closed."""


class NotAllServers(GatewayError):
    """An act of the operator went to several servers, and not all of them did it."""

    status = 502
    code = "not_all_servers"


class ReportTimeout(GatewayError):
    """A report took longer than the operator allows."""

    status = 504
    code = "report_timeout"


class UpstreamTimeout(GatewayError):
    """A timeout of the vLLM server expired."""

    status = 504
    code = "upstream_timeout"


class Draining(GatewayError):
    """The gateway is shutting down and accepts no new requests."""

    status = 503
    code = "draining"


class ReloadFailed(GatewayError):
    """The configuration was not read again by all processes of the gateway."""

    status = 503
    code = "reload_failed"


class ResponseNotLocated(GatewayError):
    """A stored response may be on a server that does not answer."""

    status = 503
    code = "response_not_located"


class TooManyConnections(GatewayError):
    """The limit of client connections is reached."""

    status = 503
    code = "too_many_connections"


class OutOfSockets(GatewayError):
    """The gateway has no open file or port left for a connection to the vLLM server."""

    status = 503
    code = "out_of_sockets"


class FormSpoolFull(GatewayError):
    """The temporary files of large forms are full, in number or size, or cannot be written."""

    status = 503
    code = "form_spool_full"


class NoRoomForBody(GatewayError):
    """The bodies of other requests, or of other requests of the key, use the memory that bodies may use."""

    status = 503
    code = "no_room_for_body"


class ServerBusy(GatewayError):
    """The server is at its concurrency limit, and its queue is full or took too long."""

    status = 503
    code = "server_busy"


class NoHealthyUpstream(GatewayError):
    """No server of the model gets requests at present: they failed, or sleep."""

    status = 503
    code = "no_healthy_upstream"


class LedgerUnavailable(GatewayError):
    """Usage cannot be recorded, and the operator refuses unrecorded requests."""

    status = 503
    code = "ledger_unavailable"


class StoreUnavailable(GatewayError):
    """The database could not be read or written."""

    status = 503
    code = "database_unavailable"


class ReportsBusy(GatewayError):
    """So many reports wait already that one more is refused."""

    status = 503
    code = "reports_busy"


#: codes of 5xx with which the gateway turns a request away because it is full or stops: it does what it should
TURNED_AWAY = frozenset(
    error.code
    for error in (Draining, TooManyConnections, OutOfSockets, FormSpoolFull, NoRoomForBody, ServerBusy, ReportsBusy)
)
