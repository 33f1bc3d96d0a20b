"""The metrics of requests, as part of the telemetry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from twisted_vllm.app.telemetry.part import Surroundings, TelemetryPart
from twisted_vllm.config.settings import Settings
from twisted_vllm.context import RequestContext
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.observability.metrics.label_numbers import LabelNumbers
from twisted_vllm.observability.metrics.model_names import ModelNames
from twisted_vllm.observability.metrics.request_collector import Place, RequestCollector
from twisted_vllm.observability.metrics.requests import LATENCY_BOUNDS, RequestMetrics
from twisted_vllm.proxy.background_charge import BackgroundWork, Charge


class RequestMetricsPart(TelemetryPart):
    """Counts requests for ``GET /metrics``.

    Attributes:
        counted: the counts.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        """Begin at zero; strangers get numbers in place of names."""
        around = surroundings
        self.counted = counted = RequestMetrics(ModelNames(around.text))

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

        return apply

    def _charged(self, work: BackgroundWork, charge: Charge) -> None:
        self.counted.charged(work.group, work.model, charge.usage, charge.cost)
