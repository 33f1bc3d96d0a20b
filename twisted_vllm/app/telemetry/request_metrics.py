"""The metrics of requests, as part of the telemetry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from twisted_vllm.app.telemetry.part import Surroundings, TelemetryPart
from twisted_vllm.config.metrics import MetricsSettings
from twisted_vllm.config.settings import Settings
from twisted_vllm.context import RequestContext
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.observability.metrics.callers import KINDS, CallerMetrics, most_of, principal_of
from twisted_vllm.observability.metrics.label_numbers import LabelNumbers
from twisted_vllm.observability.metrics.litellm_collector import BudgetState, Deployment, LitellmCollector
from twisted_vllm.observability.metrics.litellm_requests import USUAL_CALLERS, LitellmMetrics
from twisted_vllm.observability.metrics.model_names import ModelNames
from twisted_vllm.observability.metrics.request_collector import Place, RequestCollector
from twisted_vllm.observability.metrics.requests import LATENCY_BOUNDS, RequestMetrics
from twisted_vllm.proxy.background_charge import BackgroundWork, Charge
from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.upstreams.breaker import CLOSED, HALF_OPEN
from twisted_vllm.usage.records import payer_of


class Switched(Collector):
    """What the settings switch on.

    Attributes:
        collectors: what is on.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.collectors: tuple[Collector, ...] = ()

    def collect(self) -> Iterator[Metric]:
        """Return the figures of what is on."""
        for each in self.collectors:
            yield from each.collect()


class RequestMetricsPart(TelemetryPart):
    """Counts requests for ``GET /metrics``.

    Attributes:
        counted: all requests.
        callers: those of each key, user and team, as far as the settings say so.
        litellm: those for LiteLLM's names; None if they are off.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        """Begin at zero; strangers get numbers in place of names."""
        self._around = around = surroundings
        self.counted = counted = RequestMetrics(ModelNames(around.text))
        self.callers: tuple[CallerMetrics, ...] = ()
        self.litellm: LitellmMetrics | None = None
        self._switched = Switched()

        def running() -> Iterable[RequestContext]:
            return (request.context for request in around.site.running())

        place = Place(
            models=lambda: [group.name for group in around.router.all_groups],
            servers=lambda: [state.name for state in around.servers],
            running=running,
            now=around.reactor.seconds,
        )
        numbers = LabelNumbers(lambda: {each.state.name: each.number for each in around.health})
        around.metrics.add(RequestCollector(counted, place, numbers), RequestCollector(counted, place, None))
        around.metrics.add_for_administrators(self._switched)
        around.background.on_charged = self._charged

    def observers(self) -> Sequence[RequestObserver]:
        """Return what counts requests."""
        return (self.counted,)

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Prepare other settings."""
        metrics = settings.metrics

        def apply() -> None:
            self.counted.names.reconfigure(metrics.max_models)
            self.counted.reconfigure(metrics.latency_buckets or LATENCY_BOUNDS)
            self._switch(metrics)

        return apply

    def _switch(self, metrics: MetricsSettings) -> None:
        """Switch on what the settings say. What stays on goes on counting."""
        known = {each.kind.name: each for each in self.callers}
        callers: list[CallerMetrics] = []
        for kind in KINDS:
            most = most_of(kind, metrics)
            if most:
                found = known.get(kind.name) or CallerMetrics(kind, most)
                found.top.reconfigure(most)
                callers.append(found)
        self.callers = tuple(callers)
        collectors: list[Collector] = [*callers]
        listeners = [each.count for each in callers]
        if metrics.litellm_names:
            most = metrics.key_labels or USUAL_CALLERS
            litellm = self.litellm or LitellmMetrics(self.counted, most)
            litellm.callers.reconfigure(most)
            litellm.reconfigure()
            self.litellm = litellm
            listeners.append(litellm.count)
            collectors.append(self._litellm_collector(litellm))
        else:
            self.litellm = None
        self.counted.listeners = tuple(listeners)
        self._switched.collectors = tuple(collectors)

    def _litellm_collector(self, litellm: LitellmMetrics) -> LitellmCollector:
        around = self._around
        return LitellmCollector(
            litellm, self._deployments, self._budget, lambda: len(around.site.running()), around.reactor.seconds
        )

    def _deployments(self) -> Iterator[Deployment]:
        """Yield the entries of ``model_list``, each with its servers."""
        for group in self._around.router.groups:
            for each in group.destinations:
                entry, breaker = each.entry, each.state.breaker
                state = 2
                if breaker.state == CLOSED:
                    state = 1 if each.state.sleeping else 0
                elif breaker.state == HALF_OPEN:
                    state = 1
                if entry is None:
                    yield Deployment(group.name, group.name, "", each.state.name, state)
                else:
                    yield Deployment(
                        group.name, entry.upstream_model, entry.model_id, each.state.name, state, entry.rpm, entry.tpm
                    )

    def _budget(self, kind: str, id: str) -> BudgetState | None:
        allowance = self._around.index.allowance_of(kind, id)
        if allowance.max_budget is None:
            return None
        subject = Limited(kind, id, allowance)
        budget = self._around.accounting.local.budget_of(subject, self._around.reactor.seconds())
        ends = None if allowance.budget_duration is None else budget.ends
        return BudgetState(allowance.max_budget, budget.spent, ends)

    def _charged(self, work: BackgroundWork, charge: Charge) -> None:
        """Count what a background response used."""
        usage, cost = charge.usage, charge.cost
        model = self.counted.charged(work.group, work.model, usage, cost)
        if not self.callers and self.litellm is None:
            return
        payer = work.payer if work.row is None else work.row.payer
        if payer is None:
            return
        who = principal_of(payer_of(payer))
        now = self._around.reactor.seconds()
        for each in self.callers:
            each.charged(who, usage, cost, now)
        if self.litellm is not None:
            self.litellm.charged(who, model, usage, cost, now)
