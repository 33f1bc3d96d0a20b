"""The database interface of the ledger's writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs
import msgspec
from zope.interface import Attribute, Interface

from twisted_vllm.usage.records import UsageRow


class SpendUpdate(msgspec.Struct, frozen=True, gc=False):
    """The spend of one scope after a batch of rows was committed.

    Attributes:
        kind: as in `Limited`.
        id: likewise.
        amount: what this process's rows added to `total`, in picodollars: those of former periods add nothing, nor do
            rows that another process left.
        total: the database's spend of the period, in picodollars.
        period_start: when that period began, in Unix seconds.
    """

    kind: str
    id: str
    amount: int
    total: int
    period_start: int


@attrs.frozen(order=True)
class Position:
    """A place in a spool.

    Attributes:
        segment: the number of the segment.
        offset: the offset in it, in bytes.
    """

    segment: int
    offset: int


#: before all rows of a spool
BEGINNING = Position(0, 0)


class DatabaseUnavailable(Exception):
    """The database is unavailable. The message says why and contains no password."""


class RowsRejected(Exception):
    """The database works and rejects the rows: at least one of them cannot be stored."""


class HistoryChanged(Exception):
    """The database is not in the state in which this process left it: it was restored, or is another one."""


@attrs.frozen
class Waiting:
    """Rows that the database has, and whose sums it lacks.

    Attributes:
        rows: how many.
        since: since when the oldest waits, by the clock `time.monotonic`; None without any.
    """

    rows: int = 0
    since: float | None = None


#: rows that the database has, on their way to what they add up to: what `IUsageStore.write` returns
Written = Any


class ISpoolAccounts(Protocol):
    """What the rows of one spool add up to, and how far the database has it.

    Attributes:
        name: the name of the spool.
    """

    name: str

    @property
    def kept_from(self) -> Position:
        """The position before which no row of the spool is needed any more."""

    @property
    def told_to(self) -> Position:
        """The position before which all spend was returned by `flush`."""

    @property
    def boundaries(self) -> list[Position]:
        """Positions that no batch of rows may span."""

    @property
    def waiting(self) -> Waiting:
        """What is not written yet. Any thread may ask."""

    def add(self, written: Sequence[Written], end: Position | None) -> None:
        """Gather rows that were written.

        Args:
            written: what `IUsageStore.write` returned for them.
            end: where they end in the spool; None for rows that are in no spool.
        """

    def flush(self, *, force: bool = False) -> tuple[bool, list[SpendUpdate]]:
        """Write a part of what was gathered, if it is due.

        Args:
            force: whether it is due whatever there is.

        Returns:
            Whether a part was written, and the new spend of some who pay. Amounts are 0 unless the rows are the
            process's own.

        Raises:
            DatabaseUnavailable: call it again.
            HistoryChanged: the accounts are worthless; open others, and add the rows of the spool again.
        """

    def close(self) -> None:
        """Remove what the database keeps of a spool of which nothing is left.

        Raises:
            DatabaseUnavailable: call it again.
        """


class IJointAccounts(Protocol):
    """What the rows of several spools add up to together. Their rows are the own ones, whichever process served.

    Attributes:
        name: what messages call them.
    """

    name: str

    @property
    def waiting(self) -> Waiting:
        """What is not written yet. Any thread may ask."""

    def join(self, name: str) -> Position | None:
        """Take the rows of one more spool.

        Returns:
            The position from which on rows are taken; None if the database has its rows in one amount and not in
            another, or in part: then accounts of its own go on with it until that is over.

        Raises:
            DatabaseUnavailable: call it again.
        """

    def kept_from(self, name: str) -> Position:
        """The position before which no row of a spool is needed any more."""

    def add(self, written: Sequence[Written], ends: Mapping[str, Position]) -> None:
        """Gather rows that were written.

        Args:
            written: what `IUsageStore.write` returned for them.
            ends: where those of each spool end.
        """

    def flush(self, *, force: bool = False) -> tuple[bool, list[SpendUpdate]]:
        """Write a part of what was gathered, if it is due; as `ISpoolAccounts.flush`.

        Raises:
            DatabaseUnavailable: call it again.
            HistoryChanged: the accounts are worthless; open others, and add the rows of the spools again.
        """

    def leave(self, name: str) -> None:
        """Take no more rows of a spool of which nothing is left, and remove what the database keeps of it.

        Raises:
            DatabaseUnavailable: call it again.
        """


class IUsageStore(Interface):
    """Stores rows permanently, and what they add up to. One thread uses it, and it blocks that thread."""

    single_writer = Attribute("Whether only one writer can write at a time.")

    def write(rows: Sequence[UsageRow]) -> Written:
        """Store rows. Idempotent: a stored row is skipped.

        Args:
            rows: at least one.

        Returns:
            The rows for `ISpoolAccounts.add`.

        Raises:
            DatabaseUnavailable: nothing was stored, or the result is unknown; the same rows may be written again.
            RowsRejected: nothing was stored.
        """

    def missing(rows: Sequence[UsageRow]) -> list[UsageRow]:
        """Return the rows that are not stored, each once.

        Raises:
            DatabaseUnavailable: the database cannot be read.
        """

    def open_accounts(name: str, *, own: bool, told_to: Position = BEGINNING) -> ISpoolAccounts:
        """Return the accounts of a spool, from where the database is.

        Args:
            name: the spool's name.
            own: whether this process served the requests.
            told_to: the position up to which their spend was told already, before the database was restored.

        Raises:
            DatabaseUnavailable: the database cannot be read.
        """

    def open_joint_accounts() -> IJointAccounts:
        """Return accounts of several spools, none of which has joined yet."""

    def spend_of(scopes: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], tuple[int, int]]:
        """Return the start of the budget period of some who spend, in Unix seconds, and the spend in it, by who.

        Those who have spent nothing are left out.

        Raises:
            DatabaseUnavailable: the database cannot be read.
        """

    def drop_before(time: int) -> int:
        """Drop the partitions whose rows are all of requests that began before a time in microseconds; return how many.

        Rows outlive the time by up to their partition, a day or a month. Sums stay.

        Raises:
            DatabaseUnavailable: some may be left, for the next call.
        """

    def close() -> None:
        """Close the connection; the next use opens a new one."""
