"""Virtual keys in memory, by the SHA-256 of the key: who presents a credential, decided without a database."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from hmac import compare_digest

import attrs

from twisted_vllm.access.credentials import AUTHORIZATION, credential_of
from twisted_vllm.access.records import ANONYMOUS, MASTER, KeyRecord, Principal
from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import BlockedApiKey, ExpiredApiKey, InvalidApiKey, MissingApiKey

KEY_PREFIX = "sk-"

#: the randomness in a generated key, in bytes
KEY_RANDOM_BYTES = 32

_NEVER = float("inf")


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


@attrs.frozen
class IndexedKey:
    """A key as requests meet it: what can be known beforehand is made beforehand.

    Attributes:
        record: the key as it is stored.
        principal: whom its requests act as.
        expires: when it stops working, in Unix seconds; infinity is never.
        blocked: whether it was blocked.
    """

    record: KeyRecord
    principal: Principal
    expires: float
    blocked: bool

    @classmethod
    def of(cls, record: KeyRecord) -> IndexedKey:
        """Return the indexed form of a record."""
        principal = Principal(
            kind="key",
            name=record.key_alias or record.key_name,
            hash_prefix=record.hash_prefix,
            models=record.models,
            allowed_routes=record.allowed_routes,
        )
        expires = _NEVER if record.expires is None else record.expires.timestamp()
        return cls(record=record, principal=principal, expires=expires, blocked=record.blocked)


class KeyIndex:
    """Every virtual key, by its token. It belongs to the reactor's thread."""

    def __init__(self, records: Iterable[KeyRecord] = ()) -> None:
        self._keys: dict[str, IndexedKey] = {}
        self._tokens_by_alias: dict[str, str] = {}
        self.replace_all(records)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, token: object) -> bool:
        return token in self._keys

    def replace_all(self, records: Iterable[KeyRecord]) -> None:
        """Forget what was known and take these records."""
        # The old maps are replaced, not emptied: whoever iterates over `records()` keeps a whole picture.
        self._keys = {}
        self._tokens_by_alias = {}
        for record in records:
            self.add(record)

    def add(self, record: KeyRecord) -> None:
        """Take a record; one of the same token is replaced."""
        self.discard(record.token)
        self._keys[record.token] = IndexedKey.of(record)
        if record.key_alias is not None:
            self._tokens_by_alias[record.key_alias] = record.token

    def discard(self, token: str) -> bool:
        """Forget a key, and say whether it was known."""
        known = self._keys.pop(token, None)
        if known is None:
            return False
        alias = known.record.key_alias
        if alias is not None and self._tokens_by_alias.get(alias) == token:
            del self._tokens_by_alias[alias]
        return True

    def find(self, token: str) -> IndexedKey | None:
        """Return a key in the form that requests meet."""
        return self._keys.get(token)

    def get(self, token: str) -> KeyRecord | None:
        """Return the record of a token."""
        known = self._keys.get(token)
        return None if known is None else known.record

    def by_alias(self, alias: str) -> KeyRecord | None:
        """Return the record that has this alias."""
        token = self._tokens_by_alias.get(alias)
        return None if token is None else self.get(token)

    def records(self) -> list[KeyRecord]:
        """Return every record, in the order in which they came."""
        return [known.record for known in self._keys.values()]


class Authenticator:
    """Says who presents a credential.

    Without a master key the gateway is open: a request acts as anonymous, whatever credential it carries, unless that
    is a virtual key. Such a key keeps its own permissions, so that a tenant's expired key does not come back to life.
    """

    def __init__(self, master_key: Secret | None, index: KeyIndex) -> None:
        self._index = index
        self._master_token = None if master_key is None else hash_key(master_key.reveal())

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
            BlockedApiKey: it is, and was blocked.
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
        if now >= known.expires:
            raise ExpiredApiKey("This API key has expired. Ask an administrator for a new one.")
        return known.principal


def _missing_message(headers: Mapping[bytes, bytes]) -> str:
    how = "Send it as `Authorization: Bearer KEY`, or in the header x-litellm-api-key, api-key or x-api-key."
    if AUTHORIZATION in headers:
        return f"The Authorization header carries no bearer key. {how}"
    return f"No API key came with this request. {how}"
