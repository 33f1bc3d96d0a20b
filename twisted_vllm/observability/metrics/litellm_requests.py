"""Counts requests for the metrics that have LiteLLM's names. `litellm_collector` reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from twisted_vllm.auth.records import Principal
from twisted_vllm.context import RequestContext
from twisted_vllm.histogram import Histogram
from twisted_vllm.observability.metrics.model_names import OTHER
from twisted_vllm.observability.metrics.requests import Counted, ModelUsage, Pair, RequestMetrics
from twisted_vllm.observability.metrics.top_callers import TopCallers
from twisted_vllm.usage.records import NOTHING_USED, Usage

#: combinations of a caller with everything else, before further ones count for the others
MOST_COMBINATIONS = 20_000
#: ids and names of keys, users, teams and organizations are cut
MAX_LABEL = 255


class LitellmCaller:
    """A key with its user and team.

    Attributes:
        uses: its requests.
        principal: who it is; None for all others together, and before its first request.
    """

    __slots__ = ("principal", "uses")

    def __init__(self) -> None:
        self.uses = 0
        self.principal: Principal | None = None


class LitellmCounted:
    """The requests of one caller that have the same labels.

    Attributes:
        caller: the caller; None for a request of nobody who is known.
        counted: the labels of the requests.
        model_id: the id of the entry that served them.
        route: the route; empty for one that is not known.
        count: how many there were.
        usage: what they used.
    """

    __slots__ = ("caller", "count", "counted", "model_id", "route", "usage")

    def __init__(self, caller: LitellmCaller | None, counted: Counted, model_id: str, route: str) -> None:
        self.caller = caller
        self.counted = counted
        self.model_id = model_id
        self.route = route
        self.count = 0
        self.usage = ModelUsage()

    @property
    def has_failed(self) -> bool:
        """Whether the clients did not get a whole answer with a status below 400."""
        return self.counted.outcome != "completed" or self.counted.status >= 400


_Labels = tuple[LitellmCaller | None, Counted, str, str]
_Attempt = tuple[LitellmCaller | None, str, str, int]
_Fallback = tuple[LitellmCaller | None, str, bool, int]


class LitellmMetrics:
    """Counts requests by caller.

    Attributes:
        callers: the keys that are counted alone.
        combinations: the requests by their labels.
        failed_attempts: attempts that another followed, by caller, model, server and status.
        fallbacks: requests for which another model was asked, by caller, that model, whether it served, and the status.
        api_latency: seconds that servers took, by model and server.
        first_token: seconds from when a stream was sent for to its first event, likewise.
        background: what background responses used once they were charged, by caller and model.
        on_caller: called with each caller that gets labels of its own. It does nothing by default.
    """

    def __init__(self, requests: RequestMetrics, most: int) -> None:
        """Begin at zero.

        Args:
            requests: counts the requests without their callers.
            most: the most keys that are counted alone.
        """
        self.requests = requests
        self.callers: TopCallers[LitellmCaller] = TopCallers(most, LitellmCaller)
        self.callers.on_left = self._left
        self.combinations: dict[_Labels, LitellmCounted] = {}
        self.failed_attempts: Counter[_Attempt] = Counter()
        self.fallbacks: Counter[_Fallback] = Counter()
        self.api_latency: dict[Pair, Histogram] = {}
        self.first_token: dict[Pair, Histogram] = {}
        self.background: dict[tuple[LitellmCaller | None, str], ModelUsage] = {}
        self.on_caller: Callable[[Principal], None] = lambda who: None

    def reconfigure(self, most: int) -> None:
        """Count so many keys alone from now on. Histograms begin anew if the requests have other buckets."""
        self.callers.reconfigure(most)
        for histograms in (self.api_latency, self.first_token):
            if any(each.bounds != self.requests.latency_bounds for each in histograms.values()):
                histograms.clear()

    def count(self, context: RequestContext, counted: Counted) -> None:
        """Count a request, unless it is one of the gateway's own routes that succeeded."""
        authorization = context.authorization
        if authorization is None and not context.error_code:
            return
        caller = self._caller(context.principal, context.ended)
        labels = (
            caller,
            counted,
            context.model_id if context.sent else "",
            "" if authorization is None else authorization.route.name,
        )
        found = self.combinations.get(labels) or self._new(labels)
        found.count += 1
        if context.usage is not NOTHING_USED or context.cost:
            found.usage.add(context.usage, context.cost)
        meter = context.meter
        if meter is not None and meter.status and counted.pair.server:
            began = context.attempt_began
            self._observe(self.api_latency, counted.pair, context.ended - began)
            if meter.is_stream and meter.began:
                self._observe(self.first_token, counted.pair, meter.began - began)
        for attempt in context.attempts:
            model = "" if context.fallback else counted.pair.model
            failed = (caller, model, attempt.server, attempt.status)
            if failed not in self.failed_attempts and len(self.failed_attempts) >= MOST_COMBINATIONS:
                failed = (self.callers.others, OTHER, OTHER, attempt.status)
            self.failed_attempts[failed] += 1
        if context.fallback:
            fallback = (caller, counted.pair.model, found.has_failed, context.status)
            if fallback not in self.fallbacks and len(self.fallbacks) >= MOST_COMBINATIONS:
                fallback = (self.callers.others, OTHER, found.has_failed, context.status)
            self.fallbacks[fallback] += 1

    def charged(self, who: Principal, model: str, usage: Usage, cost: int, now: float) -> None:
        """Count what a background response used; `model` is the label of its model."""
        key = (self._caller(who, now), model)
        if key not in self.background and len(self.background) >= MOST_COMBINATIONS:
            key = (self.callers.others, OTHER)
        self.background.setdefault(key, ModelUsage()).add(usage, cost)

    def forget(self, servers: set[str]) -> None:
        """Forget the models and servers that are counted no more.

        Args:
            servers: the names of the servers that are configured.
        """
        pairs = set(self.requests.pairs.values())
        if any(each.counted.pair not in pairs for each in self.combinations.values()):
            self.combinations = {
                labels: each for labels, each in self.combinations.items() if each.counted.pair in pairs
            }
        for histograms in (self.api_latency, self.first_token):
            for pair in histograms.keys() - pairs:
                del histograms[pair]
        servers = servers | {pair.server for pair in pairs} | {OTHER}
        for failed in [each for each in self.failed_attempts if each[2] not in servers]:
            del self.failed_attempts[failed]
        for fallback in [each for each in self.fallbacks if each[1] not in self.requests.models and each[1] != OTHER]:
            del self.fallbacks[fallback]

    def _caller(self, who: Principal | None, now: float) -> LitellmCaller | None:
        if who is None:
            return None
        caller = self.callers.of(f"{who.key_id or who.kind}\n{who.user_id or ''}\n{who.team_id or ''}", now)
        if caller.principal is None and caller is not self.callers.others:
            caller.principal = who
            self.on_caller(who)
        return caller

    def _new(self, labels: _Labels) -> LitellmCounted:
        caller, counted, model_id, route = labels
        if len(self.combinations) >= MOST_COMBINATIONS:
            labels = (self.callers.others, counted, "", "")
            found = self.combinations.get(labels)
            if found is not None:
                return found
            caller, model_id, route = self.callers.others, "", ""
        found = self.combinations[labels] = LitellmCounted(caller, counted, model_id, route)
        return found

    def _observe(self, histograms: dict[Pair, Histogram], pair: Pair, seconds: float) -> None:
        histogram = histograms.get(pair)
        if histogram is None:
            histogram = histograms[pair] = Histogram(self.requests.latency_bounds)
        histogram.observe(seconds)

    def _left(self, caller: LitellmCaller) -> None:
        """Forget a caller that is no longer counted alone."""
        self.combinations = {labels: each for labels, each in self.combinations.items() if each.caller is not caller}
        for failed in [each for each in self.failed_attempts if each[0] is caller]:
            del self.failed_attempts[failed]
        for fallback in [each for each in self.fallbacks if each[0] is caller]:
            del self.fallbacks[fallback]
        for key in [each for each in self.background if each[0] is caller]:
            del self.background[key]
