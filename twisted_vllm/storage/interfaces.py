"""The interfaces of the storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection
from twisted.internet.defer import Deferred
from zope.interface import Interface

from twisted_vllm.auth.grants import Changes, Revision, Snapshot
from twisted_vllm.auth.records import Spend
from twisted_vllm.storage.report_queue import ReportCaller
from twisted_vllm.storage.transaction import Transaction

T = TypeVar("T")


class IDatabase(Interface):
    """Runs work in transactions."""

    def run(work: Callable[[Connection], T], *, writes: bool, seconds: float | None = None) -> Deferred[T]:
        """Run work in one transaction in another thread, and commit it. Work that fails changes nothing.

        Args:
            work: what to do.
            writes: whether it changes anything.
            seconds: how long it may take, its wait for a thread included; None for the database's own limit.

        Raises:
            StoreUnavailable: the database failed.
        """

    def run_now(work: Callable[[Connection], T]) -> T:
        """Run work that only reads, in the calling thread."""


class IStore(Interface):
    """Stores keys, users, teams and end users. If a Deferred fails, nothing was changed.

    Every method may fail with :class:`twisted_vllm.errors.StoreUnavailable`.
    """

    def read(work: Callable[[Transaction], T]) -> Deferred[T]:
        """Run work that only reads, in another thread. It must use nothing but the transaction."""

    def change(work: Callable[[Transaction], T]) -> Deferred[tuple[T, Changes]]:
        """Run work that changes something. Changes run one at a time, across all processes on the database.

        The Deferred fires with the result of the work and the changes for the key index.
        """

    def load() -> Deferred[Snapshot]:
        """Return the content of the key index."""

    def spend() -> Deferred[list[Spend]]:
        """Return the spend of every key, user, team and end user that has spent anything."""

    def changes_since(revision: Revision) -> Deferred[tuple[Revision, Changes | Snapshot | None]]:
        """Return the current revision, and what changed after `revision`.

        The changes are ``None`` if nothing changed. They are a `Snapshot` if the changes in between are no longer
        stored, or if `revision` is not in the database's history, as after a restore.
        """


class IReports(Interface):
    """Reads reports: work that may take long, of which a few run at a time."""

    def read(caller: ReportCaller, work: Callable[[Transaction], T], *, begun: bool = False) -> Deferred[T]:
        """Read a report, or the next part of one that the caller has the beginning of.

        To cancel the Deferred stops the work. It fails with TooManyReports, ReportsBusy, ReportTimeout or
        StoreUnavailable of :mod:`twisted_vllm.errors`.
        """
