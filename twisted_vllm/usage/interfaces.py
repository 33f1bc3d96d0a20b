"""What the ledger's writer needs of a database, and what it tells of it."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from zope.interface import Attribute, Interface

from twisted_vllm.usage.records import UsageRow


@attrs.frozen
class Spent:
    """What a batch of rows changed for one scope, once it is committed.

    Attributes:
        kind: ``key``, ``user``, ``team`` or ``end_user``.
        id: which one.
        amount: of this process's own rows, in picodollars: what the database knows of now. 0 where the rows were left
            by another process.
        total: what the database says was spent in the period, in picodollars.
        period_start: when that period began, in Unix seconds.
    """

    kind: str
    id: str
    amount: int
    total: int
    period_start: int


class DatabaseAway(Exception):
    """The database cannot be used at the moment; the message says why and names no password."""


class RowsRefused(Exception):
    """The database is there and refuses these rows: at least one of them is not fit to be kept."""


class IUsageStore(Interface):
    """Where rows are kept for good. It is used by one thread, and blocks it."""

    has_one_lock = Attribute("Whether all that write wait for each other, whatever they write.")

    def write(rows: Sequence[UsageRow], own: bool) -> list[Spent]:
        """Keep rows, add them up and commit; a row whose id is there already changes nothing.

        Args:
            rows: what to keep.
            own: whether this process served the requests.

        Raises:
            DatabaseAway: nothing was kept, or it is not known; the same rows may be written again.
            RowsRefused: nothing was kept.
        """

    def delete_before(time: int, limit: int) -> int:
        """Delete up to `limit` rows of requests that began before a time in microseconds; return how many.

        Raises:
            DatabaseAway: as `write`.
        """

    def close() -> None:
        """Give up the connection; the next use opens another one."""
