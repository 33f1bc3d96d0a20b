"""The metrics of requests, as part of the telemetry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from twisted_vllm.app.telemetry.part import Surroundings, TelemetryPart
from twisted_vllm.config.settings import Settings
from twisted_vllm.context import RequestContext
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.observability.metrics.label_numbers import LabelNumbers
from twisted_vllm.observability.metrics.model_names import ModelNames
from twisted_vllm.observability.metrics.request_collector import Place, RequestCollector
from twisted_vllm.observability.metrics.requests import LATENCY_BOUNDS, Counted, RequestMetrics
from twisted_vllm.proxy.background_charge import BackgroundWork, Charge
from twisted_vllm.usage.records import Payer, Usage, payer_of

#: keys with labels of their own under LiteLLM's names, where the settings say no number
USUAL_CALLERS = 100
#: key of the counter for LiteLLM's names, beside the kinds of callers
_LITELLM = "litellm"


class CallerCounts(Protocol):
    """Counts requests by their callers.

    Attributes:
        collector: tells administrators.
    """

    @property
    def collector(self) -> Collector: ...

    def reconfigure(self, most: int) -> None:
        """Give so many callers labels of their own from now on; what was counted stays."""

    def count(self, context: RequestContext, counted: Counted) -> None:
        """Count a request."""

    def charged(self, payer: Payer, model: str, usage: Usage, cost: int, now: float) -> None:
        """Count what a background response used; `model` is the label of its model."""


class Switched(Collector):
    """Collects from the collectors that the settings switch on.

    Attributes:
        collectors: those that are on.
    """

    def __init__(self) -> None:
        """Start without collectors."""
        self.collectors: tuple[Collector, ...] = ()

    def collect(self) -> Iterator[Metric]:
        """Return the current figures."""
        for each in self.collectors:
            yield from each.collect()


class RequestMetricsPart(TelemetryPart):
    """Counts requests for ``GET /metrics``.

    Attributes:
        counted: all requests.
        callers: what counts them by their callers, as far as the settings say so.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        """Begin at zero; strangers get numbers in place of names."""
        self._around = around = surroundings
        self.counted = counted = RequestMetrics(ModelNames(around.text))
        self.callers: Mapping[str, CallerCounts] = {}
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
        around.traffic.follow(counted)

    def observers(self) -> Sequence[RequestObserver]:
        """Return what counts requests."""
        return (self.counted,)

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Prepare other settings."""
        metrics = settings.metrics
        wanted = {"key": metrics.key_labels, "user": metrics.user_labels, "team": metrics.team_labels}
        if metrics.litellm_names or settings.callbacks.litellm_metrics:
            wanted[_LITELLM] = metrics.key_labels or USUAL_CALLERS

        def apply() -> None:
            self.counted.names.reconfigure(metrics.max_models)
            self.counted.reconfigure(metrics.latency_buckets or LATENCY_BOUNDS)
            self._switch({name: most for name, most in wanted.items() if most})

        return apply

    def _switch(self, wanted: Mapping[str, int]) -> None:
        """Count by these callers, with so many of each. What stays on goes on counting."""
        self.callers = {name: self.callers.get(name) or self._make(name, most) for name, most in wanted.items()}
        for name, each in self.callers.items():
            each.reconfigure(wanted[name])
        self.counted.listeners = tuple(each.count for each in self.callers.values())
        self._switched.collectors = tuple(each.collector for each in self.callers.values())

    def _make(self, name: str, most: int) -> CallerCounts:
        """Make what counts by callers. Few gateways need what this loads."""
        if name == _LITELLM:
            from twisted_vllm.app.telemetry.litellm_metrics import LitellmNames

            return LitellmNames(self._around, self.counted, most)
        from twisted_vllm.observability.metrics.callers import KINDS, CallerMetrics

        return CallerMetrics(KINDS[name], most)

    def _charged(self, work: BackgroundWork, charge: Charge) -> None:
        """Count what a background response used."""
        usage, cost = charge.usage, charge.cost
        model = self.counted.charged(work.group, work.model, usage, cost)
        payer = work.payer if work.row is None else work.row.payer
        if not self.callers or payer is None:
            return
        for each in self.callers.values():
            each.charged(payer_of(payer), model, usage, cost, self._around.reactor.seconds())
