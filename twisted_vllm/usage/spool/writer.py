"""Moves ledger rows from the spool to the database, in a thread with its own connection.

It shares only the database's locks with admin requests, and holds them for milliseconds. While the database is
unavailable, rows wait in the spool and nothing else is affected.

Rows are stored at once. What they add up to is gathered, and written when enough time has passed; until then the spool
keeps the rows, so that a crash loses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted_vllm.config.alert_types import LEDGER_ALERT
from twisted_vllm.usage.interfaces import BEGINNING, ISpoolAccounts, IUsageStore, SpendUpdate
from twisted_vllm.usage.spool.queue import Batch
from twisted_vllm.usage.spool.spool import Spool
from twisted_vllm.usage.spool.writer_threads import (
    BATCH_ROWS,
    INTERVAL,
    RECOVERY_SECONDS,
    Pending,
    WriterThreads,
)


class LedgerWriter(WriterThreads):
    """Moves the rows of this process, which it finds in memory for the most part."""

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
        """Set up; the arguments are those of `WriterThreads`."""
        super().__init__(reactor, spool, store, on_committed, retention=retention, now=now, interval=interval)
        self._spool = spool
        #: a batch that was taken and is not acknowledged
        self._batch: Batch | None = None
        #: what the rows of this process's spool add up to
        self._accounts: ISpoolAccounts | None = None
        #: whether the batch, which is in no segment, is gathered already
        self._is_gathered = False
        self._must_begin_anew = False

    def start(self) -> None:
        """Start to move rows, former runs' rows first."""
        self._spool.notify_at(BATCH_ROWS, self._wake.set)
        super().start()

    def pending(self) -> Pending:
        """Return what the database does not have yet."""
        own = self._spool.backlog()
        age = max(self._now() - own.oldest / 1e6, 0.0) if own.oldest is not None else 0.0
        rows, seconds = self._gathered(self._accounts)
        return Pending(own.rows, own.bytes + self._recovery.bytes_left, age, rows, seconds)

    def _before_close(self) -> None:
        batch, self._batch = self._batch, None
        if batch is not None:
            self._spool.requeue(batch)

    # the writer's thread

    @property
    def _must_hurry(self) -> bool:
        return self._spool.backlog().rows >= BATCH_ROWS

    def move_all(self, *, force: bool = False) -> bool:
        """Run one turn of the writer's thread: move the pending rows, and write what is due of what they add up to.

        Args:
            force: whether everything is due: nothing stays in the spool.

        Returns:
            Whether the database took it.
        """
        if self._must_begin_anew and not self._begin_anew():
            return False
        if self._batch is None and time.monotonic() >= self._next_recovery:
            self._next_recovery = time.monotonic() + RECOVERY_SECONDS
            self._claim_orphans()
        # Rows that arrive meanwhile wait for the next turn, to avoid an endless series of small transactions.
        left = self._spool.backlog().rows
        while time.monotonic() < self._deadline:
            began = time.monotonic()
            moved = self._moved
            # First: while the sums cannot be written, no more rows are gathered.
            if not self._guarded(lambda: self._flush_own(force=force)):
                return False
            if left > 0:
                before = self._spool.backlog().rows
                if not self._guarded(self._move_own):
                    return False
                left -= max(before - self._spool.backlog().rows, 1)
            elif self._recovery.name and not self._guarded(self._recover_part):
                return False
            if moved == self._moved:
                return self._finish() if force else self._delete_old()
            self._pause(began)
        return True

    def _move_own(self) -> bool:
        """Move a batch of this process's rows."""
        batch = self._batch or self._spool.next_batch(BATCH_ROWS)
        if batch is None:
            return True
        self._batch = batch
        if self._accounts is None:
            self._accounts = self._open_accounts(self._spool.name, BEGINNING)
        if self._accounts is None:
            return False
        if batch.segment is None:
            if not self._move_unsaved(batch, self._accounts):
                return False
        elif not self._move(batch, self._accounts):
            return False
        self._batch, self._is_gathered = None, False
        self._spool.acknowledge(batch)
        return True

    def _move_unsaved(self, batch: Batch, accounts: ISpoolAccounts) -> bool:
        """Move rows that are in no segment, which would keep them for the sums: write these at once, and alone."""
        if not self._is_gathered:
            if not self._flush_all(accounts) or not self._move(batch, accounts):
                return False
            self._is_gathered = True
        return self._flush_all(accounts)

    def _flush_all(self, accounts: ISpoolAccounts) -> bool:
        """Write all that was gathered; return whether the database took it."""
        while (more := self._flush(accounts, force=True)) is not False:
            if more is None:
                return False
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

    def _begin_anew(self) -> bool:
        """Write under a new name, and have what is left in the spool taken over, like the rows of another run.

        Returns:
            Whether that succeeded; if not, call it again before anything else.
        """
        self._must_begin_anew = True
        batch, self._batch, self._is_gathered = self._batch, None, False
        if batch is not None:
            self._spool.requeue(batch)
        name, accounts, orphans = self._spool.name, self._accounts, self._orphans
        try:
            former = self._spool.begin_anew()
        except OSError as error:
            self._log.error("The ledger's spool cannot be begun anew: {reason}", reason=error.strerror, **LEDGER_ALERT)
            return False
        self._must_begin_anew = False
        self._former_names[name] = BEGINNING if accounts is None else accounts.told_to
        if orphans is not None and orphans.name in self._former_names:
            self._former_names[orphans.name] = max(self._former_names[orphans.name], orphans.told_to)
        self._orphans = self._accounts = None
        # What was read of others is read again too.
        self._recovery.begin_again()
        if former is not None:
            self._recovery.take(former)
        return True

    def _finish(self) -> bool:
        """Remove the marks of this process's spool, if nothing is left in it."""
        accounts = self._accounts
        if accounts is None or not self._spool.finish():
            return True
        self._spool.release(accounts.kept_from)
        self._accounts = None
        self._close(accounts)
        return True
