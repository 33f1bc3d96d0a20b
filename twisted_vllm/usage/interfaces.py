"""The database interface of the ledger's writer."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from zope.interface import Attribute, Interface

from twisted_vllm.usage.records import UsageRow


@attrs.frozen
class SpendUpdate:
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


class DatabaseUnavailable(Exception):
    """The database is unavailable. The message says why and contains no password."""


class RowsRejected(Exception):
    """The database works and rejects the rows: at least one of them cannot be stored."""


class IUsageStore(Interface):
    """Stores rows permanently. One thread uses it, and it blocks that thread."""

    single_writer = Attribute("Whether only one writer can write at a time.")

    def write(rows: Sequence[UsageRow], own: bool) -> list[SpendUpdate]:
        """Store rows, their sums and spend in one transaction. Idempotent: a stored row is skipped.

        Args:
            rows: the rows.
            own: whether this process served the requests.

        Raises:
            DatabaseUnavailable: nothing was stored, or the result is unknown; the same rows may be written again.
            RowsRejected: nothing was stored.
        """

    def delete_before(time: int, limit: int) -> int:
        """Delete up to `limit` rows of requests that began before a time in microseconds; return how many.

        Raises:
            DatabaseUnavailable: as `write`.
        """

    def close() -> None:
        """Close the connection; the next use opens a new one."""
