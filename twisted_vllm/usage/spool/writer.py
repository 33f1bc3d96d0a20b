"""Moves ledger rows from the spool to the database, in a thread with its own connection.

It shares only the database's locks with admin requests, and holds them for milliseconds. While the database is
unavailable, rows wait in the spool and nothing else is affected.

Rows are stored at once. What they add up to is gathered, and written when enough time has passed; until then the spool
keeps the rows, so that a crash loses nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twisted_vllm.config.alert_types import LEDGER_ALERT
from twisted_vllm.histogram import Histogram
from twisted_vllm.usage.interfaces import (
    DatabaseUnavailable,
    HistoryChanged,
    ISpoolAccounts,
    IUsageStore,
    RowsRejected,
    SpendUpdate,
    Written,
)
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool.format import clean, encode_rows
from twisted_vllm.usage.spool.queue import Batch
from twisted_vllm.usage.spool.recovery import OrphanRecovery
from twisted_vllm.usage.spool.spool import Spool

#: The maximum time in seconds, and the maximum number of rows, to collect for one transaction. Fewer rows would write
#: the same sums, and sync the disk, more often; more rows gain little.
INTERVAL = 0.5
BATCH_ROWS = 4_000
#: The pause between two transactions, in seconds and as a share of the first one's duration: other connections poll for
#: SQLite's lock and must find it free.
PAUSE = 0.005
PAUSE_SHARE = 0.33
#: the first and the longest wait after the database was unavailable, in seconds
FIRST_BACKOFF = 0.1
MAX_BACKOFF = 2.0
#: seconds between two searches for orphaned segments, and between two looks for old rows
RECOVERY_SECONDS = 5.0
RETENTION_SECONDS = 600.0
#: how long the process waits at its end for the last rows to reach the database, in seconds
STOP_SECONDS = 2.0

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
        reachable: whether the database took the last batch.
        durations: seconds of batches, those that failed included.
    """

    _log = Logger()

    def __init__(self, spool: Spool, store: IUsageStore) -> None:
        """Set up.

        Args:
            spool: provides the directory and the name of the quarantine file.
            store: the database.
        """
        self.committed = self.quarantined = 0
        self.reachable = True
        self.durations = Histogram(BUCKETS)
        self._quarantine_failed = False
        self._spool = spool
        self._store = store

    def write(self, batch: Batch) -> list[Written] | None:
        """Write a batch; return the rows that the database has and that count, or None if it must be retried.

        However often a batch is retried, its rows are counted once and quarantined once.
        """
        rejected: list[_Rejected] = []
        began = time.monotonic()
        written = self.reach(lambda: self._write(batch.rows, rejected, only_new=batch.version < 2))
        self.durations.observe(time.monotonic() - began)
        # Only now: until the database has all other rows, the whole batch may be retried.
        if written is None or ((batch.damaged or rejected) and not self._quarantine(batch.damaged, rejected)):
            return None
        self.committed += len(batch.rows) - len(rejected)
        return written

    def reach(self, work: Callable[[], T]) -> T | None:
        """Do work in the database; return its result, or None if the database is unavailable."""
        try:
            result = work()
        except DatabaseUnavailable as error:
            level = self._log.error if self.reachable else self._log.debug
            level(
                "The database does not take the ledger's rows, they wait in the spool: {reason}",
                reason=str(error),
                **LEDGER_ALERT,
            )
            self.reachable = False
            return None
        if not self.reachable:
            self.reachable = True
            self._log.info("The database takes the ledger's rows again", **LEDGER_ALERT)
        return result

    def _write(self, rows: Sequence[UsageRow], rejected: list[_Rejected], *, only_new: bool) -> list[Written]:
        """Write rows; find those that the database rejects by bisection."""
        if not rows:
            return []
        try:
            written = self._store.write(rows, only_new=only_new)
            return [] if written is None else [written]
        except RowsRejected as error:
            if len(rows) == 1:
                return self._write_cleaned(rows[0], rejected, str(error), only_new=only_new)
        half = len(rows) // 2
        first = self._write(rows[:half], rejected, only_new=only_new)
        return first + self._write(rows[half:], rejected, only_new=only_new)

    def _write_cleaned(self, row: UsageRow, rejected: list[_Rejected], reason: str, *, only_new: bool) -> list[Written]:
        try:
            written = self._store.write([clean(row)], only_new=only_new)
        except RowsRejected:
            rejected.append(_Rejected(row, reason))
            return []
        return [] if written is None else [written]

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


@attrs.frozen
class Pending:
    """What the database does not have yet.

    Attributes:
        rows: how many of this process's own rows.
        bytes: how many bytes of segments, those taken over from other processes included.
        seconds: the age of the oldest of the own rows; 0 without any.
    """

    rows: int
    bytes: int
    seconds: float


class LedgerWriter:
    """The threads that move and sync rows. `start` and `stop` belong to the reactor's thread.

    Attributes:
        batch_writer: counts what the database took, and knows whether it is reachable.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        spool: Spool,
        store: IUsageStore,
        on_committed: Callable[[Sequence[SpendUpdate]], None],
        *,
        retention: float | None = None,
        now: Callable[[], float] = time.time,
        interval: float = INTERVAL,
    ) -> None:
        """Set up; `start` starts the threads.

        Args:
            reactor: `on_committed` is called in its thread.
            spool: where rows come from; it must be open when the threads start.
            store: where rows go.
            on_committed: called after each transaction with the new spend of the payers.
            retention: the age in seconds at which rows are deleted; None keeps all rows.
            now: Unix seconds.
            interval: how long rows are collected, in seconds.
        """
        self._reactor = reactor
        self._spool = spool
        self._store = store
        self.batch_writer = BatchWriter(spool, store)
        self._on_committed = on_committed
        self.reconfigure(retention)
        self._now = now
        self._interval = interval
        self._recovery = OrphanRecovery(spool.directory)
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._sync_thread: threading.Thread | None = None
        self._sync_failed = False
        self._deadline = float("inf")
        #: a batch that was taken and is not acknowledged
        self._batch: Batch | None = None
        #: what the rows of this process's spool add up to, and those of the name that is recovered
        self._accounts: ISpoolAccounts | None = None
        self._orphans: ISpoolAccounts | None = None
        #: names under which this process wrote before
        self._former_names: set[str] = set()
        self._next_recovery = self._next_deletion = 0.0
        #: how many parts of the work were done
        self._moved = 0

    def reconfigure(self, retention: float | None) -> None:
        """Keep rows for another time from now on; the argument is the constructor's."""
        self._retention = retention

    def recover(self, seconds: float) -> None:
        """Move the rows that former runs left, in the calling thread, so that their cost counts before more is spent.

        Args:
            seconds: the approximate time limit; the rest is moved after `start`.
        """
        deadline = time.monotonic() + seconds
        self._claim_orphans()
        while time.monotonic() < deadline and self._recovery.name:
            if not self._guarded(self._recover_part):
                break
        # The writer's thread opens a connection of its own.
        self._store.close()

    def start(self) -> None:
        """Start to move rows, former runs' rows first."""
        self._spool.notify_at(BATCH_ROWS, self._wake.set)
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._sync_thread = threading.Thread(target=self._keep_syncing, name="ledger-sync", daemon=True)
        self._thread.start()
        self._sync_thread.start()

    def pending(self) -> Pending:
        """Return what the database does not have yet."""
        own = self._spool.backlog()
        age = max(self._now() - own.oldest / 1e6, 0.0) if own.oldest is not None else 0.0
        return Pending(own.rows, own.bytes + self._recovery.bytes_left, age)

    def stop(self) -> Deferred[None]:
        """Try once to move the rest, for at most `STOP_SECONDS`, and close the spool, which keeps the remaining rows.

        The Deferred fires with None.
        """
        self._spool.flush()
        self._deadline = time.monotonic() + STOP_SECONDS
        self._stopping.set()
        self._wake.set()
        done: Deferred[None] = Deferred()
        # In a thread: joining the others would block the reactor.
        threading.Thread(target=self._join_threads, args=(done,), name="ledger-stop", daemon=True).start()
        return done

    def _join_threads(self, done: Deferred[None]) -> None:
        for thread in (self._sync_thread, self._thread):
            if thread is not None:
                # a little longer than the thread's own deadline, at which it ends by itself if it can
                thread.join(max(self._deadline - time.monotonic(), 0.0) + 0.2)
        self._reactor.callFromThread(self._close_spool, done)

    def _close_spool(self, done: Deferred[None]) -> None:
        batch, self._batch = self._batch, None
        if batch is not None:
            self._spool.requeue(batch)
        rows = self._spool.backlog().rows
        try:
            self._spool.close()
        except OSError as error:
            # The directory may be gone; the process ends anyway.
            self._log.error("The ledger's spool cannot be closed in order: {reason}", reason=error.strerror)
        if rows:
            self._log.warn("{rows} rows of the ledger stay in the spool for the next start", rows=rows)
        done.callback(None)

    # the writer's thread

    def _run(self) -> None:
        backoff = 0.0
        while True:
            is_last = self._stopping.is_set()
            try:
                succeeded = self.move_all(force=is_last)
            except Exception:
                # The rows are in the spool, and the next turn retries.
                self._log.failure("The ledger's writer failed")
                succeeded = False
            if is_last:
                break
            if not succeeded:
                backoff = min(max(2 * backoff, FIRST_BACKOFF), MAX_BACKOFF)
                self._stopping.wait(backoff)
                continue
            backoff = 0.0
            if self._spool.backlog().rows < BATCH_ROWS:
                self._wake.wait(self._interval)
                self._wake.clear()
        self._recovery.close()
        self._store.close()

    def move_all(self, *, force: bool = False) -> bool:
        """Run one turn of the writer's thread: move the pending rows, and write what is due of what they add up to.

        Args:
            force: whether everything is due: nothing stays in the spool.

        Returns:
            Whether the database took it.
        """
        if self._batch is None and time.monotonic() >= self._next_recovery:
            self._next_recovery = time.monotonic() + RECOVERY_SECONDS
            self._claim_orphans()
        # Rows that arrive meanwhile wait for the next turn, to avoid an endless series of small transactions.
        left = self._spool.backlog().rows
        while time.monotonic() < self._deadline:
            began = time.monotonic()
            moved = self._moved
            if left > 0:
                before = self._spool.backlog().rows
                if not self._guarded(self._move_own):
                    return False
                left -= max(before - self._spool.backlog().rows, 1)
            elif self._recovery.name and not self._guarded(self._recover_part):
                return False
            if not self._guarded(lambda: self._flush_own(force=force)):
                return False
            if moved == self._moved:
                return self._finish() if force else self._delete_old()
            if not self._stopping.is_set():
                share = PAUSE_SHARE if self._store.single_writer else 0.0
                self._stopping.wait(max(PAUSE, share * (time.monotonic() - began)))
        return True

    def _guarded(self, part: Callable[[], bool]) -> bool:
        """Do a part of a turn; return whether the database took it."""
        try:
            return part()
        except HistoryChanged as error:
            self._log.warn(
                "The database is not as the ledger left it, so the rows that are left in the spool are read again: "
                "{reason}",
                reason=str(error),
                **LEDGER_ALERT,
            )
            self._read_again()
            return False

    def _move_own(self) -> bool:
        """Move a batch of this process's rows."""
        batch = self._batch or self._spool.next_batch(BATCH_ROWS)
        if batch is None:
            return True
        self._batch = batch
        if self._accounts is None:
            self._accounts = self._open_accounts(self._spool.name, own=True)
        if self._accounts is None or not self._move(batch, self._accounts):
            return False
        self._batch = None
        self._spool.acknowledge(batch)
        if batch.segment is None:
            # They are in no segment that would keep them for the sums.
            return self._flush_own(force=True)
        return True

    def _flush_own(self, *, force: bool) -> bool:
        """Write a part of what this process's rows add up to, if it is due."""
        accounts = self._accounts
        if accounts is None:
            return True
        if self._flush(accounts, force=force) is None:
            return False
        self._spool.release(accounts.kept_from)
        return True

    def _recover_part(self) -> bool:
        """Move a batch of the rows that another process left, or write a part of what they add up to."""
        recovery, accounts = self._recovery, self._orphans
        if accounts is None:
            accounts = self._open_accounts(recovery.name, own=recovery.name in self._former_names)
            if accounts is None:
                return False
            self._orphans = accounts
        more = self._flush(accounts, force=False)
        if more is None:
            return False
        if more:
            return True
        batch = recovery.next_batch(BATCH_ROWS, accounts.boundaries)
        if batch is not None:
            if not self._move(batch, accounts):
                return False
            recovery.acknowledge(batch)
            return True
        more = self._flush(accounts, force=True)
        if more is None:
            return False
        if not more:
            recovery.remove_all()
            if not recovery.is_skipped:
                # Last: without its marks, a segment that is left would be added up again.
                self.batch_writer.reach(accounts.close)
            self._orphans = None
            recovery.next_name()
        self._moved += 1
        return True

    def _open_accounts(self, name: str, *, own: bool) -> ISpoolAccounts | None:
        return self.batch_writer.reach(lambda: self._store.open_accounts(name, own=own))

    def _move(self, batch: Batch, accounts: ISpoolAccounts) -> bool:
        written = self.batch_writer.write(batch)
        if written is None:
            return False
        accounts.add(written, batch.position)
        self._moved += 1
        return True

    def _flush(self, accounts: ISpoolAccounts, *, force: bool) -> bool | None:
        """Write a part of what was gathered; return whether there is more, or None if it must be retried."""
        result = self.batch_writer.reach(lambda: accounts.flush(force=force))
        if result is None:
            return None
        more, updates = result
        if more:
            self._moved += 1
        if updates:
            self._reactor.callFromThread(self._on_committed, updates)
        return more

    def _read_again(self) -> None:
        """Have the rows that are left in the spool taken over, like those of another run."""
        batch, self._batch = self._batch, None
        if batch is not None:
            self._spool.requeue(batch)
        # What was read of others is taken over again too.
        self._recovery.close()
        self._orphans = self._accounts = None
        self._next_recovery = 0.0
        name = self._spool.name
        try:
            self._spool.begin_anew()
        except OSError as error:
            self._log.error("The ledger's spool cannot be begun anew: {reason}", reason=error.strerror, **LEDGER_ALERT)
            return
        self._former_names.add(name)

    def _finish(self) -> bool:
        """Remove the marks of this process's spool, if nothing is left in it."""
        accounts = self._accounts
        if accounts is None or not self._spool.finish():
            return True
        self._spool.release(accounts.kept_from)
        self._accounts = None
        self.batch_writer.reach(accounts.close)
        return True

    def _claim_orphans(self) -> None:
        try:
            self._recovery.claim()
        except OSError as error:
            self._log.error("The ledger's spool cannot be searched: {reason}", reason=error.strerror, **LEDGER_ALERT)

    def _delete_old(self) -> bool:
        if self._retention is None or time.monotonic() < self._next_deletion or self._stopping.is_set():
            return True
        try:
            self._store.drop_before(int((self._now() - self._retention) * 1e6))
        except DatabaseUnavailable:
            return False
        self._next_deletion = time.monotonic() + RETENTION_SECONDS
        return True

    # the thread that syncs

    def _keep_syncing(self) -> None:
        while not self._stopping.wait(1.0):
            try:
                self._spool.sync()
            except OSError as error:
                if not self._sync_failed:
                    self._log.critical(
                        "The ledger's spool cannot be synced: {reason}", reason=error.strerror, **LEDGER_ALERT
                    )
                self._sync_failed = True
            else:
                self._sync_failed = False
