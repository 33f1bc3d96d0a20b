"""Moves the rows of several processes of a machine to the database: of those that live, and of those that have ended.

One process writes for all. So rows of several processes share transactions, and a row of the sums is written once for
all of them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from twisted_vllm.config.alert_types import LEDGER_ALERT
from twisted_vllm.usage.interfaces import BEGINNING, IJointAccounts, ISpoolAccounts, IUsageStore, Position, SpendUpdate
from twisted_vllm.usage.spool.followed import FollowedSpool
from twisted_vllm.usage.spool.follower import Part, SpoolFollower
from twisted_vllm.usage.spool.joint_batch import JointBatch, read_joint
from twisted_vllm.usage.spool.queue import Batch, ended
from twisted_vllm.usage.spool.segments import segments_by_name
from twisted_vllm.usage.spool.writer_threads import (
    BATCH_ROWS,
    INTERVAL,
    RECOVERY_SECONDS,
    Pending,
    WriterThreads,
)

#: how long a process may take to end that is known to have ended
ENDING_SECONDS = 5.0
#: bytes of a row, until some were read
_ROW_BYTES = 600.0
#: how full a batch shall be, and the least time to collect rows, in seconds
_FULL_SHARE = 0.9
_LEAST_SECONDS = 0.02

#: who spends: kind and id
Scope = tuple[str, str]


@attrs.define
class _CatchUp:
    """A spool whose sums and spend are not equally far, or are written in part: it is moved alone until they are."""

    spool: SpoolFollower
    accounts: ISpoolAccounts
    batch: Batch | None = None


class FollowingWriter(WriterThreads):
    """Moves the rows of this process and of its siblings, which it reads from their spools."""

    def __init__(
        self,
        reactor: Any,
        spool: FollowedSpool,
        store: IUsageStore,
        on_committed: Callable[[Sequence[SpendUpdate]], None],
        on_history_changed: Callable[[], None],
        *,
        retention: float | None = None,
        now: Callable[[], float] = time.time,
        interval: float = INTERVAL,
    ) -> None:
        """Set up.

        Args:
            reactor: as for `WriterThreads`, likewise all that is not told here.
            spool: as there.
            store: as there.
            on_committed: as there. It is not called while `move_to` works.
            on_history_changed: called in the reactor's thread when the database was found to be another one.
            retention: as there.
            now: as there.
            interval: as there.
        """
        super().__init__(reactor, spool, store, on_committed, retention=retention, now=now, interval=interval)
        self._on_history_changed = on_history_changed
        #: what the reactor's thread wants
        self._new_names: deque[str] = deque()
        self._work: deque[tuple[Callable[[], bool], Deferred[None]]] = deque()
        self._is_held = False
        #: all spools that are read, by name; those that are not in the accounts yet; those that are moved alone
        self._spools: dict[str, SpoolFollower] = {}
        self._joining: list[SpoolFollower] = []
        self._catching_up: dict[str, _CatchUp] = {}
        self._accounts: IJointAccounts | None = None
        self._joint: JointBatch | None = None
        #: where the rows end that are in the accounts, by the spool's name
        self._ends: dict[str, Position] = {}
        #: up to where spools are read; None for all that there is
        self._limits: Mapping[str, Position] | None = None
        self._turns = 0
        self._row_bytes = _ROW_BYTES
        #: when it was looked for rows, and how many bytes of them came in a second before
        self._looked_at = time.monotonic()
        self._bytes_a_second = 0.0
        #: about when the request of the oldest row ended that is not moved, in microseconds since 1970
        self._oldest = 0

    # the reactor's thread

    def start(self) -> None:
        """Start to move rows, this process's own too."""
        self.follow(self._own.name)
        super().start()

    def follow(self, name: str) -> None:
        """Read a spool from now on, until its process has ended and all its rows are moved. Idempotent."""
        self._new_names.append(name)
        self._wake.set()

    def hold(self) -> Deferred[None]:
        """Move no more rows until `go_on`; fires once none is being moved."""
        self._is_held = True
        return self._do(lambda: True)

    def move_to(self, ends: Mapping[str, Position], ended: Collection[str] = ()) -> Deferred[None]:
        """Move rows and what they add up to, up to these positions, while held; fires once the database has all.

        Args:
            ends: by the spool's name. What processes left that have ended is moved as well; of others nothing is.
            ended: names of processes that have ended, or are about to: they are waited for, for some seconds.
        """
        deadline = time.monotonic() + ENDING_SECONDS
        return self._do(lambda: self._have_ended(ended, deadline) and self._move_to(ends))

    def spend_of(
        self, scopes: Sequence[Scope], found: Callable[[Mapping[Scope, tuple[int, int]]], None]
    ) -> Deferred[None]:
        """Read what some have spent, while held; fires once `found` was called with what `IUsageStore.spend_of` tells.

        Args:
            scopes: who spends.
            found: called in the reactor's thread.
        """

        def work() -> bool:
            result = self.batch_writer.reach("spend", lambda: self._store.spend_of(scopes))
            if result is None:
                return False
            self._reactor.callFromThread(found, result)
            return True

        return self._do(work)

    def go_on(self) -> None:
        """Move rows again. Idempotent."""
        self._is_held = False
        self._wake.set()

    def pending(self) -> Pending:
        """Return what the database does not have yet; the rows are an estimate by their bytes."""
        joint = self._joint
        taken = 0 if joint is None else len(joint.batch.rows)
        size = sum(each.bytes_left for each in list(self._spools.values())) + round(taken * self._row_bytes)
        age = max(self._now() - self._oldest / 1e6, 0.0) if size else 0.0
        alone = [each.accounts for each in list(self._catching_up.values())]
        rows, seconds = self._gathered(self._accounts, *alone)
        return Pending(round(size / self._row_bytes), size + self._recovery.bytes_left, age, rows, seconds)

    def _do(self, work: Callable[[], bool]) -> Deferred[None]:
        """Have the writer's thread do something between two turns, again and again until it returns true."""
        done: Deferred[None] = Deferred()
        self._work.append((work, done))
        self._wake.set()
        return done

    # the writer's thread

    def _turn(self, *, is_last: bool) -> bool:
        if is_last:
            self._is_held = False
        elif self._work:
            work, done = self._work[0]
            if not self._guarded(work):
                return False
            self._work.popleft()
            self._reactor.callFromThread(done.callback, None)
            return True
        elif self._is_held:
            return True
        return self.move_all(force=is_last)

    @property
    def _must_hurry(self) -> bool:
        if self._work or self._is_held:
            return bool(self._work)
        return sum(each.bytes_left for each in self._spools.values()) >= BATCH_ROWS * self._row_bytes

    @property
    def _seconds_until_next(self) -> float:
        """At most the interval; less where a batch is full before: what is left then takes a transaction of its own."""
        full = _FULL_SHARE * BATCH_ROWS * self._row_bytes / max(self._bytes_a_second, 1.0)
        return min(max(self._looked_at + full - time.monotonic(), _LEAST_SECONDS), self._interval)

    def move_all(self, *, force: bool = False) -> bool:
        """Move what the spools have; see `WriterThreads`."""
        if force:
            self._own.finish()
        self._look(ends_own=force)
        # Rows that come meanwhile wait for the next turn, to avoid an endless series of small transactions.
        while time.monotonic() < self._deadline and not self._is_held:
            began, moved = time.monotonic(), self._moved
            if not self._guarded(lambda: self._move_part(force=force)):
                return False
            if moved == self._moved:
                return True if force else self._delete_old()
            self._pause(began)
        return True

    def _move_to(self, ends: Mapping[str, Position]) -> bool:
        """Do what `move_to` says; return whether it is done."""
        self._limits, self._tells = ends, False
        try:
            self._look()
            while not self._stopping.is_set():
                began, moved = time.monotonic(), self._moved
                # What was gathered is written at once when there is nothing more to read.
                for force in (False, True):
                    if moved == self._moved and not self._move_part(force=force):
                        return False
                if moved == self._moved:
                    return True
                self._pause(began)
            return False
        finally:
            self._limits, self._tells = None, True

    def _have_ended(self, names: Collection[str], deadline: float) -> bool:
        """Return whether the processes have ended that have these spools, or do not in time."""
        self._next_recovery = 0.0
        self._look()
        late = [name for name in names if name in self._spools and not self._spools[name].has_ended]
        return not late or time.monotonic() > deadline

    def _look(self, *, ends_own: bool = False) -> None:
        """Find out what there is to read."""
        while self._new_names:
            name = self._new_names.popleft()
            if name and name not in self._spools and name not in self._recovery.names:
                self._spools[name] = spool = SpoolFollower(self._own.directory, name)
                self._joining.append(spool)
        try:
            if time.monotonic() >= self._next_recovery:
                self._next_recovery = time.monotonic() + RECOVERY_SECONDS
                for each in self._spools.values():
                    if each.name != self._own.name:
                        each.try_to_claim()
                self._claim_orphans()
            found = segments_by_name(self._own.directory)
        except OSError as error:
            self._log.error("The ledger's spool cannot be searched: {reason}", reason=error.strerror, **LEDGER_ALERT)
            return
        if not any(each.bytes_left for each in self._spools.values()):
            self._oldest = int(self._now() * 1e6)
        for each in self._spools.values():
            if ends_own and each.name == self._own.name:
                each.has_ended = True
            each.look(found.get(each.name, ()))
        now = time.monotonic()
        self._bytes_a_second = sum(each.bytes_left for each in self._spools.values()) / max(
            now - self._looked_at, 0.001
        )
        self._looked_at = now

    def _followed(self) -> Collection[str]:
        return self._spools

    def _move_part(self, *, force: bool) -> bool:
        """Do a part of the work, if there is any; return whether the database took it."""
        accounts = self._accounts
        if accounts is None:
            accounts = self._accounts = self._store.open_joint_accounts()
        moved = self._moved
        # First: while the sums cannot be written, no more rows are gathered.
        if self._flush(accounts, force=force) is None:
            return False
        while self._joining:
            if not self._join(accounts, self._joining[0]):
                return False
            del self._joining[0]
        for each in list(self._catching_up.values()):
            if not self._catch_up(accounts, each):
                return False
        if moved == self._moved and not self._move_joint(accounts):
            return False
        if not self._remove_moved(accounts):
            return False
        return moved != self._moved or not self._recovery.name or self._recover_part()

    def _joined(self) -> list[SpoolFollower]:
        """Return the spools that are in the accounts."""
        apart = {each.name for each in self._joining} | set(self._catching_up)
        return [each for name, each in self._spools.items() if name not in apart]

    def _remove_moved(self, accounts: IJointAccounts) -> bool:
        """Remove what the database has; return whether it took that."""
        for each in self._joined():
            kept_from = accounts.kept_from(each.name)
            each.release(kept_from)
            # Its last rows may be in a batch that waits.
            if each.is_read and self._joint is None and self._ends.get(each.name, BEGINNING) <= kept_from:
                each.remove_all()
                # Last: without its marks, a segment that is left would be added up again.
                if not self._leave(accounts, each.name):
                    return False
                self._forget(each)
        return True

    def _leave(self, accounts: IJointAccounts, name: str) -> bool:
        def leave() -> bool:
            accounts.leave(name)
            return True

        return self.batch_writer.reach("marks", leave) is not None

    def _forget(self, spool: SpoolFollower) -> None:
        del self._spools[spool.name]
        self._ends.pop(spool.name, None)
        spool.close()

    def _join(self, accounts: IJointAccounts, spool: SpoolFollower) -> bool:
        """Begin to read a spool, from where the database is; return whether that could be read."""
        found = self.batch_writer.reach("marks", lambda: [accounts.join(spool.name)])
        if found is None:
            return False
        [start] = found
        if start is None:
            alone = self._open_accounts(spool.name, None)
            if alone is None:
                return False
            self._catching_up[spool.name] = _CatchUp(spool, alone)
            start = alone.kept_from
        spool.begin(start)
        return True

    def _catch_up(self, joint: IJointAccounts, each: _CatchUp) -> bool:
        """Move a part of a spool alone; once its amounts are equally far, it joins the others."""
        spool, accounts = each.spool, each.accounts
        claimed = spool.give_claim()
        if claimed is not None:
            # Nobody adds to it any more.
            self._recovery.take(claimed)
            del self._catching_up[spool.name], self._spools[spool.name]
            return True
        more = self._flush(accounts, force=False, tells=False)
        if more is None:
            return False
        spool.release(accounts.kept_from)
        if more:
            return True
        left = [position for position in accounts.boundaries if position > spool.position]
        if each.batch is None and left:
            each.batch = _batch_of(spool.read(BATCH_ROWS, self._until(spool, left[0])))
        if each.batch is not None:
            if not self._move(each.batch, accounts):
                return False
            each.batch = None
            return True
        more = self._flush(accounts, force=True, tells=False)
        if more is None:
            return False
        if more:
            return True
        if accounts.boundaries[-1] > spool.position:
            # The database is ahead of what is left of the spool.
            return True
        found = self.batch_writer.reach("marks", lambda: [joint.join(spool.name)])
        if found is None:
            return False
        if found[0] is not None:
            del self._catching_up[spool.name]
        return True

    def _until(self, spool: SpoolFollower, boundary: Position | None = None) -> Position | None:
        """Return up to where a spool is read now, at a boundary at the latest; None for all that there is."""
        limits = self._limits
        limit: Position | None = None
        if limits is not None:
            limit = limits.get(spool.name)
            if limit is None and not spool.has_ended:
                # It began after the positions were asked for.
                limit = spool.position
        return min((each for each in (limit, boundary) if each is not None), default=None)

    def _move_joint(self, accounts: IJointAccounts) -> bool:
        """Move a batch of rows of all spools."""
        joint = self._joint
        if joint is None:
            self._turns += 1
            self._joint = joint = read_joint(self._joined(), self._until, self._turns)
        if joint is None:
            return True
        self._row_bytes = joint.size / len(joint.batch.rows) if joint.batch.rows else self._row_bytes
        written = self.batch_writer.write(joint.batch)
        if written is None:
            return False
        accounts.add(written, joint.ends)
        self._ends |= joint.ends
        self._joint = None
        self._moved += 1
        if joint.batch.rows:
            self._oldest = ended(joint.batch.rows[-1])
        return True

    def _begin_anew(self) -> bool:
        """Read all spools again, from where the database is now."""
        self._joint = self._accounts = self._orphans = None
        self._catching_up.clear()
        self._ends.clear()
        self._recovery.begin_again()
        self._joining = []
        for name, old in list(self._spools.items()):
            self._spools[name] = spool = old.again()
            self._joining.append(spool)
        self._next_recovery = 0.0
        self._reactor.callFromThread(self._on_history_changed)
        return True


def _batch_of(part: Part | None) -> Batch | None:
    if part is None:
        return None
    return Batch(part.rows, part.damaged, segment=part.end.segment, end=part.end.offset, own=False)
