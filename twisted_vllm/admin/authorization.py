"""Authenticates and authorizes the callers of the admin API."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.web.iweb import IRequest

from twisted_vllm.admin.access import Access, check_access
from twisted_vllm.admin.self_service import SelfService
from twisted_vllm.auth.authenticator import Authenticator, hash_key
from twisted_vllm.auth.change_limits import ChangeLimits
from twisted_vllm.auth.credentials import AUTHORIZATION, credential_of
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.records import HASH_PREFIX_LENGTH, Principal
from twisted_vllm.auth.roles import reads_everything
from twisted_vllm.auth.sessions import Session, is_ticket
from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.auth.token_index import TEAM_HEADER
from twisted_vllm.auth.uncounted_requests import UncountedRequests
from twisted_vllm.errors import (
    CallerNotLookedUp,
    GatewayError,
    InvalidApiKey,
    MissingApiKey,
    RouteNotAllowed,
    StoreUnavailable,
    TokenNotAllowed,
)
from twisted_vllm.http.headers import CREDENTIAL_HEADERS

#: finds out about a caller who is about to be refused, as `Identifier.before_refusal`
BeforeRefusal = Callable[[Mapping[bytes, bytes], GatewayError, str], Deferred[None] | None]

#: finds out whether the session of a key is over, as `Identifier.before_session_ends`
BeforeSessionEnds = Callable[[str, GatewayError, str], Deferred[None] | None]

#: the headers that say who calls
_DECISIVE = (*CREDENTIAL_HEADERS, TEAM_HEADER)

_TOKEN = re.compile(r"[0-9a-fA-F]{64}")


def token_of(key_or_token: str) -> str:
    """Return the token (SHA-256, in hex) of a key. A token stays as it is: no key looks like one."""
    return key_or_token.lower() if _TOKEN.fullmatch(key_or_token) else hash_key(key_or_token)


def prefix_of(identity: str) -> str:
    """Return the hash prefix of a key or its hash, which is told in place of a key; other ids as they are."""
    token = token_of(identity)
    is_key = identity.startswith("sk-") or token == identity.lower()
    return token[:HASH_PREFIX_LENGTH] if is_key else identity


def check_sees_user(principal: Principal, user_id: str) -> None:
    """Check that a caller may see a user: administrators and viewers see all, a virtual key its own.

    Raises:
        RouteNotAllowed: it may not.
    """
    if not reads_everything(principal) and user_id != principal.user_id:
        raise RouteNotAllowed("A virtual key may see its own user only; the master key sees every user.")


class AdminAuthenticator:
    """Authenticates admin requests and sets ``request.principal`` for the request log."""

    def __init__(
        self,
        authenticator: Authenticator,
        index: KeyIndex,
        now: Callable[[], datetime],
        client_of: Callable[[IRequest], str],
        throttle: AuthenticationThrottle,
        uncounted: UncountedRequests,
        changes: ChangeLimits,
        settings: SelfService,
        before_refusal: BeforeRefusal | None = None,
        before_session_ends: BeforeSessionEnds | None = None,
    ) -> None:
        """Use the gateway's authenticator.

        Args:
            authenticator: knows the master key and the virtual keys.
            index: the virtual keys, with the former values of regenerated ones.
            now: returns the current time, with a time zone.
            client_of: returns the address that a request comes from.
            throttle: limits failed attempts per address.
            uncounted: limits what a virtual key reads.
            changes: limits what people change for themselves.
            settings: what people may do for themselves.
            before_refusal: finds out about a caller who is about to be refused; None refuses at once.
            before_session_ends: the same of a session of the console.
        """
        self._authenticator = authenticator
        self._index = index
        self._now = now
        self.client_of = client_of
        self._throttle = throttle
        self._uncounted = uncounted
        self._changes = changes
        self.settings = settings
        self._before_refusal = before_refusal
        self._before_session_ends = before_session_ends

    async def find_out(self, request: IRequest) -> None:
        """Wait until all is known of a request's caller that can be found out; whatever is not known is no error.

        After that the other methods decide for good.
        """
        try:
            self._authenticate(request, self._now().timestamp())
        except GatewayError as error:
            waiting = self._begin_to_find_out(request, error)
            if waiting is not None:
                await waiting

    def _begin_to_find_out(self, request: IRequest, error: GatewayError) -> Deferred[None] | None:
        session, address = session_of(request), self.client_of(request)
        if session is not None:
            return (
                None if self._before_session_ends is None else self._before_session_ends(session.token, error, address)
            )
        return (
            None if self._before_refusal is None else self._before_refusal(_credential_headers(request), error, address)
        )

    def _authenticate(self, request: IRequest, now: float) -> Principal:
        session = session_of(request)
        if session is not None:
            return self._authenticator.authenticate_session(session, now)
        headers = _credential_headers(request)
        credential = credential_of(headers)
        if credential is not None and is_ticket(credential) and not self._authenticator.is_open:
            raise InvalidApiKey("A ticket of the console is for vLLM's routes only.")
        return self._authenticator.authenticate(headers, now)

    async def principal_of(self, request: IRequest, *, again: bool = False) -> Principal:
        """Return the principal of a request.

        Args:
            request: the request.
            again: whether it was asked for before: then the request is counted already.

        Raises:
            MissingApiKey, InvalidApiKey, ExpiredApiKey, BlockedApiKey, TooManyFailures: as in the pass-through.
            RateLimitExceeded: the key has read too often in this minute.
        """
        now = self._now().timestamp()
        try:
            principal = self._authenticate(request, now)
        except CallerNotLookedUp:
            # its session is not over
            raise StoreUnavailable(
                "It could not be looked up now whether your user and team exist. Try again.", retry_after=1
            ) from None
        except MissingApiKey as error:
            raise await self._failed(error, request, now) from None
        # for the log; the type is not IRequest's: the gateway's own request has a context
        cast(Any, request).context.principal = principal
        counting = None if again else self._uncounted.count(principal, now)
        if counting is not None:
            await counting
        return principal

    async def caller_of(self, request: IRequest, access: Access, action: str, *, again: bool = False) -> Principal:
        """Return the principal of a request to a route, which it may call.

        Args:
            request: the request.
            access: who may call the route.
            action: the name of the route.
            again: as in `principal_of`.

        Raises:
            RouteNotAllowed: the caller may not.
        """
        principal = await self.principal_of(request, again=again)
        check_access(access, principal, f"/{action}", self.settings.enabled)
        return principal

    async def count_change(self, principal: Principal) -> None:
        """Count a change that somebody makes for themselves.

        Raises:
            RateLimitExceeded: it is one too many for its user.
        """
        counting = self._changes.count(principal, self._now().timestamp())
        if counting is not None:
            await counting

    async def is_reader(self, request: IRequest) -> bool:
        """Return whether somebody who may read everything makes a request that everybody may make.

        Raises:
            TooManyFailures: too many wrong keys came from the address; this route must not be the one to try them on.
        """
        now = self._now().timestamp()
        try:
            principal = self._authenticate(request, now)
        except MissingApiKey as error:
            refusal = await self._failed(error, request, now)
            if refusal is not error:
                raise refusal from None
            return False
        except TokenNotAllowed:
            return False
        cast(Any, request).context.principal = principal
        return reads_everything(principal)

    async def _failed(self, error: MissingApiKey, request: IRequest, now: float) -> GatewayError:
        """Count a failed authentication; return what the client is told."""
        if session_of(request) is not None:
            # it was valid once, and nobody can guess it
            return error
        refusal = self._throttle.record_failure(error, self.client_of(request), now)
        return refusal if isinstance(refusal, GatewayError) else await refusal

    @property
    def is_open(self) -> bool:
        """Whether there is no master key, and everybody may do everything."""
        return self._authenticator.is_open

    async def sign_in(self, request: IRequest, key: str) -> tuple[Principal, str]:
        """Return whom a key acts as that a form brought, and the SHA-256 of its current value.

        A wrong one counts as every failed authentication does.

        Raises:
            InvalidApiKey, ExpiredApiKey, BlockedApiKey, TooManyFailures: as in the pass-through.
            RateLimitExceeded: the key has read too often in this minute.
        """
        headers = {AUTHORIZATION: b"Bearer " + key.encode("utf-8", "surrogatepass")}
        now = self._now().timestamp()
        try:
            principal = self._authenticator.authenticate(headers, now)
        except GatewayError as error:
            waiting = None
            if self._before_refusal is not None:
                waiting = self._before_refusal(headers, error, self.client_of(request))
            if waiting is not None:
                await waiting
            try:
                principal = self._authenticator.authenticate(headers, now)
            except MissingApiKey as refusal:
                raise await self._failed(refusal, request, now) from None
        counting = self._uncounted.count(principal, now)
        if counting is not None:
            await counting
        cast(Any, request).context.principal = principal
        token = hash_key(key)
        known = self._index.find(token)
        return principal, token if known is None else known.token

    def is_master(self, key: str) -> bool:
        """Return whether a key is the master key, in constant time."""
        return self._authenticator.is_master(key)

    def is_known(self, key: str) -> bool:
        """Return whether this is a virtual key, or a former value of one."""
        return self._index.find(hash_key(key)) is not None

    def presented_token(self, request: IRequest) -> str | None:
        """Return the token of a request's credential."""
        session = session_of(request)
        if session is not None:
            return session.token if session.kind == "key" else None
        credential = credential_of(_credential_headers(request))
        return None if credential is None else hash_key(credential)

    def own_token(self, request: IRequest) -> str | None:
        """Return the current token of a request's virtual key, also where the request has a former value of it."""
        token = self.presented_token(request)
        known = None if token is None else self._index.find(token)
        return None if known is None else known.token


def session_of(request: IRequest) -> Session | None:
    """Return the session of a request of the console; None for every other request."""
    found: Session | None = getattr(request, "console_session", None)
    return found


def first_headers(request: IRequest, names: Iterable[bytes]) -> dict[bytes, bytes]:
    """Return the first values of some headers of a request, by lower-case name."""
    found = {}
    for name in names:
        values = request.requestHeaders.getRawHeaders(name)
        if values:
            found[name] = values[0]
    return found


def _credential_headers(request: IRequest) -> dict[bytes, bytes]:
    return first_headers(request, _DECISIVE)
