"""Writes what the rows of spools add up to, when it is due."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import attrs
import msgspec
from sqlalchemy import Connection

from twisted_vllm.storage.usage.accepted import insert_accepted, insert_all
from twisted_vllm.storage.usage.account import Account, Rhythm
from twisted_vllm.storage.usage.batch import UsageBatch
from twisted_vllm.storage.usage.bulk_insert import Values
from twisted_vllm.storage.usage.gathered import GatheredSpend, GatheredSums
from twisted_vllm.storage.usage.marks import SPEND, SUMS, Mark, MarkMoved, delete_marks, move_mark, read_mark
from twisted_vllm.storage.usage.steps import Steps
from twisted_vllm.usage.interfaces import (
    HistoryChanged,
    IJointAccounts,
    ISpoolAccounts,
    Position,
    RowsRejected,
    SpendUpdate,
    Waiting,
)

T = TypeVar("T")

#: When spend, and sums, are written. Other processes learn of a budget's spend through the database. Each gathered
#: thing takes about half a kilobyte, and each row some tens of bytes.
SPEND_RHYTHM = Rhythm(5.0, 0.001, 20_000, 200_000)
SUMS_RHYTHM = Rhythm(30.0, 0.01, 40_000, 200_000)

#: rows of the sums, of the spend or look-ups in one transaction: some milliseconds of SQLite's lock
_TRANSACTION_ROWS = 2_000


class Transact(Protocol):
    """Does work in one transaction of the main database; see `UsageDatabase.transact`."""

    def __call__(self, work: Callable[[Connection], T], writes: bool) -> T: ...


@attrs.frozen
class Accounting:
    """What the accounts of all spools share.

    Attributes:
        transact: does work in a transaction.
        write_lookups: stores pairs of value and time.
        spend_steps: returns the steps that write gathered spend.
        sums_steps: likewise gathered sums.
        monotonic: a clock, in seconds.
    """

    transact: Transact
    write_lookups: Callable[[Sequence[Values]], None]
    spend_steps: Callable[[GatheredSpend], Steps]
    sums_steps: Callable[[GatheredSums], Steps]
    monotonic: Callable[[], float]


class _Accounts:
    """The spend and the sums of some spools, written together."""

    def __init__(self, spend: Mapping[str, Mark], sums: Mapping[str, Mark], accounting: Accounting) -> None:
        """Begin where the database is.

        Args:
            spend: the marks of the spend, by the spool's name.
            sums: likewise those of the sums.
            accounting: what all accounts share.
        """
        self._accounting = accounting
        now = accounting.monotonic()
        self._spend: Account[GatheredSpend] = Account(SPEND, spend, GatheredSpend, now)
        self._sums: Account[GatheredSums] = Account(SUMS, sums, GatheredSums, now)
        #: whether the cut of the spend is of rows whose spend is told as the process's own
        self._is_own = False
        #: the look-ups of the cut of the sums that are not written, and some that are being written
        self._lookups: Iterator[list[Values]] = iter(())
        self._pending_lookups: list[Values] = []

    @property
    def waiting(self) -> Waiting:
        """What is not written yet. Any thread may ask."""
        spend, sums = self._spend, self._sums
        since = [each for each in (spend.since, sums.since) if each is not None]
        return Waiting(max(spend.rows, sums.rows), min(since, default=None))

    def flush(self, *, force: bool = False) -> tuple[bool, list[SpendUpdate]]:
        """Write a part of what was gathered, if it is due; see `ISpoolAccounts`.

        Raises:
            DatabaseUnavailable, HistoryChanged: as told there.
        """
        now = self._accounting.monotonic()
        spend, sums = self._spend, self._sums
        if spend.cut is None and spend.is_due(now, SPEND_RHYTHM, force=force):
            is_own = self._next_is_own()
            spend.begin(now, self._accounting.spend_steps)
            self._is_own = is_own
        if spend.cut is not None:
            return True, self._with_amounts(self._write_part(spend))
        if sums.cut is None and sums.is_due(now, SUMS_RHYTHM, force=force):
            sums.begin(now, self._accounting.sums_steps)
            self._lookups = _in_order(sums.cut.gathered) if sums.cut is not None else iter(())
        if sums.cut is None:
            return False, []
        if not self._write_lookups():
            self._write_part(sums)
        return True, []

    def _next_is_own(self) -> bool:
        """Return whether the next spend is that of the process's own rows, and nobody was told it."""
        raise NotImplementedError

    def _kept_from(self, name: str) -> Position:
        return min(self._spend.marks[name].at, self._sums.marks[name].at)

    def _add(self, written: Sequence[UsageBatch], ends: Mapping[str, Position] | None) -> None:
        now = self._accounting.monotonic()
        self._spend.add(written, ends, now)
        self._sums.add(written, ends, now)

    def _close(self, name: str) -> None:
        self._accounting.transact(lambda connection: delete_marks(connection, name), writes=True)

    def _write_part(self, account: Account[Any]) -> list[SpendUpdate]:
        """Write some steps in one transaction; return the new spend of those whose spend it changed."""
        if account.sent is not None:
            found = self._resolve(account)
            if found is not None:
                return found
        try:
            return self._write_steps(account, accepted_only=False)
        except RowsRejected:
            # Such as a sum that is too large. It may not hold up all others, for ever.
            account.sent = None
            return self._write_steps(account, accepted_only=True)

    def _write_steps(self, account: Account[Any], *, accepted_only: bool) -> list[SpendUpdate]:
        cut = account.cut
        assert cut is not None
        most = float("inf") if account.in_one else _TRANSACTION_ROWS
        insert = insert_accepted if accepted_only else insert_all
        updates: list[SpendUpdate] = []

        def work(connection: Connection) -> Mapping[str, Mark]:
            updates.clear()
            written = 0
            done: str | None = cut.done
            for step in cut.steps.after(cut.done):
                if written >= most:
                    break
                count, changed = cut.steps.write(connection, step, insert)
                written, done = written + count, step
                updates.extend(changed)
            else:
                done = None
            account.sent = sent = account.after(done)
            # in order, so that no two processes wait for each other
            for name in sorted(sent):
                move_mark(connection, name, account.what, account.marks[name], sent[name])
            return sent

        try:
            account.committed(self._accounting.transact(work, writes=True))
        except MarkMoved:
            # Perhaps the transaction before was committed after its connection was lost.
            found = self._resolve(account)
            if found is None:
                raise HistoryChanged("its marks are others than this process made") from None
            return found
        return updates

    def _resolve(self, account: Account[Any]) -> list[SpendUpdate] | None:
        """Find out whether a transaction was committed; if so, return what it returned, else None.

        Raises:
            HistoryChanged: the database has neither its marks nor those before.
        """
        transact, cut = self._accounting.transact, account.cut
        assert cut is not None
        found = transact(
            lambda connection: {name: read_mark(connection, name, account.what) for name in cut.to}, writes=False
        )
        if all(mark == account.marks[name] for name, mark in found.items()):
            account.sent = None
            return None
        if not account.follows(found):
            raise HistoryChanged("its marks are others than this process made")
        done = next(iter(found.values())).done
        steps: list[str] = []
        for step in cut.steps.after(cut.done):
            steps.append(step)
            if step == done:
                break
        updates = transact(
            lambda connection: [each for step in steps for each in cut.steps.written(connection, step)], writes=False
        )
        account.committed(found)
        return updates

    def _with_amounts(self, updates: list[SpendUpdate]) -> list[SpendUpdate]:
        """Return updates with the amounts that are this process's own and that nobody was told."""
        return updates if self._is_own else [msgspec.structs.replace(each, amount=0) for each in updates]

    def _write_lookups(self) -> bool:
        """Write some look-ups; return whether there were any. They are idempotent, so they need no mark."""
        if not self._pending_lookups:
            self._pending_lookups = next(self._lookups, [])
        if not self._pending_lookups:
            return False
        self._accounting.write_lookups(self._pending_lookups)
        self._pending_lookups = []
        return True


class SpoolAccounts(_Accounts, ISpoolAccounts):
    """The spend and the sums of one spool.

    Attributes:
        name: the spool's name.
    """

    def __init__(self, name: str, own_from: Position | None, accounting: Accounting) -> None:
        """Begin where the database is.

        Args:
            name: the spool's name.
            own_from: where the process's own rows begin whose spend nobody was told; None for another's spool.
            accounting: what all accounts share.

        Raises:
            DatabaseUnavailable: the database cannot be read.
        """
        self.name = name
        self._own_from = own_from
        spend, sums = _read_marks(accounting, name)
        super().__init__({name: spend}, {name: sums}, accounting)
        if own_from is not None:
            self._spend.split_at = {name: own_from}

    @property
    def kept_from(self) -> Position:
        """The position before which no row of the spool is needed any more."""
        return self._kept_from(self.name)

    @property
    def told_to(self) -> Position:
        """The position before which all spend was returned by `flush`."""
        return self._spend.marks[self.name].at

    @property
    def boundaries(self) -> list[Position]:
        """Positions that no batch of rows may span."""
        marks = [account.marks[self.name] for account in (self._spend, self._sums)]
        found = {each for mark in marks for each in (mark.at, mark.to)}
        if self._own_from is not None:
            found.add(self._own_from)
        return sorted(found)

    def add(self, written: Sequence[UsageBatch], end: Position | None) -> None:
        """Gather rows that were written; see `ISpoolAccounts`."""
        self._add(written, None if end is None else {self.name: end})

    def close(self) -> None:
        """Remove the marks of a spool of which nothing is left.

        Raises:
            DatabaseUnavailable: nothing was changed, or the result is unknown.
        """
        self._close(self.name)

    def _next_is_own(self) -> bool:
        return self._own_from is not None and self.told_to >= self._own_from


class JointAccounts(_Accounts, IJointAccounts):
    """The spend and the sums of several spools: rows of all of them add to one row of the sums once."""

    def __init__(self, accounting: Accounting) -> None:
        """Begin without spools; `accounting` is what all accounts share."""
        self.name = "all processes"
        super().__init__({}, {}, accounting)

    def join(self, name: str) -> Position | None:
        """Take the rows of one more spool; see `IJointAccounts`.

        Raises:
            DatabaseUnavailable: nothing was changed.
        """
        spend, sums = _read_marks(self._accounting, name)
        if spend.is_between or sums.is_between or spend.at != sums.at:
            return None
        self._spend.join(name, spend)
        self._sums.join(name, sums)
        return spend.at

    def kept_from(self, name: str) -> Position:
        """The position before which no row of a spool is needed any more."""
        return self._kept_from(name)

    def add(self, written: Sequence[UsageBatch], ends: Mapping[str, Position]) -> None:
        """Gather rows that were written; see `IJointAccounts`."""
        self._add(written, ends)

    def leave(self, name: str) -> None:
        """Remove the marks of a spool of which nothing is left.

        Raises:
            DatabaseUnavailable: nothing was changed, or the result is unknown.
        """
        self._close(name)
        self._spend.leave(name)
        self._sums.leave(name)

    def _next_is_own(self) -> bool:
        return True


def _read_marks(accounting: Accounting, name: str) -> tuple[Mark, Mark]:
    """Return the marks of a spool's spend and sums."""
    return accounting.transact(
        lambda connection: (read_mark(connection, name, SPEND), read_mark(connection, name, SUMS)), writes=False
    )


def _in_order(gathered: GatheredSums) -> Iterator[list[Values]]:
    """Yield look-ups in the order of their table, so many at a time that one transaction takes milliseconds."""
    pending: list[Values] = []
    for shard in gathered.lookups:
        for value in sorted(shard):
            for time in sorted(set(shard[value])):
                pending.append((value, time))
                if len(pending) >= _TRANSACTION_ROWS:
                    yield pending
                    pending = []
        # The sums, which take memory too, are written after these.
        shard.clear()
    if pending:
        yield pending
