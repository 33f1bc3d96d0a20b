"""Who presents a credential: decided without a database."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from hmac import compare_digest

from twisted_vllm.auth.credentials import AUTHORIZATION, credential_of
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.records import ANONYMOUS, MASTER, Principal
from twisted_vllm.config.secret import Secret, hash_of
from twisted_vllm.errors import BlockedApiKey, ExpiredApiKey, InvalidApiKey, MissingApiKey

KEY_PREFIX = "sk-"

#: the randomness in a generated key, in bytes
KEY_RANDOM_BYTES = 32


def hash_key(key: str) -> str:
    """Return the SHA-256 of a key as 64 lower-case hex digits: what LiteLLM calls its token."""
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def name_key(key: str) -> str:
    """Return what a key is recognised by, as LiteLLM writes it: ``sk-...`` and its last four characters."""
    return f"{KEY_PREFIX}...{key[-4:]}"


def generate_key(randbytes: Callable[[int], bytes]) -> str:
    """Return a new key: ``sk-`` and 43 characters that are safe in a URL.

    Args:
        randbytes: returns that many bytes from a source fit for secrets, such as ``secrets.token_bytes``.
    """
    return KEY_PREFIX + urlsafe_b64encode(randbytes(KEY_RANDOM_BYTES)).rstrip(b"=").decode("ascii")


_EXPIRED = "This API key has expired. Ask an administrator for a new one."
_REPLACED = "This API key was replaced by another and does not work any more. Use the new one."


class Authenticator:
    """Says who presents a credential.

    Without a master key the gateway is open: a request acts as anonymous, whatever credential it carries, unless that
    is a virtual key. Such a key keeps its own permissions, so that a tenant's expired key does not come back to life.
    """

    def __init__(self, master_key: Secret | None, index: KeyIndex) -> None:
        self._index = index
        self._master_token = None if master_key is None else hash_of(master_key) or hash_key(master_key.reveal())

    @property
    def changes(self) -> int:
        """How often keys, users and teams were changed."""
        return self._index.changes

    @property
    def is_open(self) -> bool:
        """Whether there is no master key."""
        return self._master_token is None

    def is_master(self, key: str) -> bool:
        """Say whether this is the master key, in a time that does not depend on how much of it is right."""
        return self._master_token is not None and compare_digest(hash_key(key), self._master_token)

    def authenticate(self, headers: Mapping[bytes, bytes], now: float) -> Principal:
        """Return whom a request acts as.

        Args:
            headers: the lower-case names of the request's headers and the first value of each.
            now: the time in Unix seconds.

        Raises:
            MissingApiKey: no credential came, and the gateway is not open.
            InvalidApiKey: the credential is not known.
            ExpiredApiKey: it was, and has expired.
            BlockedApiKey: it is, and was blocked, or its team was.
        """
        credential = credential_of(headers)
        master_token = self._master_token
        if credential is None:
            if master_token is None:
                return ANONYMOUS
            raise MissingApiKey(_missing_message(headers))
        token = hash_key(credential)
        if master_token is not None and compare_digest(token, master_token):
            return MASTER
        known = self._index.find(token)
        if known is None:
            if master_token is None:
                return ANONYMOUS
            raise InvalidApiKey(
                "This API key is not known. Check that it was copied whole, or ask an administrator for a new one."
            )
        if known.blocked:
            raise BlockedApiKey("This API key was blocked. Ask an administrator to unblock it.")
        if known.team_blocked:
            raise BlockedApiKey("The team of this API key was blocked. Ask an administrator to unblock the team.")
        if now >= known.principal.expires:
            raise ExpiredApiKey(_REPLACED if known.replaced else _EXPIRED)
        return known.principal


def _missing_message(headers: Mapping[bytes, bytes]) -> str:
    how = "Send it as `Authorization: Bearer KEY`, or in the header x-litellm-api-key, api-key or x-api-key."
    if AUTHORIZATION in headers:
        return f"The Authorization header carries no bearer key. {how}"
    return f"No API key came with this request. {how}"
