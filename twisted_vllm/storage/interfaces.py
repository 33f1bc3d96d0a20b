"""What the store does, and how it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection
from twisted.internet.defer import Deferred
from zope.interface import Interface

from twisted_vllm.auth.grants import Changes, Everything
from twisted_vllm.auth.records import Spend
from twisted_vllm.errors import Conflict

if TYPE_CHECKING:
    from twisted_vllm.storage.transaction import Transaction

T = TypeVar("T")


class StoreError(Exception):
    """The database cannot be used as it is configured; the message is for the operator and holds no password."""


class KeyExists(Conflict):
    """The key that was to be stored is there already."""

    def __init__(self, param: str = "key") -> None:
        super().__init__(
            f"This key exists already. Send another `{param}`, or leave it out to have one made.", param=param
        )


class AliasExists(Conflict):
    """Another key has the alias."""

    def __init__(self) -> None:
        super().__init__("Another key has this alias already. Send another `key_alias`.", param="key_alias")


class IDatabase(Interface):
    """What runs work in transactions."""

    def run(work: Callable[[Connection], T], *, writes: bool) -> Deferred[T]:
        """Do work in one transaction, off the reactor's thread, and commit it; one that fails changes nothing.

        Raises:
            StoreUnavailable: the database failed.
        """

    def run_now(work: Callable[[Connection], T]) -> T:
        """Do work that only reads, at once and blocking."""


class IStore(Interface):
    """Where keys are kept, and all that concerns them. A Deferred that fails has changed nothing.

    Every method may fail with :class:`twisted_vllm.errors.StoreUnavailable`.
    """

    def read(work: Callable[[Transaction], T]) -> Deferred[T]:
        """Do work that only reads; it runs in another thread and must touch nothing but the transaction."""

    def change(work: Callable[[Transaction], T]) -> Deferred[tuple[T, Changes]]:
        """Do work likewise that changes something, alone: no other change runs meanwhile, in no other process either.

        The Deferred fires with what the work returned, and with what must be told to the index.
        """

    def load() -> Deferred[Everything]:
        """Return all that the index keeps."""

    def spend() -> Deferred[list[Spend]]:
        """Return what every key, user, team and end user spent, where anything is known of it."""

    def news(revision: int) -> Deferred[tuple[int, Changes | Everything | None]]:
        """Return what changed after a revision and the revision that it leads to.

        Everything comes where too much was missed, and ``None`` where there is nothing new.
        """
