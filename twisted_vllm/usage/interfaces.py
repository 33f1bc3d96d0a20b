"""The database interface of the ledger's writer."""

from __future__ import annotations

from collections.abc import Sequence
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
        amount: the cost of this process's rows in the batch, in picodollars; 0 for rows that another process left.
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


#: rows that the database has, on their way to what they add up to: what `IUsageStore.write` returns
Written = Any


class ISpoolAccounts(Protocol):
    """What the rows of one spool add up to, and how far the database has it.

    Attributes:
        name: the name of the spool.
        own: whether this process served the requests.
    """

    name: str
    own: bool

    @property
    def kept_from(self) -> Position:
        """The position before which no row of the spool is needed any more."""

    @property
    def boundaries(self) -> list[Position]:
        """Positions that no batch of rows may span."""

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


class IUsageStore(Interface):
    """Stores rows permanently, and what they add up to. One thread uses it, and it blocks that thread."""

    single_writer = Attribute("Whether only one writer can write at a time.")

    def write(rows: Sequence[UsageRow], *, only_new: bool = False) -> Written | None:
        """Store rows. Idempotent: a stored row is skipped.

        Args:
            rows: at least one.
            only_new: whether to return the rows that did not exist alone.

        Returns:
            The rows for `ISpoolAccounts.add`; None if there are none.

        Raises:
            DatabaseUnavailable: nothing was stored, or the result is unknown; the same rows may be written again.
            RowsRejected: nothing was stored.
        """

    def open_accounts(name: str, *, own: bool) -> ISpoolAccounts:
        """Return the accounts of a spool, from where the database is.

        Args:
            name: the spool's name.
            own: whether this process served the requests.

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
