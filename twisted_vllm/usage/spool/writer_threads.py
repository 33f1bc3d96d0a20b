"""The threads that write the ledger: one moves rows, another syncs the spool."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twisted_vllm.config.alert_types import LEDGER_ALERT
from twisted_vllm.usage.interfaces import (
    BEGINNING,
    DatabaseUnavailable,
    HistoryChanged,
    IJointAccounts,
    ISpoolAccounts,
    IUsageStore,
    Position,
    SpendUpdate,
)
from twisted_vllm.usage.spool.batch_writer import BatchWriter
from twisted_vllm.usage.spool.followed import FollowedSpool
from twisted_vllm.usage.spool.queue import Batch
from twisted_vllm.usage.spool.recovery import OrphanRecovery
from twisted_vllm.usage.spool.sync_thread import SyncThread

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


@attrs.frozen
class Pending:
    """What the database does not have yet.

    Attributes:
        rows: how many of this process's own rows.
        bytes: how many bytes of segments, those taken over from other processes included.
        seconds: the age of the oldest of the own rows; 0 without any.
        gathered: how many rows the database has whose sums it lacks.
        gathered_seconds: how long the oldest of these waits; 0 without any.
    """

    rows: int
    bytes: int
    seconds: float
    gathered: int
    gathered_seconds: float


class WriterThreads:
    """The threads that move and sync rows, and what they do with the rows that other runs left.

    `start`, `stop` and `pending` belong to the reactor's thread.

    Attributes:
        batch_writer: counts what the database took, and knows whether it is reachable.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        spool: FollowedSpool,
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
            spool: the spool of this process; it must be open when the threads start.
            store: where rows go.
            on_committed: called after each transaction with the new spend of the payers.
            retention: the age in seconds at which rows are deleted; None keeps all rows.
            now: Unix seconds.
            interval: how long rows are collected, in seconds.
        """
        self._reactor = reactor
        self._own = spool
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
        self._syncing = SyncThread(spool)
        self._deadline = float("inf")
        #: what the rows of the name that is recovered add up to
        self._orphans: ISpoolAccounts | None = None
        #: names under which this process wrote before, and how far the spend of each was told
        self._former_names: dict[str, Position] = {}
        self._next_recovery = self._next_deletion = 0.0
        #: how many parts of the work were done
        self._moved = 0
        #: whether new spend is told
        self._tells = True

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
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()
        self._syncing.start()

    def pending(self) -> Pending:
        """Return what the database does not have yet."""
        raise NotImplementedError

    def _gathered(self, *accounts: ISpoolAccounts | IJointAccounts | None) -> tuple[int, float]:
        """Return how many rows the database has whose sums it lacks, and how long the oldest of these waits."""
        waiting = [each.waiting for each in (*accounts, self._orphans) if each is not None]
        since = min((each.since for each in waiting if each.since is not None), default=None)
        return sum(each.rows for each in waiting), 0.0 if since is None else max(time.monotonic() - since, 0.0)

    def stop(self) -> Deferred[None]:
        """Try once to move the rest, for at most `STOP_SECONDS`, and close the spool, which keeps the remaining rows.

        The Deferred fires with None.
        """
        self._own.flush()
        self._deadline = time.monotonic() + STOP_SECONDS
        self._stopping.set()
        self._syncing.stop()
        self._wake.set()
        done: Deferred[None] = Deferred()
        # In a thread: joining the others would block the reactor.
        threading.Thread(target=self._join_threads, args=(done,), name="ledger-stop", daemon=True).start()
        return done

    def _join_threads(self, done: Deferred[None]) -> None:
        # a little longer than the thread's own deadline, at which it ends by itself if it can
        self._syncing.join(max(self._deadline - time.monotonic(), 0.0) + 0.2)
        if self._thread is not None:
            self._thread.join(max(self._deadline - time.monotonic(), 0.0) + 0.2)
        self._reactor.callFromThread(self._close_spool, done)

    def _close_spool(self, done: Deferred[None]) -> None:
        self._before_close()
        rows = self.pending().rows
        try:
            self._own.close()
        except OSError as error:
            # The directory may be gone; the process ends anyway.
            self._log.error("The ledger's spool cannot be closed in order: {reason}", reason=error.strerror)
        if rows:
            self._log.warn("{rows} rows of the ledger stay in the spool for the next start", rows=rows)
        done.callback(None)

    def _before_close(self) -> None:
        """Put back what was taken, once the threads have ended."""

    # the writer's thread

    def _run(self) -> None:
        backoff = 0.0
        while True:
            is_last = self._stopping.is_set()
            try:
                succeeded = self._turn(is_last=is_last)
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
            if not self._must_hurry:
                self._wake.wait(self._seconds_until_next)
                self._wake.clear()
        self._recovery.close()
        self._store.close()

    def _turn(self, *, is_last: bool) -> bool:
        """Do what there is to do; return whether that succeeded."""
        return self.move_all(force=is_last)

    def move_all(self, *, force: bool = False) -> bool:
        """Move the pending rows, and write what is due of what they add up to.

        Args:
            force: whether everything is due: nothing stays in the spool.

        Returns:
            Whether the database took it.
        """
        raise NotImplementedError

    @property
    def _must_hurry(self) -> bool:
        """Whether a whole batch waits."""
        raise NotImplementedError

    @property
    def _seconds_until_next(self) -> float:
        """How long rows are collected from now on, in seconds."""
        return self._interval

    def _begin_anew(self) -> bool:
        """Go on after the database was found not to be as this process left it; return whether that succeeded."""
        raise NotImplementedError

    def _pause(self, began: float) -> None:
        """Leave the database to others for a moment, after a part that began at a time."""
        if not self._stopping.is_set():
            share = PAUSE_SHARE if self._store.single_writer else 0.0
            self._stopping.wait(max(PAUSE, share * (time.monotonic() - began)))

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
            self._begin_anew()
            return False

    def _recover_part(self) -> bool:
        """Move a batch of the rows that another process left, or write a part of what they add up to."""
        recovery, accounts = self._recovery, self._orphans
        if accounts is None:
            accounts = self._open_accounts(recovery.name, self._former_names.get(recovery.name))
            if accounts is None:
                return False
            self._orphans = accounts
        more = self._flush(accounts, force=False)
        if more is None:
            return False
        recovery.release(accounts.kept_from)
        if more:
            return True
        batch = self._next_orphans(accounts)
        if batch is None:
            return False
        if batch:
            if not self._move(batch[0], accounts):
                return False
            recovery.acknowledge(batch[0])
            return True
        more = self._flush(accounts, force=True)
        if more is None:
            return False
        if more:
            return True
        recovery.remove_all()
        # Last: without its marks, a segment that is left would be added up again.
        if not recovery.is_skipped and not self._close(accounts):
            return False
        self._former_names.pop(recovery.name, None)
        self._orphans = None
        recovery.next_name()
        self._moved += 1
        return True

    def _close(self, accounts: ISpoolAccounts) -> bool:
        """Remove the marks of a spool; return whether the database took it."""

        def close() -> bool:
            accounts.close()
            return True

        return self.batch_writer.reach("marks", close) is not None

    def _next_orphans(self, accounts: ISpoolAccounts) -> list[Batch] | None:
        """Return the next batch of the name that is recovered, if there is one; None if it must be retried."""

        def read() -> list[Batch]:
            found = self._recovery.next_batch(BATCH_ROWS, accounts.boundaries, self._store.missing)
            return [] if found is None else [found]

        return self.batch_writer.reach("orphans", read)

    def _open_accounts(self, name: str, told_to: Position | None) -> ISpoolAccounts | None:
        """Open accounts; `told_to` is None for those of another process, None is returned for a retry."""
        own, told_to = told_to is not None, told_to or BEGINNING
        return self.batch_writer.reach("marks", lambda: self._store.open_accounts(name, own=own, told_to=told_to))

    def _move(self, batch: Batch, accounts: ISpoolAccounts) -> bool:
        written = self.batch_writer.write(batch)
        if written is None:
            return False
        accounts.add(written, batch.position)
        self._moved += 1
        return True

    def _flush(self, accounts: ISpoolAccounts | IJointAccounts, *, force: bool, tells: bool = True) -> bool | None:
        """Write a part of what was gathered; return whether there is more, or None if it must be retried.

        Args:
            accounts: have it.
            force: whether it is due whatever there is.
            tells: whether to tell the new spend.
        """
        result = self.batch_writer.reach(f"sums of {accounts.name}", lambda: accounts.flush(force=force))
        if result is None:
            return None
        more, updates = result
        if more:
            self._moved += 1
        if updates and tells and self._tells:
            self._reactor.callFromThread(self._on_committed, updates)
        return more

    def _followed(self) -> Collection[str]:
        """Return the names that are read while their processes live."""
        return ()

    def _claim_orphans(self) -> None:
        try:
            self._recovery.claim(self._own.name, self._followed())
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
