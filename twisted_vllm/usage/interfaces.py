"""What the ledger's writer needs of a database, and what it reports."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from zope.interface import Attribute, Interface

from twisted_vllm.usage.records import UsageRow


@attrs.frozen
class SpendUpdate:
    """The spend of one scope after a batch of rows was committed.

    Attributes:
        kind: ``key``, ``user``, ``team`` or ``end_user``.
        id: which one.
        amount: what the batch's rows of this process cost, in picodollars; 0 for rows that another process left.
        total: what was spent in the period according to the database, in picodollars.
        period_start: when that period began, in Unix seconds.
    """

    kind: str
    id: str
    amount: int
    total: int
    period_start: int


class DatabaseUnavailable(Exception):
    """The database cannot be used at the moment. The message says why and holds no password."""


class RowsRejected(Exception):
    """The database works and rejects the rows: at least one of them cannot be stored."""


class IUsageStore(Interface):
    """Stores rows permanently. It is used by one thread, and blocks it."""

    single_writer = Attribute("Whether writers wait for each other, whatever they write.")

    def write(rows: Sequence[UsageRow], own: bool) -> list[SpendUpdate]:
        """Store rows, their sums and spend in one transaction. A row that is there already changes nothing.

        Args:
            rows: what to store.
            own: whether this process served the requests.

        Raises:
            DatabaseUnavailable: nothing was stored, or it is not known; the same rows may be written again.
            RowsRejected: nothing was stored.
        """

    def delete_before(time: int, limit: int) -> int:
        """Delete up to `limit` rows of requests that began before a time in microseconds; return how many.

        Raises:
            DatabaseUnavailable: as `write`.
        """

    def close() -> None:
        """Close the connection; the next use opens another one."""
