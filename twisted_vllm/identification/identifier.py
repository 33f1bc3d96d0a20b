"""What a caller may wait for before it is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping

from twisted.internet.defer import Deferred

from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.auth.credentials import credential_of
from twisted_vllm.auth.sessions import is_ticket
from twisted_vllm.auth.token_claims import TokenCaller
from twisted_vllm.errors import (
    BlockedApiKey,
    CallerNotLookedUp,
    ExpiredApiKey,
    GatewayError,
    InvalidApiKey,
    TokenNotAllowed,
    UnverifiedToken,
)
from twisted_vllm.identification.caller_lookup import CallerLookup
from twisted_vllm.identification.inquiry import Inquiry
from twisted_vllm.identification.verifier import TokenVerifier

#: the form of every key that the gateway gives or takes
_KEY = re.compile(r"sk-[!-~]{13,509}")


class Identifier:
    """Finds out more about callers who are about to be refused."""

    def __init__(
        self, inquiry: Inquiry, verifier: TokenVerifier | None = None, lookup: CallerLookup | None = None
    ) -> None:
        """Make it.

        Args:
            inquiry: asks the database for the latest keys.
            verifier: verifies tokens; None if there are none.
            lookup: looks up the users and teams of sessions of the console; None if there are none.
        """
        self._inquiry = inquiry
        self._lookup = lookup
        self.reconfigure(verifier)

    def reconfigure(self, verifier: TokenVerifier | None) -> None:
        """Use another verifier from now on."""
        self._verifier = verifier

    def before_refusal(
        self, headers: Mapping[bytes, bytes], error: GatewayError, address: str
    ) -> Deferred[None] | None:
        """Begin to find out whether a caller is to be refused.

        Args:
            headers: the first value of each header, by lower-case name.
            error: what the authenticator raised.
            address: the client's address.

        Returns:
            A Deferred that fires, and never fails, when the caller should be authenticated once more, for good; None
            if there is nothing to find out.
        """
        credential = credential_of(headers)
        if credential is None:
            return None
        if isinstance(error, CallerNotLookedUp):
            # of a ticket
            return self._look_up(error, address)
        if isinstance(error, UnverifiedToken):
            if self._verifier is None:
                return None
            return self._verifier.find_out(credential, hash_key(credential), address)
        form_fits = _KEY.fullmatch(credential) is not None and not is_ticket(credential)
        return self._ask(hash_key(credential), form_fits, error, address)

    def before_session_ends(self, token: str, error: GatewayError, address: str) -> Deferred[None] | None:
        """Begin to find out whether a session of the console is over, as `before_refusal`.

        Args:
            token: the SHA-256 of its key, or the id of its user.
            error: what the authenticator raised.
            address: the client's address.
        """
        if isinstance(error, CallerNotLookedUp):
            return self._look_up(error, address)
        return self._ask(token, True, error, address)

    def _look_up(self, error: CallerNotLookedUp, address: str) -> Deferred[None] | None:
        assert isinstance(error.caller, TokenCaller)
        return None if self._lookup is None else self._lookup.find_out(error.caller, address)

    def _ask(self, token: str, form_fits: bool, error: GatewayError, address: str) -> Deferred[None] | None:
        may_be_known = isinstance(error, TokenNotAllowed) or type(error) in (InvalidApiKey, ExpiredApiKey)
        if isinstance(error, BlockedApiKey):
            # not remembered: it may be used the moment after it was unblocked elsewhere
            return self._inquiry.ask(None, address)
        if may_be_known and (form_fits or isinstance(error, TokenNotAllowed)):
            return self._inquiry.ask(token, address)
        return None
