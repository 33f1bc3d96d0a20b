"""Wires the metrics that have LiteLLM's names. Imported only where the settings ask for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.registry import Collector

from twisted_vllm.app.telemetry.part import Surroundings
from twisted_vllm.app.telemetry.team_aliases import TeamAliases
from twisted_vllm.auth.records import Principal
from twisted_vllm.context import RequestContext
from twisted_vllm.observability.metrics.callers import principal_of
from twisted_vllm.observability.metrics.litellm_collector import BudgetState, Deployment, LitellmCollector, RateLimit
from twisted_vllm.observability.metrics.litellm_requests import LitellmMetrics
from twisted_vllm.observability.metrics.requests import Counted, RequestMetrics
from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.upstreams.breaker import CLOSED, HALF_OPEN
from twisted_vllm.usage.records import Payer, Usage


class LitellmNames:
    """Counts requests for LiteLLM's names, and tells administrators.

    Attributes:
        collector: the collector.
    """

    collector: Collector

    def __init__(self, surroundings: Surroundings, requests: RequestMetrics, most: int) -> None:
        """Begin at zero.

        Args:
            surroundings: the gateway.
            requests: counts the requests without their callers.
            most: the most keys with labels of their own.
        """
        self._around = around = surroundings
        self._counted = counted = LitellmMetrics(requests, most)
        self._aliases = aliases = TeamAliases(around.database, around.reactor.seconds)
        counted.on_caller = self._learn_team
        self.collector = LitellmCollector(
            counted,
            self._deployments,
            self._budget,
            self._limits,
            aliases.name,
            lambda: len(around.site.running()),
            around.reactor.seconds,
        )

    def reconfigure(self, most: int) -> None:
        """Give so many keys labels of their own from now on; what was counted stays."""
        self._counted.reconfigure(most)

    def count(self, context: RequestContext, counted: Counted) -> None:
        """Count a request."""
        self._counted.count(context, counted)

    def charged(self, payer: Payer, model: str, usage: Usage, cost: int, now: float) -> None:
        """Count what a background response used."""
        self._counted.charged(principal_of(payer), model, usage, cost, now)

    def _learn_team(self, who: Principal) -> None:
        if who.team_id:
            self._aliases.want(who.team_id)

    def _deployments(self) -> Iterator[Deployment]:
        """Yield the entries of ``model_list``, each with its servers."""
        principals = (caller.principal for caller in self._counted.callers)
        self._aliases.keep_only({who.team_id for who in principals if who is not None and who.team_id})
        outages = {each.state: each.outages for each in self._around.health}
        for group in self._around.router.groups:
            for each in group.destinations:
                entry, breaker = each.entry, each.state.breaker
                state = 2
                if breaker.state == CLOSED:
                    state = 1 if each.state.rests else 0
                elif breaker.state == HALF_OPEN:
                    state = 1
                yield Deployment(
                    group.name,
                    group.name if entry is None else entry.upstream_model,
                    "" if entry is None else entry.model_id,
                    each.state.name,
                    state,
                    None if entry is None else entry.rpm,
                    None if entry is None else entry.tpm,
                    outages.get(each.state, {}),
                )

    def _limits(self, kind: str, id: str) -> tuple[RateLimit | None, RateLimit | None]:
        around = self._around
        allowance = around.index.allowance_of(kind, id)
        used: Mapping[str, int] = {}
        if allowance.rpm is not None or allowance.tpm is not None:
            used = around.accounting.used(Limited(kind, id, allowance), around.reactor.seconds())
        return (
            None if allowance.rpm is None else RateLimit(allowance.rpm, used.get("rpm")),
            None if allowance.tpm is None else RateLimit(allowance.tpm, used.get("tpm")),
        )

    def _budget(self, kind: str, id: str) -> BudgetState | None:
        allowance = self._around.index.allowance_of(kind, id)
        if allowance.max_budget is None:
            return None
        subject = Limited(kind, id, allowance)
        budget = self._around.accounting.budget_of(subject, self._around.reactor.seconds())
        if budget is None:
            return None
        ends = None if allowance.budget_duration is None else budget.ends
        return BudgetState(allowance.max_budget, budget.spent, ends)
