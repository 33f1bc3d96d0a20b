"""What the storage promises to the rest of the gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection
from twisted.internet.defer import Deferred
from zope.interface import Interface

from twisted_vllm.auth.grants import Changes, Everything
from twisted_vllm.auth.records import Spend
from twisted_vllm.storage.transaction import Transaction

T = TypeVar("T")


class IDatabase(Interface):
    """Runs work in transactions."""

    def run(work: Callable[[Connection], T], *, writes: bool) -> Deferred[T]:
        """Do work in one transaction, off the reactor's thread, and commit it. Work that fails changes nothing.

        Raises:
            StoreUnavailable: the database failed.
        """

    def run_now(work: Callable[[Connection], T]) -> T:
        """Do work that only reads, in the calling thread."""


class IStore(Interface):
    """Keeps keys, users, teams and end users. A Deferred that fails has changed nothing.

    Every method may fail with :class:`twisted_vllm.errors.StoreUnavailable`.
    """

    def read(work: Callable[[Transaction], T]) -> Deferred[T]:
        """Do work that only reads, in another thread. It must touch nothing but the transaction."""

    def change(work: Callable[[Transaction], T]) -> Deferred[tuple[T, Changes]]:
        """Do work that changes something. Changes run one at a time, over all processes on the database.

        The Deferred fires with the result of the work, and with what the key index must be told.
        """

    def load() -> Deferred[Everything]:
        """Return all that the key index holds."""

    def spend() -> Deferred[list[Spend]]:
        """Return what every key, user, team and end user spent that spent anything."""

    def changes_since(revision: int) -> Deferred[tuple[int, Changes | Everything | None]]:
        """Return the current revision, and what changed after `revision`.

        That is ``None`` where nothing changed, and everything where the changes in between are no longer kept.
        """
