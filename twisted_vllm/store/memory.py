"""Virtual keys that last as long as the process: for tests and trials."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from twisted_vllm.access.records import KeyRecord
from twisted_vllm.store.interfaces import AliasExists, IKeyStore, KeyExists


@implementer(IKeyStore)
class MemoryKeyStore:
    """An :class:`IKeyStore` in a dictionary."""

    def __init__(self) -> None:
        self._records: dict[str, KeyRecord] = {}

    def load(self) -> Deferred[list[KeyRecord]]:
        """Return every key, the oldest first."""
        return succeed(sorted(self._records.values(), key=lambda record: (record.created_at, record.token)))

    def insert(self, record: KeyRecord) -> Deferred[None]:
        """Keep a new key."""
        if record.token in self._records:
            return fail(KeyExists())
        if record.key_alias is not None and any(
            known.key_alias == record.key_alias for known in self._records.values()
        ):
            return fail(AliasExists())
        self._records[record.token] = record
        return succeed(None)

    def delete(self, tokens: Sequence[str]) -> Deferred[list[str]]:
        """Forget keys; return the tokens that were there."""
        return succeed([token for token in tokens if self._records.pop(token, None) is not None])
