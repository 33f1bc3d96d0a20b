"""The ledger of several processes: each tells how far its rows are, and the housekeeper writes those of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.app.shared.ledger_messages import (
    BEGIN,
    COMMITTED,
    FINISHED,
    LOADED,
    MOST,
    NEEDED,
    POSITION,
    RECONCILED,
    SPENT,
    WANTED,
    Budgets,
    Follow,
    Nothing,
    SpoolEnd,
    SpoolEnds,
    Totals,
    Wanted,
)
from twisted_vllm.auth.records import Spend
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.ratelimit.memory.reconciliation import BudgetTotal
from twisted_vllm.usage.interfaces import SpendUpdate
from twisted_vllm.usage.spool.followed import FollowedSpool
from twisted_vllm.usage.spool.following_writer import FollowingWriter
from twisted_vllm.workers.siblings import Siblings
from twisted_vllm.workers.topics import NoAnswer

T = TypeVar("T")

#: seconds until something is tried again that another process did not answer
RETRY_SECONDS = 1.0
#: seconds that all processes may take to say how far their rows are
BEGIN_SECONDS = 10.0


def tell_position(siblings: Siblings, spool: FollowedSpool, send_settlements: Callable[[], None]) -> None:
    """Have this process answer how far its rows are: all that it has settled until then.

    Args:
        siblings: the other processes.
        spool: has the rows.
        send_settlements: sends what this turn has settled, which must arrive before the answer.
    """

    def answer(message: Follow, sender: int) -> SpoolEnd:
        send_settlements()
        spool.flush()
        if message.by:
            spool.followed_by(message.by)
        end = spool.end
        return SpoolEnd(spool.name, end.segment, end.offset)

    siblings.answers(POSITION, Follow, answer)


def _tell_loaded(siblings: Siblings, spends: Iterable[Spend]) -> None:
    """Tell the supervisor the spend of those who have a budget."""
    for totals in _in_messages(BudgetTotal(each.kind, each.id, each.spend, each.period_start) for each in spends):
        siblings.tell(LOADED, totals)


class HousekeptLedger:
    """Has the writer follow the spools of the workers, and the supervisor know what was spent.

    It reconciles at its start, and whenever the supervisor says so; `BudgetReconciliation` tells what that is. Rows are
    not moved meanwhile, which takes less than a second where the database keeps up.
    """

    _log = Logger()

    def __init__(
        self,
        siblings: Siblings,
        spool: FollowedSpool,
        spends: Callable[[], Deferred[list[Spend]]],
        clock: Any,
        *,
        shares_spend: bool,
    ) -> None:
        """Set up.

        Args:
            siblings: the other processes.
            spool: the spool of this process.
            spends: reads the spend of all who have a budget.
            clock: the reactor's clock (``IReactorTime``).
            shares_spend: whether workers have budgets of their own, since Redis counts.
        """
        self.on_reconciled: Callable[[], None] = _ignore
        self._siblings = siblings
        self._spool = spool
        self._spends = spends
        self._clock = clock
        self._shares_spend = shares_spend
        self._writer: FollowingWriter | None = None
        #: the names of the spools by the process's number, and of those that have ended
        self._names: dict[int, str] = {}
        self._ended: set[str] = set()
        self._is_loaded = self._is_running = self._is_wanted = self._is_stopped = False
        self._retry: IDelayedCall | None = None
        siblings.on_joined(self._joined)
        siblings.on_left(self._left)
        siblings.on(NEEDED, Nothing, lambda message, sender: self.reconcile())

    def start(self, writer: object) -> None:
        """Begin, once the reactor runs; `writer` is the `FollowingWriter` that moves the rows."""
        assert isinstance(writer, FollowingWriter)
        self._writer = writer
        self.reconcile()

    def stop(self) -> None:
        """Begin nothing any more."""
        self._is_stopped = True
        if self._retry is not None and self._retry.active():
            self._retry.cancel()

    def committed(self, updates: Sequence[SpendUpdate]) -> None:
        """Tell what was written."""
        told = (BudgetTotal(each.kind, each.id, each.total, each.period_start, each.amount) for each in updates)
        for totals in _in_messages(told):
            self._siblings.tell(COMMITTED, totals)
            if self._shares_spend:
                self._siblings.share(SPENT, totals)

    def history_changed(self) -> None:
        """Load all budgets anew: the database is another one."""
        self._is_loaded = False
        self.reconcile()

    def reconcile(self) -> None:
        """Tell the totals of all budgets, now or once that is possible. Idempotent."""
        self._is_wanted = True
        if self._is_running or self._is_stopped or self._writer is None:
            return
        self._is_running, self._is_wanted = True, False
        Deferred.fromCoroutine(self._reconcile(self._writer)).addCallbacks(self._done, self._failed)

    def _done(self, _: object) -> None:
        self._is_running = False
        self.on_reconciled()
        if self._is_wanted:
            self.reconcile()

    def _failed(self, failure: Failure) -> None:
        self._is_running = False
        if failure.check(NoAnswer, StoreUnavailable) is None:
            self._log.failure("The budgets could not be reconciled with the database", failure)
        if not self._is_stopped:
            self._retry = self._clock.callLater(RETRY_SECONDS, self.reconcile)

    async def _reconcile(self, writer: FollowingWriter) -> None:
        siblings = self._siblings
        ended = set(self._ended)
        await writer.hold()
        try:
            found = await siblings.ask(BEGIN, Follow(self._spool.name), SpoolEnds, BEGIN_SECONDS)
            for process, each in zip(found.processes, found.ends, strict=True):
                self._follow(process, each.name)
            await writer.move_to({each.name: each.position for each in found.ends}, ended)
            if not self._is_loaded:
                _tell_loaded(siblings, await self._spends())
            await self._tell_wanted(writer)
            siblings.tell(FINISHED, Nothing())
            self._is_loaded = True
            self._ended -= ended
        finally:
            writer.go_on()

    async def _tell_wanted(self, writer: FollowingWriter) -> None:
        """Tell the totals of the budgets that the supervisor wants."""
        first = 0
        while True:
            wanted = await self._siblings.ask(WANTED, Wanted(first), Budgets)
            if not wanted.keys:
                return
            first += len(wanted.keys)
            found: dict[tuple[str, str], tuple[int, int]] = {}
            await writer.spend_of(wanted.keys, found.update)
            self._siblings.tell(RECONCILED, Totals([_total_of(key, found) for key in wanted.keys]))

    def _joined(self, process: int) -> None:
        """Follow the spool of a process that has begun."""

        def found(end: SpoolEnd) -> None:
            self._follow(process, end.name)
            if process not in self._siblings.others:
                # It has ended meanwhile.
                self._left(process)

        def failed(failure: Failure) -> None:
            failure.trap(NoAnswer)
            if process in self._siblings.others and not self._is_stopped:
                self._clock.callLater(RETRY_SECONDS, self._joined, process)

        asking = self._siblings.ask_one(process, POSITION, Follow(self._spool.name), SpoolEnd)
        asking.addCallbacks(found, failed)

    def _follow(self, process: int, name: str) -> None:
        if self._writer is not None:
            self._writer.follow(name)
        self._names[process] = name

    def _left(self, process: int) -> None:
        name = self._names.pop(process, None)
        if name is not None:
            self._ended.add(name)


def _total_of(key: tuple[str, str], found: Mapping[tuple[str, str], tuple[int, int]]) -> BudgetTotal:
    start, total = found.get(key, (0, None))
    return BudgetTotal(*key, total, start)


def _in_messages(totals: Iterable[BudgetTotal]) -> Iterator[Totals]:
    """Yield totals in messages of a bounded size."""
    left = iter(totals)
    while some := list(islice(left, MOST)):
        yield Totals(some)


def _ignore() -> None:
    """Do nothing."""
