"""What a store of virtual keys does, and how it fails."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from zope.interface import Interface

from twisted_vllm.access.records import KeyRecord
from twisted_vllm.errors import Conflict


class StoreError(Exception):
    """The database cannot be used as it is configured; the message is for the operator and holds no password."""


class KeyExists(Conflict):
    """The key that was to be stored is there already."""

    def __init__(self) -> None:
        super().__init__(
            "This key exists already. Send another `key`, or leave it out to have one made.",
            param="key",
        )


class AliasExists(Conflict):
    """Another key has the alias."""

    def __init__(self) -> None:
        super().__init__("Another key has this alias already. Send another `key_alias`.", param="key_alias")


class IKeyStore(Interface):
    """Where virtual keys are kept. A Deferred that fails has changed nothing.

    Every method may fail with :class:`twisted_vllm.errors.StoreUnavailable`.
    """

    def load() -> Deferred[list[KeyRecord]]:
        """Return every key, the oldest first."""

    def insert(record: KeyRecord) -> Deferred[None]:
        """Keep a new key.

        Raises:
            KeyExists: its token is there already.
            AliasExists: its alias belongs to another key.
        """

    def delete(tokens: Sequence[str]) -> Deferred[list[str]]:
        """Forget keys; return the tokens that were there, each once, in the order given."""
