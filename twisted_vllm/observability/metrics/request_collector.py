"""Reads what `RequestMetrics` counted at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from math import inf

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from twisted_vllm.context import RequestContext
from twisted_vllm.histogram import Histogram
from twisted_vllm.money import float_dollars
from twisted_vllm.observability.metrics.families import HistogramFamily, NumberFamily
from twisted_vllm.observability.metrics.label_numbers import LabelNumbers
from twisted_vllm.observability.metrics.model_names import OTHER
from twisted_vllm.observability.metrics.registry import PREFIX
from twisted_vllm.observability.metrics.requests import Pair, RequestMetrics

#: seconds without a request after which a server or a model that is no longer configured is forgotten, and the name of
#: a model that no entry has
FORGET_AFTER, FORGET_NAME_AFTER = 3_600.0, 86_400.0

#: Failures of a model at a server, and of a model that no server took, each a status and an outcome. They are there at
#: 0 before the first: Prometheus sees no increase of a counter that begins above 0, however many failures it has then.
_AT_SERVER = (
    *(("500", "completed"), ("502", "completed"), ("503", "completed"), ("504", "completed")),
    *(("502", "upstream_failed"), ("504", "upstream_failed"), ("200", "upstream_failed"), ("200", "upstream_error")),
)
_AT_NONE = (("503", "failed"),)
_INFERENCE = "inference"
#: the most pairs of a model and a server for which they are: they would make the scrape of a huge fleet slow
MOST_ANNOUNCED = 512


class Place:
    """The configured models and servers, and the requests in flight.

    Attributes:
        models: returns the names of the model groups.
        servers: returns the names of the servers.
        running: returns the requests in flight.
        now: returns the time in Unix seconds.
    """

    def __init__(
        self,
        models: Callable[[], Collection[str]],
        servers: Callable[[], Collection[str]],
        running: Callable[[], Iterable[RequestContext]],
        now: Callable[[], float],
    ) -> None:
        self.models = models
        self.servers = servers
        self.running = running
        self.now = now


class RequestCollector(Collector):
    """The metrics of requests."""

    def __init__(self, counted: RequestMetrics, place: Place, numbers: LabelNumbers | None) -> None:
        """Collect what was counted.

        Args:
            counted: the counts.
            place: the configured models and servers, and the requests in flight.
            numbers: the numbers of models and servers; None shows their names.
        """
        self._counted = counted
        self._place = place
        self._numbers = numbers

    def collect(self) -> Iterator[Metric]:
        """Return the current figures."""
        counted, numbers = self._counted, self._numbers
        self._forget()
        in_flight = self._in_flight()
        if numbers is not None:
            pairs = [*counted.pairs, *in_flight]
            numbers.update({model for model, _ in pairs} | counted.models.keys(), {server for _, server in pairs})
        yield self._requests()
        yield self._running(in_flight)
        yield from self._histograms()
        yield from self._usage()
        yield from self._others()

    def _model(self, name: str) -> str:
        return name if self._numbers is None else self._numbers.model(name)

    def _server(self, name: str) -> str:
        return name if self._numbers is None else self._numbers.server(name)

    def _forget(self) -> None:
        place, names = self._place, self._counted.names
        models, servers = frozenset(("", OTHER, *place.models())), frozenset(("", OTHER, *place.servers()))

        def patience(model: str, server: str) -> float:
            if server not in servers:
                return FORGET_AFTER
            if model in models:
                return inf
            return FORGET_NAME_AFTER if names.has(model) else FORGET_AFTER

        self._counted.forget(place.now(), patience)

    def _in_flight(self) -> Counter[tuple[str, str]]:
        """Return how many requests there are of each model at each server."""
        names = self._counted.names
        found: Counter[tuple[str, str]] = Counter()
        for context in self._place.running():
            server = context.server.name if context.sent and context.server is not None else ""
            found[context.group or names.known(context.model), server] += 1
        return found

    def _requests(self) -> Metric:
        family = NumberFamily(
            f"{PREFIX}_requests",
            "Requests that are over, those of the gateway's own routes and refused ones included.",
            ["model", "server", "route_class", "status", "outcome"],
        )
        found: dict[tuple[str, ...], int] = {}
        announces = len(self._counted.pairs) <= MOST_ANNOUNCED
        for each in self._counted.combinations.values():
            model, server = self._model(each.pair.model), self._server(each.pair.server)
            found[model, server, each.route_class, str(each.status), each.outcome] = each.count
            if announces and each.route_class == _INFERENCE and server:
                for status, outcome in _AT_SERVER:
                    found.setdefault((model, server, _INFERENCE, status, outcome), 0)
                for status, outcome in _AT_NONE:
                    found.setdefault((model, "", _INFERENCE, status, outcome), 0)
        for labels, count in found.items():
            family.add(labels, count)
        return family

    def _running(self, in_flight: Counter[tuple[str, str]]) -> Metric:
        family = NumberFamily(
            f"{PREFIX}_requests_in_flight",
            "Requests that the gateway works on, with the server to which they were sent.",
            ["model", "server"],
            "gauge",
        )
        for model, server in dict.fromkeys((*self._counted.pairs, *in_flight)):
            family.add((self._model(model), self._server(server)), in_flight[model, server])
        return family

    def _histograms(self) -> Iterator[Metric]:
        first = HistogramFamily(
            f"{PREFIX}_time_to_first_byte_seconds",
            "Seconds from the first byte of a request to that of its server's answer; of a stream, to its first event.",
            ["model", "server", "stream"],
        )
        for pair in self._counted.pairs.values():
            for stream, histogram in (("false", pair.first_whole), ("true", pair.first_stream)):
                if histogram.count:
                    first.add((self._model(pair.model), self._server(pair.server), stream), histogram)
        yield self._histogram(
            "request_duration",
            "Seconds from the first byte of a request to the end of its answer.",
            lambda pair: pair.duration,
        )
        yield first
        yield self._histogram(
            "time_per_output_token",
            "Seconds from the first event of a stream to its end, divided by its tokens without the first.",
            lambda pair: pair.per_token,
        )
        yield self._histogram(
            "queue_wait",
            "Seconds that requests waited for a busy server, of those that waited.",
            lambda pair: pair.queued,
        )
        yield self._histogram(
            "gateway_overhead",
            "Seconds that the gateway took to pass a request on, once all of it had arrived and without its wait.",
            lambda pair: pair.overhead,
        )

    def _histogram(self, name: str, text: str, of: Callable[[Pair], Histogram]) -> HistogramFamily:
        family = HistogramFamily(f"{PREFIX}_{name}_seconds", text, ["model", "server"])
        for pair in self._counted.pairs.values():
            histogram = of(pair)
            if histogram.count:
                family.add((self._model(pair.model), self._server(pair.server)), histogram)
        return family

    def _usage(self) -> Iterator[Metric]:
        tokens = NumberFamily(
            f"{PREFIX}_tokens",
            "Tokens of requests that are over: cached are part of prompt, reasoning of completion.",
            ["model", "type"],
        )
        cost = NumberFamily(f"{PREFIX}_cost_usd", "What requests cost, in US dollars.", ["model"])
        for name, usage in self._counted.models.items():
            if usage.is_any:
                model = self._model(name)
                for kind, count in usage.by_type():
                    tokens.add((model, kind), count)
                cost.add((model,), float_dollars(usage.cost))
        yield tokens
        yield cost

    def _others(self) -> Iterator[Metric]:
        errors = NumberFamily(
            f"{PREFIX}_refusals", "Requests that ended with an error of the gateway's own, by its code.", ["code"]
        )
        for code, count in self._counted.errors.items():
            errors.add((code,), count)
        yield errors
        retries = NumberFamily(
            f"{PREFIX}_retries",
            "Attempts that failed before the first byte of an answer reached the client, and that another followed.",
            ["reason"],
        )
        for reason, count in self._counted.retries.items():
            retries.add((reason,), count)
        yield retries
        yield CounterMetricFamily(
            f"{PREFIX}_fallbacks", "Requests for which another model was asked.", value=self._counted.fallbacks
        )
