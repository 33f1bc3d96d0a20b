"""Writes batches of ledger rows to the database, and sets aside what it rejects."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import attrs
from twisted.logger import Logger

from twisted_vllm.config.alert_types import LEDGER_ALERT
from twisted_vllm.histogram import Histogram
from twisted_vllm.usage.interfaces import DatabaseUnavailable, IUsageStore, RowsRejected, Written
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool.followed import FollowedSpool
from twisted_vllm.usage.spool.format import clean, encode_rows
from twisted_vllm.usage.spool.queue import Batch

#: upper bounds of the seconds of a batch
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

QUARANTINE_SUFFIX = ".damaged"

T = TypeVar("T")


def quarantine(directory: Path, name: str, lines: Sequence[bytes]) -> Path:
    """Append lines that no database accepts to the quarantine file, and sync it; return its path.

    Raises:
        OSError: they cannot be written.
    """
    path = directory / f"{name}{QUARANTINE_SUFFIX}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
    return path


@attrs.frozen
class _Rejected:
    """A row that the database rejects, and why."""

    row: UsageRow
    reason: str


class BatchWriter:
    """Writes batches to the database, and quarantines what it rejects. It belongs to one thread.

    Attributes:
        committed: how many rows the database took.
        quarantined: how many damaged lines and rejected rows were quarantined.
        durations: seconds of batches, those that failed included.
    """

    _log = Logger()

    def __init__(self, spool: FollowedSpool, store: IUsageStore) -> None:
        """Set up.

        Args:
            spool: provides the directory and the name of the quarantine file.
            store: the database.
        """
        self.committed = self.quarantined = 0
        #: what failed when it was tried last. Another part may succeed meanwhile: rows and sums of SQLite are
        #: in files of their own.
        self._failing: set[str] = set()
        self.durations = Histogram(BUCKETS)
        self._quarantine_failed = False
        #: ids of doubtful rows of the batch that were stored before
        self._stored: set[str] = set()
        self._spool = spool
        self._store = store

    @property
    def reachable(self) -> bool:
        """Whether the database took the last batch, and all else that was tried."""
        return not self._failing

    def write(self, batch: Batch) -> list[Written] | None:
        """Write a batch; return the rows that the database has and that count, or None if it must be retried.

        However often a batch is retried, its rows are counted once and quarantined once.
        """
        rejected: list[_Rejected] = []
        began = time.monotonic()
        written = self.reach("rows", lambda: self._write(self._counting(batch.rows), rejected))
        self.durations.observe(time.monotonic() - began)
        # Only now: until the database has all other rows, the whole batch may be retried.
        if written is None or ((batch.damaged or rejected) and not self._quarantine(batch.damaged, rejected)):
            return None
        self._stored.clear()
        self.committed += len(batch.rows) - len(rejected)
        return written

    def _counting(self, rows: Sequence[UsageRow]) -> Sequence[UsageRow]:
        """Return the rows without those that another process stored already."""
        doubtful = self._spool.doubtful
        if doubtful:
            for row in [each for each in rows if each.id in doubtful]:
                if not self._store.missing([row]):
                    self._stored.add(row.id)
                # A retry of the batch does not ask again: it would find the row itself.
                doubtful.discard(row.id)
        return [row for row in rows if row.id not in self._stored] if self._stored else rows

    def reach(self, part: str, work: Callable[[], T]) -> T | None:
        """Do work in the database; return its result, or None if the database is unavailable.

        Args:
            part: which part of the ledger's work it is; whoever does a part that failed tries it again.
            work: the work.
        """
        try:
            result = work()
        except DatabaseUnavailable as error:
            level = self._log.error if self.reachable else self._log.debug
            level(
                "The database does not take the ledger's rows, they wait in the spool: {reason}",
                reason=str(error),
                **LEDGER_ALERT,
            )
            self._failing.add(part)
            return None
        if part in self._failing:
            self._failing.discard(part)
            if self.reachable:
                self._log.info("The database takes the ledger's rows again", **LEDGER_ALERT)
        return result

    def _write(self, rows: Sequence[UsageRow], rejected: list[_Rejected]) -> list[Written]:
        """Write rows; find those that the database rejects by bisection."""
        if not rows:
            return []
        try:
            return [self._store.write(rows)]
        except RowsRejected as error:
            if len(rows) == 1:
                return self._write_cleaned(rows[0], rejected, str(error))
        half = len(rows) // 2
        first = self._write(rows[:half], rejected)
        return first + self._write(rows[half:], rejected)

    def _write_cleaned(self, row: UsageRow, rejected: list[_Rejected], reason: str) -> list[Written]:
        try:
            return [self._store.write([clean(row)])]
        except RowsRejected:
            rejected.append(_Rejected(row, reason))
            return []

    def _quarantine(self, damaged: Sequence[bytes], rejected: Sequence[_Rejected]) -> bool:
        """Quarantine lines and rows; return whether that succeeded."""
        lines = [*damaged, *(encode_rows([each.row])[:-1] for each in rejected)]
        try:
            path = str(quarantine(self._spool.directory, self._spool.name, lines))
        except OSError as error:
            level = self._log.debug if self._quarantine_failed else self._log.critical
            level(
                "The ledger cannot set aside what is damaged or unfit: {reason}", reason=error.strerror, **LEDGER_ALERT
            )
            self._quarantine_failed = True
            return False
        self._quarantine_failed = False
        self.quarantined += len(lines)
        if damaged:
            self._log.critical(
                "Lines of the ledger's spool are damaged: {count}, kept in {path}",
                count=len(damaged),
                path=path,
                **LEDGER_ALERT,
            )
        if rejected:
            self._log.critical(
                "Rows of the ledger are refused by the database ({reason}): {count}, kept in {path}",
                count=len(rejected),
                **LEDGER_ALERT,
                reason=rejected[0].reason,
                path=path,
            )
        return True
