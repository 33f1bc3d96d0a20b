"""The thread that moves the ledger's rows from the spool to the database.

It has a connection of its own and shares nothing with administrative acts but the database's locks, which it holds for
some milliseconds at a time. While the database is away the rows wait in the spool, and nobody else notices.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twisted_vllm.usage.interfaces import DatabaseUnavailable, IUsageStore, SpendUpdate
from twisted_vllm.usage.spool.batch_writer import BatchWriter
from twisted_vllm.usage.spool.orphans import OrphanRecovery
from twisted_vllm.usage.spool.queue import Batch
from twisted_vllm.usage.spool.spool import Spool

#: how long rows are gathered, in seconds, or until there are so many, which go into one transaction. Fewer rows would
#: have the same sums written, and the disk asked, more often; more gain next to nothing.
INTERVAL = 0.5
BATCH_ROWS = 4_000
#: between two transactions, in seconds and as a part of the first one's time: who waits for SQLite's lock asks for it
#: now and then, and must find it free
PAUSE = 0.005
PAUSE_SHARE = 0.33
#: the waiting times after a database that is away, in seconds: the first, and the longest
FIRST_BACKOFF = 0.1
MAX_BACKOFF = 2.0
#: between two looks for what other processes left, and between two for rows that are too old, in seconds
LOOK_SECONDS = 5.0
RETENTION_SECONDS = 600.0
#: how many rows that are too old go in one transaction
DELETED_ROWS = 500
#: how long the end of the process waits for the last rows to reach the database, in seconds
STOP_SECONDS = 2.0


@attrs.frozen
class Pending:
    """What the database does not have yet.

    Attributes:
        rows: this process's own rows.
        bytes: of files, those of other processes that this one took over included.
        seconds: how old the oldest of the own rows is; 0 without any.
    """

    rows: int
    bytes: int
    seconds: float


class LedgerWriter:
    """Moves rows while it runs; `start` and `stop` belong to the reactor's thread.

    Attributes:
        batch_writer: counts what the database took, and knows whether it is there.
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
        """Prepare; nothing runs before `start`.

        Args:
            reactor: in whose thread `on_committed` is called.
            spool: where the rows come from; it must be open by the start.
            store: where they go.
            on_committed: is told after each transaction what it changed of the scopes' spending.
            retention: the age in seconds from which on rows are deleted; None keeps all.
            now: Unix seconds.
            interval: how long rows are gathered, in seconds.
        """
        self._reactor = reactor
        self._spool = spool
        self._store = store
        self.batch_writer = BatchWriter(spool, store)
        self._on_committed = on_committed
        self._retention = retention
        self._now = now
        self._interval = interval
        self._abandoned = OrphanRecovery(spool.directory)
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._syncer: threading.Thread | None = None
        self._sync_failed = False
        self._deadline = float("inf")
        #: a batch that was taken and is not committed
        self._held: Batch | None = None
        self._next_look = self._next_deletion = 0.0

    def take_over(self, seconds: float) -> None:
        """Move what other runs left, in the calling thread: what was spent by then is known before more is.

        Args:
            seconds: about how long that may take; what is left then is moved once this has started.
        """
        deadline = time.monotonic() + seconds
        self._look()
        while time.monotonic() < deadline:
            self._held = self._held or self._abandoned.take(BATCH_ROWS)
            if self._held is None or not self._move(self._held):
                break
            self._held = None
        # the next connection is the thread's
        self._store.close()

    def start(self) -> None:
        """Begin to move rows, those that are left from before first."""
        self._spool.call_at(BATCH_ROWS, self._wake.set)
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._syncer = threading.Thread(target=self._keep_syncing, name="ledger-sync", daemon=True)
        self._thread.start()
        self._syncer.start()

    def pending(self) -> Pending:
        """Return what the database does not have yet."""
        own = self._spool.backlog()
        age = max(self._now() - own.oldest / 1e6, 0.0) if own.oldest is not None else 0.0
        return Pending(own.rows, own.bytes + self._abandoned.bytes_held, age)

    def stop(self) -> Deferred[None]:
        """Try once to move what is left, within `STOP_SECONDS`, and close the spool; the rest stays in it.

        The Deferred fires with None.
        """
        self._spool.flush()
        self._deadline = time.monotonic() + STOP_SECONDS
        self._stopping.set()
        self._wake.set()
        done: Deferred[None] = Deferred()
        # a thread of its own: joining others would hold the reactor
        threading.Thread(target=self._finish, args=(done,), name="ledger-stop", daemon=True).start()
        return done

    def _finish(self, done: Deferred[None]) -> None:
        for thread in (self._syncer, self._thread):
            if thread is not None:
                # a little longer than the thread's own deadline, at which it ends by itself if it can
                thread.join(max(self._deadline - time.monotonic(), 0.0) + 0.2)
        self._reactor.callFromThread(self._finished, done)

    def _finished(self, done: Deferred[None]) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._spool.put_back(held)
        rows = self._spool.backlog().rows
        try:
            self._spool.close()
        except OSError as error:
            # the directory may have gone; the process ends all the same
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
                is_away = not self._move_all()
            except Exception:
                # whatever it is: the rows are in the spool, and the next turn tries again
                self._log.failure("The ledger's writer failed")
                is_away = True
            if is_last:
                break
            backoff = min(max(2 * backoff, FIRST_BACKOFF), MAX_BACKOFF) if is_away else 0.0
            if is_away:
                self._stopping.wait(backoff)
            elif self._spool.backlog().rows < BATCH_ROWS:
                self._wake.wait(self._interval)
                self._wake.clear()
        self._abandoned.close()
        self._store.close()

    def _move_all(self) -> bool:
        """Move what there is; return whether the database took it."""
        if self._held is None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_SECONDS
            self._look()
        # Rows that come meanwhile wait for the next turn: transactions of a few rows would never end.
        goal = self._spool.backlog().rows
        while time.monotonic() < self._deadline:
            batch = self._held or (self._spool.take(BATCH_ROWS) if goal > 0 else None)
            batch = batch or self._abandoned.take(BATCH_ROWS)
            if batch is None:
                return self._delete_old()
            self._held = batch
            began = time.monotonic()
            if not self._move(batch):
                return False
            self._held = None
            goal -= len(batch.rows) if batch.own else 0
            if not self._stopping.is_set():
                share = PAUSE_SHARE if self._store.single_writer else 0.0
                self._stopping.wait(max(PAUSE, share * (time.monotonic() - began)))
        return True

    def _look(self) -> None:
        try:
            self._abandoned.look()
        except OSError as error:
            self._log.error("The ledger's spool cannot be searched: {reason}", reason=error.strerror)

    def _move(self, batch: Batch) -> bool:
        spent = self.batch_writer.move(batch)
        if spent is None:
            return False
        (self._spool if batch.own else self._abandoned).commit(batch)
        if spent:
            self._reactor.callFromThread(self._on_committed, spent)
        return True

    def _delete_old(self) -> bool:
        if self._retention is None or time.monotonic() < self._next_deletion or self._stopping.is_set():
            return True
        try:
            deleted = self._store.delete_before(int((self._now() - self._retention) * 1e6), DELETED_ROWS)
        except DatabaseUnavailable:
            return False
        # More of them are likely where it was full; they go on while nothing else is to do.
        self._next_deletion = time.monotonic() + (0.0 if deleted == DELETED_ROWS else RETENTION_SECONDS)
        return True

    # the thread that syncs

    def _keep_syncing(self) -> None:
        while not self._stopping.wait(1.0):
            try:
                self._spool.sync()
            except OSError as error:
                if not self._sync_failed:
                    self._log.critical("The ledger's spool cannot be synced: {reason}", reason=error.strerror)
                self._sync_failed = True
            else:
                self._sync_failed = False
