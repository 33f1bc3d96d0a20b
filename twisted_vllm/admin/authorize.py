"""Who calls the admin API."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

from twisted.web.iweb import IRequest

from twisted_vllm.auth.authenticator import Authenticator, hash_key
from twisted_vllm.auth.credentials import CREDENTIAL_HEADERS, credential_of
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.records import Principal
from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.errors import MissingApiKey, RouteNotAllowed

_TOKEN = re.compile(r"[0-9a-fA-F]{64}")


def token_of(key_or_token: str) -> str:
    """Return the token of a key that is given as it is or as its hash: no key looks like a hash."""
    return key_or_token.lower() if _TOKEN.fullmatch(key_or_token) else hash_key(key_or_token)


class AdminAuthenticator:
    """Finds the principal of an admin request, and notes it on the request for the log."""

    def __init__(
        self,
        authenticator: Authenticator,
        index: KeyIndex,
        now: Callable[[], datetime],
        client_of: Callable[[IRequest], str],
        failures: AuthenticationThrottle,
    ) -> None:
        self._authenticator = authenticator
        self._index = index
        self._now = now
        self.client_of = client_of
        self._failures = failures

    def principal_of(self, request: IRequest) -> Principal:
        """Return whom a request acts as.

        Raises:
            MissingApiKey, InvalidApiKey, ExpiredApiKey, BlockedApiKey, TooManyFailures: as the pass-through does.
        """
        now = self._now().timestamp()
        try:
            principal = self._authenticator.authenticate(_credential_headers(request), now)
        except MissingApiKey as error:
            raise self._failures.record_failure(error, self.client_of(request), now) from None
        request.principal = principal  # type: ignore[attr-defined]  # not IRequest's: the gateway's own request class has it
        return principal

    def administrator_of(self, request: IRequest) -> Principal:
        """Return whom a request acts as, if that is an administrator.

        Raises:
            RouteNotAllowed: it is a virtual key.
        """
        principal = self.principal_of(request)
        if not principal.may_administer:
            raise RouteNotAllowed(
                "Only the master key may call this route, and a key whose allowed_routes hold `management`."
            )
        return principal

    def presented_token(self, request: IRequest) -> str | None:
        """Return the token of the credential that came with a request."""
        credential = credential_of(_credential_headers(request))
        return None if credential is None else hash_key(credential)

    def own_token(self, request: IRequest) -> str | None:
        """Return the token of the virtual key that came with a request; of the present one, if it was regenerated."""
        token = self.presented_token(request)
        known = None if token is None else self._index.find(token)
        return None if known is None else known.token


def _credential_headers(request: IRequest) -> dict[bytes, bytes]:
    found = {}
    for name in CREDENTIAL_HEADERS:
        values = request.requestHeaders.getRawHeaders(name)
        if values:
            found[name] = values[0]
    return found
