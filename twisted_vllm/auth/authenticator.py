"""Authenticates requests by their credential, without asking the database."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from hmac import compare_digest

import attrs

from twisted_vllm.auth.credentials import AUTHORIZATION, credential_of
from twisted_vllm.auth.grants import NEVER
from twisted_vllm.auth.key_index import IndexedKey, KeyIndex, Sources
from twisted_vllm.auth.known_keys import KnownKeys
from twisted_vllm.auth.named_callers import NamedCallers
from twisted_vllm.auth.records import ANONYMOUS, MASTER, Principal
from twisted_vllm.auth.sessions import Session, SessionSealer, is_ticket
from twisted_vllm.auth.token_index import TokenIndex
from twisted_vllm.auth.tokens import is_token
from twisted_vllm.config.secret import Secret, hash_of
from twisted_vllm.errors import BlockedApiKey, ExpiredApiKey, GatewayError, InvalidApiKey, MissingApiKey

KEY_PREFIX = "sk-"

#: the randomness in a generated key, in bytes
KEY_RANDOM_BYTES = 32


def hash_key(key: str) -> str:
    """Return the SHA-256 of a key in 64 lower-case hex digits, which LiteLLM calls its token."""
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def name_key(key: str) -> str:
    """Return a key's name in LiteLLM's format: ``sk-...`` and its last four characters."""
    return f"{KEY_PREFIX}...{key[-4:]}"


def generate_key(randbytes: Callable[[int], bytes]) -> str:
    """Return a new key: ``sk-`` and 43 characters that are safe in a URL.

    Args:
        randbytes: returns bytes of a cryptographic random source, such as ``secrets.token_bytes``.
    """
    return KEY_PREFIX + urlsafe_b64encode(randbytes(KEY_RANDOM_BYTES)).rstrip(b"=").decode("ascii")


_EXPIRED = "This API key has expired. Ask an administrator for a new one."
_REPLACED = "This API key was replaced by another and does not work any more. Use the new one."


class Authenticator:
    """Finds the principal of a request.

    Without a master key the gateway is open: a request acts as anonymous, whatever credential it carries. A virtual key
    keeps its own permissions even then, so a tenant's expired key stays expired.

    Attributes:
        index: the virtual keys.
        known: returns the key in use with a credential, as `KnownKeys.get`: ask `KeyIndex.is_current` about it.
    """

    def __init__(
        self,
        master_key: Secret | None,
        index: KeyIndex,
        tokens: TokenIndex | None = None,
        sealer: SessionSealer | None = None,
        provider: str = "",
        callers: NamedCallers | None = None,
    ) -> None:
        """Make it.

        Args:
            master_key: the administrator's key; None opens the gateway.
            index: the virtual keys.
            tokens: the JSON Web Tokens that were verified; None takes none.
            sealer: opens tickets of the console; None takes none.
            provider: the mark of the OpenID provider whose people have sessions; empty if there is none.
            callers: makes principals of them; None knows none.
        """
        self.index = index
        self._callers = callers
        self._known = KnownKeys()
        self.known = self._known.get
        self._master_token: str | None = None
        self.reconfigure(master_key, tokens, sealer, provider)

    def reconfigure(
        self,
        master_key: Secret | None,
        tokens: TokenIndex | None = None,
        sealer: SessionSealer | None = None,
        provider: str = "",
    ) -> None:
        """Use another master key, other tokens and sessions from now on; the arguments are the constructor's."""
        self._tokens = tokens
        self._sealer = sealer
        self._provider = provider
        # a key in use may be the master key now
        self.index.settings_changed()
        self._master_token = None if master_key is None else hash_of(master_key) or hash_key(master_key.reveal())

    @property
    def changes(self) -> int:
        """The number of changes of keys, users, teams and settings."""
        return self.index.changes

    @property
    def keys_in_use(self) -> int:
        """The number of keys that are kept with their credential."""
        return len(self._known)

    def sweep(self) -> None:
        """Forget keys that are not in use any more; call it once a minute."""
        self._known.sweep()

    @property
    def is_open(self) -> bool:
        """Whether there is no master key."""
        return self._master_token is None

    def is_master(self, key: str) -> bool:
        """Return whether this is the master key. The comparison takes constant time."""
        return self._master_token is not None and compare_digest(hash_key(key), self._master_token)

    def authenticate(self, headers: Mapping[bytes, bytes], now: float) -> Principal:
        """Return the principal that a request acts as.

        Args:
            headers: the request's headers: lower-case names, and the first value of each.
            now: the time in Unix seconds.

        Raises:
            MissingApiKey: the request has no credential, and the gateway is not open.
            InvalidApiKey: the credential is unknown.
            ExpiredApiKey: the key has expired, or was replaced.
            BlockedApiKey: the key or its team is blocked.
            UnverifiedToken: it is a JSON Web Token of which something must be found out first.
            InvalidToken, TokenNotAllowed, IssuerUnavailable, StoreUnavailable, TooManyFailures: as from
                `TokenIndex.authenticate`.
        """
        credential = credential_of(headers)
        master_token = self._master_token
        if credential is None:
            if master_token is None:
                return self._limited(ANONYMOUS)
            raise MissingApiKey(_missing_message(headers))
        if credential.isascii():
            known = self.known(credential.encode("ascii"))
            if known is not None and self.index.is_current(known) and now < known.principal.expires:
                known.used = True
                return known.principal
        token = hash_key(credential)
        if master_token is not None and compare_digest(token, master_token):
            return self._limited(MASTER)
        sources = self.index.sources_of(token)
        if sources is None:
            if master_token is None:
                return self._limited(ANONYMOUS)
            if self._sealer is not None and is_ticket(credential):
                return self._of_ticket(self._sealer, credential, now)
            if self._tokens is not None and (token in self._tokens or is_token(credential)):
                return self._tokens.authenticate(token, headers, now)
            raise InvalidApiKey(
                "This API key is not known. Check that it was copied whole, or ask an administrator for a new one."
            )
        key = self._joined(sources, now)
        self._known.keep(credential, key)
        return key.principal

    def authenticate_session(self, session: Session, now: float) -> Principal:
        """Return the principal that a session of the console acts as: as its key does at this moment.

        Args:
            session: the session, which is not over.
            now: the time in Unix seconds.

        Raises:
            InvalidApiKey: its key was deleted, is not the master key any more, or the provider was replaced.
            ExpiredApiKey, BlockedApiKey: as from `authenticate`.
            CallerNotLookedUp, TokenNotAllowed: as from `NamedCallers.principal_of`.
        """
        if session.kind == "user":
            return self._of_user(session)
        if session.kind == "master":
            if self._master_token is None or not compare_digest(session.token, self._master_token):
                raise InvalidApiKey("The master key was replaced by another. Sign in again.")
            return self._limited(MASTER)
        sources = self.index.sources_of(session.token)
        if sources is None:
            raise InvalidApiKey("The API key of this session does not exist any more. Sign in with another one.")
        return self._joined(sources, now).principal

    def _of_user(self, session: Session) -> Principal:
        caller, callers = session.caller, self._callers
        if caller is None or callers is None or not self._provider or session.provider != self._provider:
            raise InvalidApiKey("The settings of signing in changed. Sign in again.")
        # a key that is made by it does not end with it
        return callers.principal_of(caller, NEVER, noun="account")

    def _of_ticket(self, sealer: SessionSealer, ticket: str, now: float) -> Principal:
        session = sealer.of_ticket(ticket, now)
        if session is None:
            raise InvalidApiKey("This ticket of the console is over. The page gets a new one when it is loaded again.")
        return self.authenticate_session(session, now)

    def _joined(self, sources: Sources, now: float) -> IndexedKey:
        # before it is joined: a refusal takes as long whether or not there is such a key
        _check_valid(sources, now)
        key = self.index.joined(sources)
        key.used = True
        return key

    def judged(self, token: str, now: float) -> tuple[Principal, GatewayError | None] | None:
        """Return whom a key acts as, and why it would be refused; None if there is no such key.

        Args:
            token: the key's token.
            now: the time in Unix seconds.
        """
        sources = self.index.sources_of(token)
        if sources is None:
            return None
        principal = self.index.joined(sources).principal
        try:
            _check_valid(sources, now)
        except GatewayError as error:
            return principal, error
        return principal, None

    def _limited(self, principal: Principal) -> Principal:
        """Return a caller without a key of its own, held to the limits of the gateway as a whole."""
        limited = self.index.of_everybody
        return attrs.evolve(principal, limited=limited) if limited else principal


def _check_valid(sources: Sources, now: float) -> None:
    """Check that a key may be used now.

    Raises:
        BlockedApiKey, ExpiredApiKey: as from `Authenticator.authenticate`.
    """
    if sources.grant.blocked:
        raise BlockedApiKey("This API key was blocked. Ask an administrator to unblock it.")
    if sources.team_blocked:
        raise BlockedApiKey("The team of this API key was blocked. Ask an administrator to unblock the team.")
    if now >= sources.expires:
        raise ExpiredApiKey(_EXPIRED if sources.former is None else _REPLACED)


def _missing_message(headers: Mapping[bytes, bytes]) -> str:
    how = "Send it as `Authorization: Bearer KEY`, or in the header x-litellm-api-key, api-key or x-api-key."
    if AUTHORIZATION in headers:
        return f"The Authorization header carries no bearer key. {how}"
    return f"No API key came with this request. {how}"
