"""Writes what the rows of a spool add up to, when it is due."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import attrs
import msgspec
from sqlalchemy import Connection

from twisted_vllm.storage.usage.account import Account
from twisted_vllm.storage.usage.batch import UsageBatch
from twisted_vllm.storage.usage.bulk_insert import Values
from twisted_vllm.storage.usage.gathered import GatheredSpend, GatheredSums
from twisted_vllm.storage.usage.marks import SPEND, SUMS, Mark, delete_marks, move_mark, read_mark
from twisted_vllm.storage.usage.steps import Steps
from twisted_vllm.usage.interfaces import HistoryChanged, ISpoolAccounts, Position, SpendUpdate

T = TypeVar("T")

#: Seconds after which spend, and sums, are written; the delay for each thing to write; and how many are gathered.
#: Other processes learn of a budget's spend through the database.
SPEND_RHYTHM = (5.0, 0.001, 50_000)
SUMS_RHYTHM = (30.0, 0.01, 100_000)

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


class SpoolAccounts(ISpoolAccounts):
    """The spend and the sums of one spool.

    Attributes:
        name: the spool's name.
        own: whether this process served the requests.
    """

    def __init__(self, name: str, own: bool, accounting: Accounting, now: float) -> None:
        """Begin where the database is.

        Raises:
            DatabaseUnavailable: the database cannot be read.
        """
        self.name = name
        self.own = own
        self._accounting = accounting
        spend, sums = accounting.transact(
            lambda connection: (read_mark(connection, name, SPEND), read_mark(connection, name, SUMS)), writes=False
        )
        self._spend: Account[GatheredSpend] = Account(SPEND, spend, GatheredSpend, now)
        self._sums: Account[GatheredSums] = Account(SUMS, sums, GatheredSums, now)

    @property
    def kept_from(self) -> Position:
        """The position before which no row of the spool is needed any more."""
        return min(self._spend.mark.at, self._sums.mark.at)

    @property
    def boundaries(self) -> list[Position]:
        """Positions that no batch of rows may span."""
        return sorted({each for account in (self._spend, self._sums) for each in (account.mark.at, account.mark.to)})

    def add(self, written: Sequence[UsageBatch], end: Position | None) -> None:
        """Gather rows that were written; see `ISpoolAccounts`."""
        self._spend.add(written, end)
        self._sums.add(written, end)

    def flush(self, *, force: bool = False) -> tuple[bool, list[SpendUpdate]]:
        """Write a part of what was gathered, if it is due; see `ISpoolAccounts`.

        Raises:
            DatabaseUnavailable, HistoryChanged: as told there.
        """
        now = self._accounting.monotonic()
        spend, sums = self._spend, self._sums
        if spend.cut is None and spend.is_due(now, *SPEND_RHYTHM, force=force):
            spend.begin(now, self._accounting.spend_steps)
        if spend.cut is not None:
            return True, self._write_part(spend)
        if sums.cut is None and sums.is_due(now, *SUMS_RHYTHM, force=force):
            sums.begin(now, self._accounting.sums_steps)
        if sums.cut is not None:
            if not sums.cut.prepared:
                self._write_lookups(sums.cut.gathered)
                sums.cut.prepared = True
            return True, self._write_part(sums)
        return False, []

    def close(self) -> None:
        """Remove the marks of a spool of which nothing is left.

        Raises:
            DatabaseUnavailable: nothing was changed, or the result is unknown.
        """
        self._accounting.transact(lambda connection: delete_marks(connection, self.name), writes=True)

    def _write_part(self, account: Account[Any]) -> list[SpendUpdate]:
        """Write some steps in one transaction; return the new spend of those whose spend it changed."""
        if account.sent is not None:
            found = self._resolve(account, account.sent)
            if found is not None:
                return found
        cut, old = account.cut, account.mark
        assert cut is not None
        updates: list[SpendUpdate] = []

        def work(connection: Connection) -> Mark:
            updates.clear()
            written = 0
            done: str | None = old.done
            for step in cut.steps.after(old.done):
                if written >= _TRANSACTION_ROWS:
                    break
                count, changed = cut.steps.write(connection, step)
                written, done = written + count, step
                updates.extend(changed)
            else:
                done = None
            account.sent = account.after(done)
            move_mark(connection, self.name, account.what, old, account.sent)
            return account.sent

        account.committed(self._accounting.transact(work, writes=True))
        return self._with_amounts(updates)

    def _resolve(self, account: Account[Any], sent: Mark) -> list[SpendUpdate] | None:
        """Find out whether a transaction was committed; if so, return what it returned, else None.

        Raises:
            HistoryChanged: the database has neither its mark nor the one before.
        """
        transact, cut = self._accounting.transact, account.cut
        assert cut is not None
        found = transact(lambda connection: read_mark(connection, self.name, account.what), writes=False)
        if found == account.mark:
            account.sent = None
            return None
        if found != sent:
            raise HistoryChanged("its marks are others than this process made")
        steps: list[str] = []
        for step in cut.steps.after(account.mark.done):
            steps.append(step)
            if step == sent.done:
                break
        updates = transact(
            lambda connection: [each for step in steps for each in cut.steps.written(connection, step)], writes=False
        )
        account.committed(sent)
        return self._with_amounts(updates)

    def _with_amounts(self, updates: list[SpendUpdate]) -> list[SpendUpdate]:
        """Return updates with the amounts that this process spent."""
        return updates if self.own else [msgspec.structs.replace(each, amount=0) for each in updates]

    def _write_lookups(self, gathered: GatheredSums) -> None:
        """Write look-ups, in the order of their table. They are idempotent, so they need no mark."""
        pending: list[Values] = []
        for shard in gathered.lookups:
            pending += [(value, time) for value in sorted(shard) for time in sorted(set(shard[value]))]
            if len(pending) >= _TRANSACTION_ROWS:
                self._accounting.write_lookups(pending)
                pending = []
        if pending:
            self._accounting.write_lookups(pending)
