"""Starts and stops the limiter, the usage spool and the writer that moves its rows to the database."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.logger import Logger

from twisted_vllm.app.start_error import StartError
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.records import Spend
from twisted_vllm.auth.uncounted_requests import UncountedRequests
from twisted_vllm.config.settings import Settings
from twisted_vllm.context import RequestContext
from twisted_vllm.observability.metrics.registry import Metrics
from twisted_vllm.proxy.accounting import Accounting
from twisted_vllm.proxy.end_user_budgets import MAX_KNOWN, EndUserBudgets, ReadSpend
from twisted_vllm.proxy.metrics import PreflightCollector
from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.ratelimit.budgets import Budget
from twisted_vllm.ratelimit.interfaces import Limiter, SharedLimiter, WorkerLimiter
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter, SoftBudgetCrossed, ignore_soft_budget
from twisted_vllm.ratelimit.periods import period_of
from twisted_vllm.ratelimit.refusals import dollars
from twisted_vllm.ratelimit.watched_budgets import LocalBudgets, WatchedBudgets
from twisted_vllm.storage.usage.database import UsageDatabase
from twisted_vllm.storage.usage.known_partitions import Periods
from twisted_vllm.storage.usage.retention import HeldFrom, nothing_held
from twisted_vllm.usage.interfaces import SpendUpdate
from twisted_vllm.usage.metrics import LedgerCollector
from twisted_vllm.usage.pricing import PriceTable
from twisted_vllm.usage.spool.followed import FollowedSpool
from twisted_vllm.usage.spool.spool import Spool
from twisted_vllm.usage.spool.sync_thread import SyncThread
from twisted_vllm.usage.spool.writer import LedgerWriter
from twisted_vllm.usage.spool.writer_threads import WriterThreads
from twisted_vllm.workers.siblings import ALONE, Siblings

if TYPE_CHECKING:
    from twisted_vllm.app.shared.ledger import HousekeptLedger

#: the maximum seconds at start for moving the rows that former runs left in the spool
RECOVERY_SECONDS = 10.0
#: how long the end waits for a disk that is synced, in seconds
CLOSE_SECONDS = 0.5


def _no_spends(_wanted: Callable[[str, str], bool]) -> Deferred[list[Spend]]:
    """Return nothing: the default of `AccountingService`."""
    return succeed([])


def _nothing() -> None:
    """Do nothing."""


class _Rules(TypedDict):
    """What the settings say about the accounting of requests: arguments of `Accounting`."""

    prices: PriceTable
    fail_closed: bool
    assumed_output_tokens: int
    end_user_headers: Sequence[bytes]
    requires_end_user: bool


def _rules_of(settings: Settings) -> _Rules:
    return _Rules(
        prices=PriceTable(settings.models, settings.default_prices),
        fail_closed=settings.ledger.on_spool_failure == "refuse",
        assumed_output_tokens=settings.limits.assumed_output_tokens,
        end_user_headers=[name.encode("ascii") for name in settings.end_user_headers],
        requires_end_user=bool(settings.enforce_user_param),
    )


class AccountingService:
    """The services that meter, limit and store usage.

    Attributes:
        limiter: enforces limits: in memory, in the supervisor or in Redis.
        local: knows the budgets' spend, as the database has it if the limiter counts in Redis.
        spool: the ledger rows that the database does not have yet; None if the ledger is disabled.
        writer: moves them; None before `open`, and where another process does.
        observer: meters and limits requests.
        on_soft_budget: called when the spend crosses a soft budget, which is logged in any case.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        index: KeyIndex,
        metrics: Metrics,
        uncounted: UncountedRequests,
        client_of: Callable[[RequestContext], str],
        read_spend: ReadSpend,
        held_from: HeldFrom = nothing_held,
        siblings: Siblings = ALONE,
        spends: Callable[[Callable[[str, str], bool]], Deferred[list[Spend]]] = _no_spends,
        supervised: WorkerLimiter | None = None,
        workers: int = 1,
    ) -> None:
        """Create them; nothing is opened yet.

        Args:
            reactor: Twisted's reactor.
            settings: the settings.
            index: the keys, users, teams and end users with their limits.
            metrics: gets the collector of preflights, and the ledger's in `open`.
            uncounted: limits the requests that the limiter does not count.
            client_of: returns the address of a request's client.
            read_spend: reads the spend of end users from the database.
            held_from: from when on retention must keep rows.
            siblings: the other processes of the gateway.
            spends: reads the spend of those for whose kind and id its argument is true.
            supervised: counts with the other processes; None in a process that is the whole gateway.
            workers: how many processes serve.
        """
        self.on_soft_budget: SoftBudgetCrossed = ignore_soft_budget
        self._index = index
        self._metrics = metrics
        self.local = local = LocalLimiter(self._crossed)
        self.limiter: Limiter = local
        self._siblings = siblings
        self._supervised = supervised
        self._loads: list[tuple[str, str, int, int]] = []
        if supervised is not None:
            supervised.on_soft_budget = self._crossed
            self.limiter = supervised
        self._redis: SharedLimiter | None = None
        if settings.redis is not None:
            # Imported here: only a gateway with Redis needs its client, which takes 1 MB.
            from twisted_vllm.ratelimit.redis.limiter import RedisLimiter

            self.limiter = self._redis = RedisLimiter(
                reactor,
                settings.redis,
                timeout=settings.timeouts.redis,
                on_loss=settings.limits_on_redis_loss,
                local=local,
                on_soft_budget=self._crossed,
                fallback=supervised,
            )
        ledger = settings.ledger
        self._held_from = held_from
        self._reactor = reactor
        self._settings = settings
        self.spool: FollowedSpool | None = None
        self.writer: WriterThreads | None = None
        self._housekept: HousekeptLedger | None = None
        self._syncing: SyncThread | None = None
        self._has_told_of_others = False
        self._store: UsageDatabase | None = None
        self._periods = Periods(settings.ledger.usage_retention)
        if ledger.enabled and siblings.alone:
            self.spool = Spool(settings.spool_directory)
        elif ledger.enabled:
            self.spool = FollowedSpool(settings.spool_directory, group=str(os.getppid()))
        if not siblings.alone:
            self._join(reactor, lambda: spends(self._budgets.holds))
        self._budgets = EndUserBudgets(self.limiter, index, read_spend, max(MAX_KNOWN // workers, 1), self._refuses_all)
        self.observer = Accounting(
            limiter=self.limiter,
            end_users=index,
            rows=self.spool,
            uncounted=uncounted,
            client_of=client_of,
            budgets=self._budgets,
            **_rules_of(settings),
        )
        metrics.add(PreflightCollector(self.observer))

    def used(self, subject: Limited, now: float) -> Mapping[str, int]:
        """Return the counts of the last 60 seconds by limit, without those that are not known here."""
        if self._redis is not None:
            # Redis has the counts of all processes, and no scrape asks it
            return {}
        return (self._supervised or self.local).used(subject, "", now)

    def budget_of(self, subject: Limited, now: float) -> Budget | None:
        """Return the budget of a subject in the current period, at least as the database has it; None if unknown."""
        if self._supervised is not None and self._redis is None:
            return self._supervised.budget_of(subject, now)
        return self.local.budget_of(subject, now)

    @property
    def watched(self) -> WatchedBudgets:
        """The budgets to watch, of all processes of the gateway."""
        if self._supervised is None or self._redis is not None:
            return LocalBudgets(self.local)
        from twisted_vllm.ratelimit.supervised.budget_copies import BudgetCopies

        return BudgetCopies(self._siblings)

    @property
    def shares_limits(self) -> bool | None:
        """Whether limits are counted in Redis at present; None if it is not configured."""
        return None if self._redis is None else self._redis.is_ready

    def kept_from(self) -> int | None:
        """Return from when on rows of the ledger are kept, in microseconds since 1970; None for ever."""
        return self._periods.kept_from()

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Return what puts other settings into effect from the next request on. In any thread: it may take long."""
        rules = _rules_of(settings)

        def apply() -> None:
            self.observer.reconfigure(**rules)
            if self._redis is not None:
                self._redis.reconfigure(settings.limits_on_redis_loss)
            if self.writer is not None:
                self.writer.reconfigure(settings.ledger.usage_retention)
            self._periods.reconfigure(settings.ledger.usage_retention)
            if self._store is not None:
                self._store.reconfigure(settings.ledger.top_end_users, settings.ledger.top_tags)
            self._settings = settings

        return apply

    def use_models(self, settings: Settings) -> None:
        """Use the prices of another model list, and nothing else of the settings."""
        self.observer.use_prices(PriceTable(settings.models, settings.default_prices))

    def _join(self, reactor: Any, spends: Callable[[], Deferred[list[Spend]]]) -> None:
        """Be one of several processes."""
        # Imported here: only then it is needed.
        from twisted_vllm.app.shared.ledger import HousekeptLedger, tell_position
        from twisted_vllm.app.shared.ledger_messages import RESTORED, SPENT, Nothing, Totals

        siblings, redis = self._siblings, self._redis

        def spent(message: Totals, sender: int) -> None:
            for each in message.totals:
                if each.total is not None:
                    self.local.budget_committed(each.kind, each.id, 0, each.total, each.period_start)

        siblings.on(RESTORED, Nothing, lambda message, sender: self._forget_references())
        siblings.on(SPENT, Totals, spent)
        if self.spool is None:
            return
        tell_position(siblings, self.spool, _nothing if self._supervised is None else self._supervised.flush)
        if siblings.housekeeps:
            self._housekept = HousekeptLedger(siblings, self.spool, spends, reactor, shares_spend=redis is not None)
            if redis is None:
                self._housekept.on_reconciled = self._warn_of_other_processes

    def open(self, spends: Callable[[Callable[[str, str], bool]], Iterable[Spend]]) -> None:
        """Open the spool, move the rows of former runs, and then load the spend from the database.

        A process that does not keep house leaves both to the one that does. Where Redis counts, each has the spend.

        Args:
            spends: reads the spend from the open database, of those for whose kind and id its argument is true.

        Raises:
            StartError: the spool cannot be written to.
            StoreError: the database's URL cannot be used.
        """
        siblings, spool = self._siblings, self.spool
        if spool is not None:
            if siblings.housekeeps:
                self._store = self._make_store()
                self.writer = self._make_writer(spool, self._store)
            try:
                spool.open()
            except OSError as error:
                raise StartError(
                    f"The ledger's spool {spool.directory} cannot be used: {error.strerror}. "
                    "Name another directory in passthrough.ledger.spool_directory."
                ) from None
            if self.writer is not None:
                self.writer.recover(RECOVERY_SECONDS)
            self._metrics.add(LedgerCollector(spool, self.writer))
        if siblings.housekeeps or self._redis is not None:
            found = list(spends(self._budgets.holds))
            for spend in found:
                self.local.budget_loaded(spend.kind, spend.id, spend.spend, spend.period_start)
            if self._supervised is not None and siblings.housekeeps:
                self._loads = [(each.kind, each.id, each.spend, each.period_start) for each in found]

    def _make_store(self) -> UsageDatabase:
        return UsageDatabase(
            self._settings.database_url,
            self._period_start,
            also_pay=self._index.also_pay,
            periods=self._periods,
            has_budget=self._has_budget,
            held_from=self._held_from,
            top_end_users=self._settings.ledger.top_end_users,
            top_tags=self._settings.ledger.top_tags,
        )

    def _make_writer(self, spool: FollowedSpool, store: UsageDatabase) -> WriterThreads:
        retention, housekept = self._settings.ledger.usage_retention, self._housekept
        if isinstance(spool, Spool):
            return LedgerWriter(self._reactor, spool, store, self._committed, retention=retention)
        from twisted_vllm.usage.spool.following_writer import FollowingWriter

        assert housekept is not None
        return FollowingWriter(
            self._reactor, spool, store, self._committed, housekept.history_changed, retention=retention
        )

    def start(self) -> None:
        """Start to move rows to the database, and to connect to Redis; warn if limits are not shared."""
        if self._redis is None and self._siblings.alone:
            self._warn_of_other_processes()
        if self._supervised is not None and self._siblings.housekeeps:
            loads, self._loads = self._loads, []
            self._supervised.load(loads, self._reactor)
        if self._redis is not None:
            self._redis.start()
        if self.writer is not None:
            self.writer.start()
        elif self.spool is not None:
            self._syncing = SyncThread(self.spool)
            self._syncing.start()
        if self._housekept is not None:
            self._housekept.start(self.writer)

    def stop(self) -> Deferred[Any]:
        """Move the remaining rows within a time limit, release reservations, and fire."""
        if self._housekept is not None:
            self._housekept.stop()
        parts = [part.stop() for part in (self._redis, self.writer) if part is not None]
        return gatherResults(parts).addCallback(self._close_spool)

    def _close_spool(self, _: object) -> None:
        """Leave the rows to the housekeeper, if this process does not move them itself."""
        if self._syncing is not None and self.spool is not None:
            self._syncing.stop()
            self._syncing.join(CLOSE_SECONDS)
            try:
                self.spool.close()
            except OSError as error:
                # The directory may be gone; the process ends anyway.
                self._log.error("The ledger's spool cannot be closed in order: {reason}", reason=error.strerror)

    def spend_set(self, spend: Spend, *, is_found: bool = False, is_known: bool = False) -> None:
        """Set the spend that an administrator set.

        Args:
            spend: what the database has.
            is_found: as in `WorkerLimiter.budget_reset`.
            is_known: nothing was set: somebody who had spent this has a budget now. Redis may count more of it already,
                as a key that another process made is used before all have heard of it.
        """
        if not self._budgets.holds(spend.kind, spend.id):
            return
        words = spend.kind, spend.id, spend.spend, spend.period_start
        supervised = self._supervised
        if self._redis is not None and is_known:
            self.limiter.budget_loaded(*words)
        elif supervised is None or self._redis is not None:
            self.limiter.budget_reset(*words)
        elif self._siblings.housekeeps:
            self.local.budget_reset(*words)
        # what another process did is found by all: one of them tells it
        if supervised is not None and (self._siblings.housekeeps or not is_found):
            supervised.budget_reset(*words, is_found=is_found)

    def budget_gone(self, kind: str, id: str, *, is_found: bool = False) -> None:
        """Forget the budget of somebody who was deleted or has none of its own any more, likewise."""
        self._budgets.forget(kind, id)
        supervised = self._supervised
        if supervised is None or self._redis is not None:
            self.limiter.budget_forgotten(kind, id)
        elif self._siblings.housekeeps:
            self.local.budget_forgotten(kind, id)
        if supervised is not None and (self._siblings.housekeeps or not is_found):
            supervised.budget_forgotten(kind, id, is_found=is_found)

    def read_anew(self) -> None:
        """Store again what rows refer to: the database may have been restored."""
        self._forget_references()
        if not self._siblings.alone:
            from twisted_vllm.app.shared.ledger_messages import RESTORED, Nothing

            self._siblings.share(RESTORED, Nothing())

    def _forget_references(self) -> None:
        if self._store is not None:
            self._store.forget_references()

    def _warn_of_other_processes(self) -> None:
        if self._has_told_of_others:
            return
        self._has_told_of_others = True
        spool = self.spool
        try:
            others = 0 if spool is None else spool.other_processes()
        except OSError:
            # it was opened a moment ago: leave the error to the writer
            others = 0
        if others:
            self._log.warn(
                "Other gateways share {directory}, {others} processes at present. Each counts limits for itself: "
                "together they admit a multiple. Set passthrough.redis_url to have them count together",
                directory=str(spool and spool.directory),
                others=others,
            )
        elif not self._settings.database_url.reveal().startswith("sqlite"):
            # other processes, on this machine or another, cannot be detected
            self._log.info(
                "Limits are counted by this gateway alone: where several share the database, set passthrough.redis_url "
                "to have them count together"
            )

    def _committed(self, spent: Sequence[SpendUpdate]) -> None:
        housekept = self._housekept
        for each in spent:
            # Of several processes, the supervisor knows the amounts.
            amount = each.amount if housekept is None else 0
            self.local.budget_committed(each.kind, each.id, amount, each.total, each.period_start)
        if housekept is not None:
            housekept.committed(spent)

    def _period_start(self, kind: str, id: str, time: float) -> int:
        return period_of(self._index.allowance_of(kind, id).budget_duration, time)[0]

    def _has_budget(self, kind: str, id: str) -> bool:
        return self._index.allowance_of(kind, id).has_budget

    def _refuses_all(self) -> bool:
        return self._supervised is not None and self._redis is None and self._supervised.is_away

    def _crossed(self, kind: str, id: str, spent: int, soft: int) -> None:
        if self._supervised is not None and not self._siblings.housekeeps:
            # Redis said so to this worker, and the housekeeper warns
            self._supervised.tell_soft_budget(kind, id, spent, soft)
            return
        self._log.warn(
            "The {kind} {id} has spent {spent} in this period, over its soft budget of {soft}",
            kind=kind.replace("_", " "),
            id=id,
            spent=dollars(spent),
            soft=dollars(soft),
        )
        self.on_soft_budget(kind, id, spent, soft)
