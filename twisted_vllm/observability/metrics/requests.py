"""Counts requests when they are over. It takes 1 µs a request: plain numbers, which `RequestCollector` reads.

What is counted is bounded whatever clients send: a label has a value that the configuration names, or a server, or one
of few that the gateway chooses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from twisted_vllm.api_routes import RouteClass
from twisted_vllm.context import RequestContext
from twisted_vllm.histogram import Histogram
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.observability.metrics.model_names import OTHER, ModelNames
from twisted_vllm.usage.records import NOTHING_USED, Usage

#: the upper bounds of buckets in seconds, for what models take: 5 ms to 10 minutes
LATENCY_BOUNDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 30.0),
    *(60.0, 120.0, 300.0, 600.0),
)
#: likewise, for a token
TOKEN_BOUNDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.015,
    0.02,
    0.03,
    0.04,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    1.0,
    2.5,
    10.0,
)
#: likewise, for what the gateway itself takes: 100 µs on
OVERHEAD_BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
    *(5.0, 30.0),
)

#: the most pairs of a model and a server, and the most combinations of all labels of one request
MOST_PAIRS, MOST_COMBINATIONS = 4_096, 32_768
#: the class of the gateway's own routes, and of what was refused before its route was known
GATEWAY = "gateway"
# to read a member of an enum from its class takes 0.1 µs
_INFERENCE = RouteClass.INFERENCE


class ModelUsage:
    """Tokens and cost of a model.

    Attributes:
        prompt, cached, completion, reasoning: tokens.
        cost: in picodollars.
        sampled: what `twisted_vllm.observability.traffic` has seen of prompt, cached, completion and cost.
    """

    __slots__ = ("cached", "completion", "cost", "prompt", "reasoning", "sampled")

    def __init__(self) -> None:
        self.prompt = self.cached = self.completion = self.reasoning = self.cost = 0
        self.sampled = (0, 0, 0, 0)

    def add(self, usage: Usage, cost: int) -> None:
        """Add what a request used."""
        self.prompt += usage.prompt_tokens
        self.cached += usage.cached_tokens
        self.completion += usage.completion_tokens
        self.reasoning += usage.reasoning_tokens
        self.cost += cost

    def include(self, other: ModelUsage) -> None:
        """Add what others used."""
        self.prompt += other.prompt
        self.cached += other.cached
        self.completion += other.completion
        self.reasoning += other.reasoning
        self.cost += other.cost

    @property
    def is_any(self) -> bool:
        """Whether anything was used."""
        return bool(self.prompt or self.completion or self.cost)

    def by_type(self) -> tuple[tuple[str, int], ...]:
        """Return the tokens by their type."""
        return (
            ("prompt", self.prompt),
            ("cached", self.cached),
            ("completion", self.completion),
            ("reasoning", self.reasoning),
        )


class Pair:
    """The histograms of one model on one server.

    Attributes:
        model: the label of the model; empty for requests without one.
        server: the name of the server; empty for requests that were sent to none.
        duration: from the first byte of the request to the last one of the answer.
        first_whole, first_stream: to the first byte of an answer, and to the first event of a stream.
        per_token: of a stream, for each token after the first.
        queued: the wait for a busy server.
        overhead: what the gateway took to pass the request on.
        seen, seen_at: how many requests there were at a scrape, and when that was not yet so, in Unix seconds.
        sampled: what `twisted_vllm.observability.traffic` has seen of the counts of `first_stream` and `duration`.
        sampled_sum: likewise, of the sum of `duration`.
    """

    __slots__ = (
        *("duration", "first_stream", "first_whole", "model", "overhead", "per_token", "queued"),
        *("sampled", "sampled_sum", "seen", "seen_at", "server"),
    )

    def __init__(self, model: str, server: str, latency_bounds: tuple[float, ...], now: float) -> None:
        self.model = model
        self.server = server
        self.seen = 0
        self.seen_at = now
        self.begin(latency_bounds)

    def begin(self, latency_bounds: tuple[float, ...]) -> None:
        """Begin all histograms at zero, with these buckets."""
        self.sampled: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        self.sampled_sum = 0.0
        self.duration = Histogram(latency_bounds)
        self.first_whole = Histogram(latency_bounds)
        self.first_stream = Histogram(latency_bounds)
        self.per_token = Histogram(TOKEN_BOUNDS)
        self.queued = Histogram(LATENCY_BOUNDS)
        self.overhead = Histogram(OVERHEAD_BOUNDS)


class Counted:
    """The requests with the same labels.

    Attributes:
        pair: their model and server.
        usage: what was used of the model.
        route_class: ``inference``, ``read_only``, ``privileged`` or ``gateway``.
        status: the status that the client got; 0 without one.
        outcome: as in the log.
        count: how many there were.
        sampled: how many of them `twisted_vllm.observability.traffic` has seen.
    """

    __slots__ = ("count", "outcome", "pair", "route_class", "sampled", "status", "usage")

    def __init__(self, pair: Pair, usage: ModelUsage, route_class: str, status: int, outcome: str) -> None:
        self.pair = pair
        self.usage = usage
        self.route_class = route_class
        self.status = status
        self.outcome = outcome
        self.count = self.sampled = 0


Listener = Callable[[RequestContext, Counted], None]
_Labels = tuple[str, str, str, int, str]


class RequestMetrics(RequestObserver):
    """Counts requests.

    Attributes:
        combinations: the requests by their labels: model, server, route class, status and outcome.
        pairs: what was measured, by model and server.
        models: what was used, by model.
        errors: the answers that were the gateway's own errors, by code.
        retries: attempts that another followed, by the reason for which they failed.
        fallbacks: requests for which another model was asked.
        latency_bounds: the upper bounds of buckets of durations, in seconds.
        listeners: are told of each request and of how it was counted.
        names: the names of models without an entry in ``model_list``.
    """

    def __init__(self, names: ModelNames, latency_bounds: tuple[float, ...] = LATENCY_BOUNDS) -> None:
        """Begin at zero.

        Args:
            names: the names of models without an entry in ``model_list``.
            latency_bounds: the upper bounds of buckets of durations, in seconds.
        """
        self.names = names
        self.combinations: dict[_Labels, Counted] = {}
        self.pairs: dict[tuple[str, str], Pair] = {}
        self.models: dict[str, ModelUsage] = {}
        self.errors: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()
        self.fallbacks = 0
        self.listeners: tuple[Listener, ...] = ()
        self.latency_bounds = latency_bounds

    def reconfigure(self, latency_bounds: tuple[float, ...]) -> None:
        """Use other buckets from now on. All histograms begin anew if they differ."""
        if latency_bounds != self.latency_bounds:
            self.latency_bounds = latency_bounds
            for pair in self.pairs.values():
                pair.begin(latency_bounds)

    def finished(self, context: RequestContext) -> None:
        """Count a request."""
        authorization, server, sent = context.authorization, context.server, context.sent
        if authorization is None:
            route_class = GATEWAY
        elif authorization.route.route_class is _INFERENCE:
            route_class = "inference"
        else:
            route_class = authorization.route.route_class.value
        labels = (
            context.group or (context.model and self.names.label(context)),
            server.name if sent and server is not None else "",
            route_class,
            context.status,
            context.outcome,
        )
        counted = self.combinations.get(labels) or self._new(labels, context.ended)
        counted.count += 1
        pair = counted.pair
        pair.duration.observe(context.ended - context.started)
        usage = context.usage
        if sent:
            self._measure(context, pair, usage)
            if usage is not NOTHING_USED or context.cost:
                counted.usage.add(usage, context.cost)
        if context.queued is not None:
            pair.queued.observe(context.queued)
        if context.error_code:
            self.errors[context.error_code] += 1
        if context.attempts:
            for attempt in context.attempts:
                self.retries[attempt.reason] += 1
        if context.fallback:
            self.fallbacks += 1
        for listen in self.listeners:
            listen(context, counted)

    def _measure(self, context: RequestContext, pair: Pair, usage: Usage) -> None:
        """Measure a request that was sent to a server."""
        meter, first = context.meter, context.first_byte
        if first is not None and (meter is None or meter.status):
            histogram = pair.first_whole
            if meter is not None and meter.is_stream:
                # vLLM sends the head of a stream before it begins to compute
                first = meter.began or first
                histogram = pair.first_stream
                tokens = usage.completion_tokens
                if meter.choices > 1:
                    tokens //= meter.choices
                if tokens > 1 and not usage.estimated:
                    pair.per_token.observe((context.ended - first) / (tokens - 1))
            histogram.observe(first - context.started)
        overhead = context.overhead
        if overhead is not None:
            pair.overhead.observe(overhead)

    def charged(self, group: str, model: str, usage: Usage, cost: int) -> str:
        """Count what a background response used, once it is charged; return the label of its model.

        Args:
            group: the name of its model group; empty without one.
            model: the name that its client used.
            usage: its usage.
            cost: in picodollars.
        """
        label = group or self.names.known(model)
        if label not in self.models and len(self.models) >= MOST_PAIRS:
            label = OTHER
        self.models.setdefault(label, ModelUsage()).add(usage, cost)
        return label

    # new labels

    def _new(self, labels: _Labels, now: float) -> Counted:
        """Make the place of requests with new labels, or return that of all others if there are too many."""
        model, server, route_class, status, outcome = labels
        if len(self.combinations) >= MOST_COMBINATIONS or (
            len(self.pairs) >= MOST_PAIRS and (model, server) not in self.pairs
        ):
            model = server = OTHER
            found = self.combinations.get((model, server, route_class, status, outcome))
            if found is not None:
                return found
        pair = self.pairs.get((model, server))
        if pair is None:
            pair = self.pairs[model, server] = Pair(model, server, self.latency_bounds, now)
        usage = self.models.get(model)
        if usage is None:
            usage = self.models[model] = ModelUsage()
        counted = Counted(pair, usage, route_class, status, outcome)
        self.combinations[model, server, route_class, status, outcome] = counted
        return counted

    def forget(self, now: float, patience: Callable[[str, str], float]) -> None:
        """Forget pairs of a model and a server for which no request was counted for long.

        Args:
            now: the time in Unix seconds.
            patience: returns after how many seconds a pair is forgotten; infinity if it is configured.
        """
        gone: set[tuple[str, str]] = set()
        for key, pair in self.pairs.items():
            count = pair.duration.count
            if count != pair.seen:
                pair.seen, pair.seen_at = count, now
            elif now - pair.seen_at >= patience(*key):
                gone.add(key)
        if not gone:
            return
        for key in gone:
            del self.pairs[key]
        self.combinations = {labels: counted for labels, counted in self.combinations.items() if labels[:2] not in gone}
        models = {model for model, _ in gone} - {model for model, _ in self.pairs}
        for model in models:
            self.models.pop(model, None)
        self.names.forget(models)
