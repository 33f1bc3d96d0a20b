"""Starts and stops the limiter, the usage spool and the writer that moves its rows to the database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from twisted_vllm.app.start_error import StartError
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.records import Spend
from twisted_vllm.auth.uncounted_requests import UncountedRequests
from twisted_vllm.config.settings import Settings
from twisted_vllm.context import RequestContext
from twisted_vllm.observability.metrics.registry import Metrics
from twisted_vllm.proxy.accounting import Accounting
from twisted_vllm.proxy.end_user_budgets import EndUserBudgets, ReadSpend
from twisted_vllm.proxy.metrics import PreflightCollector
from twisted_vllm.ratelimit.interfaces import Limiter, SharedLimiter
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter, SoftBudgetCrossed, ignore_soft_budget
from twisted_vllm.ratelimit.periods import period_of
from twisted_vllm.ratelimit.refusals import dollars
from twisted_vllm.storage.usage.database import UsageDatabase
from twisted_vllm.storage.usage.known_partitions import Periods
from twisted_vllm.storage.usage.retention import HeldFrom, nothing_held
from twisted_vllm.usage.interfaces import SpendUpdate
from twisted_vllm.usage.metrics import LedgerCollector
from twisted_vllm.usage.pricing import PriceTable
from twisted_vllm.usage.spool.spool import Spool
from twisted_vllm.usage.spool.writer import LedgerWriter

#: the maximum seconds at start for moving the rows that former runs left in the spool
RECOVERY_SECONDS = 10.0


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
        limiter: enforces limits, in memory or in Redis.
        local: knows the budgets' spend, as the database has it if the limiter counts in Redis.
        spool: the ledger rows that the database does not have yet; None if the ledger is disabled.
        writer: moves them; None before `open`.
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
        """
        self.on_soft_budget: SoftBudgetCrossed = ignore_soft_budget
        self._index = index
        self._metrics = metrics
        self.local = local = LocalLimiter(self._crossed)
        self.limiter: Limiter = local
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
            )
        ledger = settings.ledger
        self._held_from = held_from
        self._reactor = reactor
        self._settings = settings
        self.spool: Spool | None = Spool(settings.spool_directory) if ledger.enabled else None
        self.writer: LedgerWriter | None = None
        self._store: UsageDatabase | None = None
        self._periods = Periods(settings.ledger.usage_retention)
        self._budgets = EndUserBudgets(self.limiter, index, read_spend)
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

    def open(self, spends: Callable[[Callable[[str, str], bool]], Iterable[Spend]]) -> None:
        """Open the spool, move the rows of former runs, and then load the spend from the database.

        Args:
            spends: reads the spend from the open database, of those for whose kind and id its argument is true.

        Raises:
            StartError: the spool cannot be written to.
            StoreError: the database's URL cannot be used.
        """
        spool = self.spool
        if spool is not None:
            self._store = UsageDatabase(
                self._settings.database_url,
                self._period_start,
                also_pay=self._index.also_pay,
                periods=self._periods,
                has_budget=self._has_budget,
                held_from=self._held_from,
                top_end_users=self._settings.ledger.top_end_users,
                top_tags=self._settings.ledger.top_tags,
            )
            self.writer = LedgerWriter(
                self._reactor,
                spool,
                self._store,
                self._committed,
                retention=self._settings.ledger.usage_retention,
            )
            try:
                spool.open()
            except OSError as error:
                raise StartError(
                    f"The ledger's spool {spool.directory} cannot be used: {error.strerror}. "
                    "Name another directory in passthrough.ledger.spool_directory."
                ) from None
            self.writer.recover(RECOVERY_SECONDS)
            self._metrics.add(LedgerCollector(spool, self.writer))
        for spend in spends(self._budgets.holds):
            self.limiter.budget_loaded(spend.kind, spend.id, spend.spend, spend.period_start)

    def start(self) -> None:
        """Start to move rows to the database, and to connect to Redis; warn if limits are not shared."""
        if self._redis is None:
            self._warn_of_other_processes()
        if self._redis is not None:
            self._redis.start()
        if self.writer is not None:
            self.writer.start()

    def stop(self) -> Deferred[Any]:
        """Move the remaining rows within a time limit, release reservations, and fire."""
        parts = [part.stop() for part in (self._redis, self.writer) if part is not None]
        return gatherResults(parts)

    def spend_set(self, spend: Spend) -> None:
        """Set the spend that an administrator set."""
        if self._budgets.holds(spend.kind, spend.id):
            self.limiter.budget_reset(spend.kind, spend.id, spend.spend, spend.period_start)

    def spend_found(self, spend: Spend) -> None:
        """Take what somebody had spent who has a budget now, from what the database says.

        Redis may count more of it already: a key that another process made is used before all have heard of it.
        """
        if self._redis is None:
            self.spend_set(spend)
        elif self._budgets.holds(spend.kind, spend.id):
            self.limiter.budget_loaded(spend.kind, spend.id, spend.spend, spend.period_start)

    def budget_gone(self, kind: str, id: str) -> None:
        """Forget the budget of somebody who was deleted or has none of its own any more."""
        self._budgets.forget(kind, id)
        self.limiter.budget_forgotten(kind, id)

    def read_anew(self) -> None:
        """Store again what rows refer to: the database may have been restored."""
        if self._store is not None:
            self._store.forget_references()

    def _warn_of_other_processes(self) -> None:
        spool = self.spool
        try:
            others = 0 if spool is None else spool.other_processes()
        except OSError:
            # it was opened a moment ago: leave the error to the writer
            others = 0
        if others:
            self._log.warn(
                "Other processes share {directory}, {others} at present. Each counts limits for itself: together they "
                "admit a multiple. Set passthrough.redis_url to have them count together",
                directory=str(spool and spool.directory),
                others=others,
            )
        elif not self._settings.database_url.reveal().startswith("sqlite"):
            # other processes, on this machine or another, cannot be detected
            self._log.info(
                "Limits are counted by this process alone: where several share the database, set passthrough.redis_url "
                "to have them count together"
            )

    def _committed(self, spent: Sequence[SpendUpdate]) -> None:
        for each in spent:
            self.limiter.budget_committed(each.kind, each.id, each.amount, each.total, each.period_start)

    def _period_start(self, kind: str, id: str, time: float) -> int:
        return period_of(self._index.allowance_of(kind, id).budget_duration, time)[0]

    def _has_budget(self, kind: str, id: str) -> bool:
        return self._index.allowance_of(kind, id).has_budget

    def _crossed(self, kind: str, id: str, spent: int, soft: int) -> None:
        self._log.warn(
            "The {kind} {id} has spent {spent} in this period, over its soft budget of {soft}",
            kind=kind.replace("_", " "),
            id=id,
            spent=dollars(spent),
            soft=dollars(soft),
        )
        self.on_soft_budget(kind, id, spent, soft)
