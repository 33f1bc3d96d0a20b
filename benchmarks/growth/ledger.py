"""All that the benchmark knows of the ledger's storage: how rows are written, and what its tables are for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.usage.database import UsageDatabase
from twisted_vllm.usage.interfaces import DatabaseUnavailable, Position
from twisted_vllm.usage.records import UsageRow

T = TypeVar("T")

#: rows whose sums are gathered: more take more memory, fewer touch the sums more often
_GATHERED_ROWS = 200_000
#: rows in one transaction in PostgreSQL, as many as the gateway's
_ROWS_AT_ONCE = 4_000
#: what all tables of the ledger are called first
PREFIX = "vllm_passthrough_usage"
#: what bytes are for
ROWS, LOOKUPS, SUMS, NAMES = "rows", "lookups", "sums", "names"

_PURPOSES = {
    PREFIX: ROWS,
    f"{PREFIX}_lookups": LOOKUPS,
    f"{PREFIX}_request_tags": LOOKUPS,
    f"{PREFIX}_sums": SUMS,
    f"{PREFIX}_daily": SUMS,
    f"{PREFIX}_monthly": SUMS,
    f"{PREFIX}_totals": SUMS,
}


def purpose_of(table: str, index: str = "") -> str | None:
    """Return what the bytes of a table, or of one of its indexes, are for; None for a table that is not the ledger's.

    A partition is named as its table, an underscore and its time.
    """
    if not table.startswith(PREFIX):
        return None
    named = [name for name in _PURPOSES if table == name or (table.startswith(f"{name}_") and table[-1].isdigit())]
    purpose = _PURPOSES[max(named, key=len)] if named else NAMES
    return LOOKUPS if purpose == ROWS and index and not index.endswith(("_pkey", "autoindex_1")) else purpose


def open_store(url: str) -> UsageDatabase:
    """Return the ledger's connection to a migrated database, without budgets."""
    return UsageDatabase(Secret(url), lambda _kind, _id, _time: 0)


class Ledger:
    """Writes rows without a spool."""

    def __init__(self, url: str) -> None:
        self._store = open_store(url)
        self._accounts = self._store.open_accounts("filling", own=False)
        self._rows = self._gathered = 0

    def write(self, rows: Sequence[UsageRow]) -> None:
        """Write rows that come in the order of time. What they add up to is gathered, and written now and then.

        Raises:
            DatabaseUnavailable: the database takes none, although it was asked several times.
        """
        # PostgreSQL limits the time of a transaction; SQLite gains by large ones
        at_once = len(rows) if self._store.single_writer else _ROWS_AT_ONCE
        for start in range(0, len(rows), max(at_once, 1)):
            some = rows[start : start + at_once]
            written = _persist(lambda some=some: self._store.write(some))  # type: ignore[misc] # a default is not inferred
            self._rows += len(some)
            self._gathered += len(some)
            self._accounts.add([written], Position(1, self._rows))
        if self._gathered >= _GATHERED_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write all that is gathered of the rows."""
        while _persist(lambda: self._accounts.flush(force=True))[0]:
            pass
        self._gathered = 0

    def close(self) -> None:
        """Flush, and close the connection."""
        self.flush()
        self._accounts.close()
        self._store.close()


def _persist(work: Callable[[], T], attempts: int = 3) -> T:
    """Do work that a busy machine may not do in time, and that does no harm twice."""
    try:
        return work()
    except DatabaseUnavailable:
        if attempts == 1:
            raise
        return _persist(work, attempts - 1)


#: the gateway's metrics that are 0 when the database has everything
PENDING_METRICS = frozenset({"vllm_passthrough_ledger_spool_rows", "vllm_passthrough_ledger_gathered_rows"})
#: counts the rows of its requests
ROWS_METRIC = "vllm_passthrough_ledger_rows_spooled_total"
