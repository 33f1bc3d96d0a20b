"""Tells administrators the metrics of requests, budgets and servers under LiteLLM's names.

Names and labels are in `litellm_names`. Histograms have no labels of callers: they would be a hundred times as many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import attrs
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from twisted_vllm.auth.records import Principal
from twisted_vllm.histogram import Histogram
from twisted_vllm.money import float_dollars
from twisted_vllm.observability.metrics.families import HistogramFamily, NumberFamily
from twisted_vllm.observability.metrics.litellm_names import (
    COUNTERS,
    DEPLOYMENT,
    LATENCY,
    PROVIDER,
    exception_of,
)
from twisted_vllm.observability.metrics.litellm_requests import MAX_LABEL, LitellmCaller, LitellmMetrics
from twisted_vllm.observability.metrics.model_names import OTHER
from twisted_vllm.observability.metrics.requests import GATEWAY, ModelUsage, Pair
from twisted_vllm.ratelimit.allowance import KEY, ORGANIZATION, TEAM, USER


@attrs.frozen
class Deployment:
    """An entry of ``model_list`` on one server.

    Attributes:
        model_group: its model name.
        model: the server's name of the model.
        model_id: its id.
        server: the name of its server.
        state: 0 if the server gets requests, 1 if it is tried, 2 if it gets none.
        rpm, tpm: its limits in a minute; None without one.
        outages: how often its server stopped to get requests, by reason.
    """

    model_group: str
    model: str
    model_id: str
    server: str
    state: int
    rpm: int | None = None
    tpm: int | None = None
    outages: Mapping[str, int] = attrs.field(factory=dict)


@attrs.frozen
class BudgetState:
    """A budget and its use.

    Attributes:
        max_budget: in picodollars.
        spent: in the current period, likewise.
        ends: when the period ends, in Unix seconds; None without periods.
    """

    max_budget: int
    spent: int
    ends: float | None


@attrs.frozen
class RateLimit:
    """A limit of requests or of tokens in a minute.

    Attributes:
        most: the limit.
        used: what was used of it in the last minute; None if this process does not count it.
    """

    most: int
    used: int | None = None


#: returns somebody's budget, by kind and id; None if it has none
FindBudget = Callable[[str, str], BudgetState | None]
#: returns somebody's limits of requests and tokens in a minute, by kind and id
FindLimits = Callable[[str, str], tuple[RateLimit | None, RateLimit | None]]


class LitellmCollector(Collector):
    """The metrics with LiteLLM's names."""

    def __init__(
        self,
        counted: LitellmMetrics,
        deployments: Callable[[], Iterable[Deployment]],
        find_budget: FindBudget,
        find_limits: FindLimits,
        team_alias: Callable[[str], str],
        in_flight: Callable[[], int],
        now: Callable[[], float],
    ) -> None:
        """Collect what was counted.

        Args:
            counted: the counts.
            deployments: returns the entries of ``model_list``, each with its servers.
            find_budget: returns the budgets of keys, users, teams and organizations.
            find_limits: returns the limits of keys and teams.
            team_alias: returns the name of a team; empty without one.
            in_flight: returns the number of requests in flight.
            now: returns the time in Unix seconds.
        """
        self._counted = counted
        self._deployments = deployments
        self._find_budget = find_budget
        self._find_limits = find_limits
        self._team_alias = team_alias
        self._in_flight = in_flight
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Return the current figures."""
        deployments = list(self._deployments())
        self._counted.forget({each.server for each in deployments})
        models = {each.model_id: each.model for each in deployments if each.model_id}
        yield from self._requests(models)
        yield from self._latencies()
        yield from self._states(deployments)
        yield from self._budgets()
        yield GaugeMetricFamily("litellm_in_flight_requests", "Requests in flight.", self._in_flight())

    def _requests(self, models: Mapping[str, str]) -> Iterator[Metric]:
        sums = _Sums()
        for each in self._counted.combinations.values():
            counted, count = each.counted, each.count
            status, server, model = counted.status, counted.pair.server, counted.pair.model
            labels = {
                **self._labels_of(each.caller),
                "requested_model": model,
                "model_group": model,
                "model": model,
                "litellm_model_name": models.get(each.model_id, model),
                "model_id": each.model_id,
                "api_provider": PROVIDER if server else "",
                "api_base": server,
                "route": each.route,
                "status_code": str(status),
                "exception_status": str(status),
                "exception_class": exception_of(status),
            }
            has_failed = each.has_failed
            sums.add("proxy_total_requests", labels, count)
            if has_failed:
                sums.add("proxy_failed_requests", labels, count)
            if server and counted.route_class != GATEWAY:
                sums.add("deployment_total_requests", labels, count)
                name = "deployment_failure_responses" if has_failed else "deployment_success_responses"
                sums.add(name, labels, count)
                sums.add("llm_api_failed_requests" if has_failed else "requests", labels, count)
            _add_usage(sums, labels, each.usage)
        for (caller, model), usage in self._counted.background.items():
            labels = {**self._labels_of(caller), "requested_model": model, "model": model, "api_provider": PROVIDER}
            _add_usage(sums, labels, usage)
        for (caller, model, server, status), count in self._counted.failed_attempts.items():
            labels = {
                **self._labels_of(caller),
                "requested_model": model,
                "model_group": model,
                "litellm_model_name": model,
                "api_base": server,
                "api_provider": PROVIDER,
                "exception_status": str(status) if status else "",
                "exception_class": exception_of(status) if status else "APIConnectionError",
            }
            sums.add("deployment_total_requests", labels, count)
            sums.add("deployment_failure_responses", labels, count)
        for (caller, model, is_failure, status), count in self._counted.fallbacks.items():
            labels = {
                **self._labels_of(caller),
                "fallback_model": model,
                "exception_status": str(status) if is_failure else "",
                "exception_class": exception_of(status) if is_failure else "",
            }
            sums.add("failed_fallbacks" if is_failure else "successful_fallbacks", labels, count)
        yield from sums.families()

    def _labels_of(self, caller: LitellmCaller | None) -> dict[str, str]:
        if caller is None:
            return {}
        who = caller.principal
        if who is None:
            return {"api_key_alias": OTHER}
        values = {
            "hashed_api_key": who.hash_prefix,
            "api_key_alias": who.name,
            "team": who.team_id or "",
            "team_alias": self._team_alias(who.team_id) if who.team_id else "",
            "user": who.user_id or "",
            "org_id": who.organization_id or "",
        }
        return {name: value[:MAX_LABEL] for name, value in values.items()}

    def _latencies(self) -> Iterator[Metric]:
        counted = self._counted
        pairs = [pair for pair in counted.requests.pairs.values() if pair.server]
        yield _histogram(
            "litellm_request_total_latency_metric",
            "Seconds from the first byte of a request to the end of its answer.",
            LATENCY,
            [(pair, pair.duration) for pair in pairs],
        )
        yield _histogram(
            "litellm_llm_api_latency_metric",
            "Seconds from when a request was sent to a server to the end of its answer.",
            LATENCY,
            counted.api_latency.items(),
        )
        yield _histogram(
            "litellm_llm_api_time_to_first_token_metric",
            "Seconds from when a request was sent to a server to the first event of the stream.",
            LATENCY,
            counted.first_token.items(),
        )
        yield _histogram(
            "litellm_overhead_latency_metric",
            "Seconds that the gateway took to pass a request on.",
            ("model_group", "api_provider", "api_base", "litellm_model_name"),
            [(pair, pair.overhead) for pair in pairs],
        )
        yield _histogram(
            "litellm_deployment_latency_per_output_token",
            "Seconds of a stream for each token after the first.",
            ("model_group", "litellm_model_name", "api_base", "api_provider"),
            [(pair, pair.per_token) for pair in pairs],
        )

    def _states(self, deployments: Sequence[Deployment]) -> Iterator[Metric]:
        state = NumberFamily(
            "litellm_deployment_state",
            "0 if the server of an entry gets requests, 1 if it is tried again, 2 if it gets none.",
            DEPLOYMENT,
            "gauge",
        )
        limits = {
            kind: NumberFamily(
                f"litellm_deployment_{kind}_limit",
                f"The {kind} of an entry of model_list, in a minute.",
                ("model_group", *DEPLOYMENT),
                "gauge",
            )
            for kind in ("rpm", "tpm")
        }
        cooled = NumberFamily(
            "litellm_deployment_cooled_down",
            "Times that the server of an entry stopped to get requests.",
            (*DEPLOYMENT, "exception_status"),
        )
        seen: set[tuple[str, ...]] = set()
        for each in deployments:
            labels = (each.model, each.model_id, each.server, PROVIDER)
            if labels in seen:
                continue
            seen.add(labels)
            state.add(labels, each.state)
            outages: Counter[str] = Counter()
            for reason, count in each.outages.items():
                outages[reason.removeprefix("status_") if reason.startswith("status_") else ""] += count
            for status, count in outages.items():
                cooled.add((*labels, status), count)
            for kind, limit in (("rpm", each.rpm), ("tpm", each.tpm)):
                if limit is not None:
                    limits[kind].add((each.model_group, *labels), limit)
        yield from (state, cooled, *limits.values())

    def _budgets(self) -> Iterator[Metric]:
        principals = [caller.principal for caller in self._counted.callers if caller.principal is not None]
        for kind, name, labels, values_of in _BUDGETS:
            families = [
                NumberFamily(template.format(name), text.format(kind), labels, "gauge") for template, text in _FIGURES
            ]
            shown: set[tuple[str, ...]] = set()
            for who in principals:
                id, *values = values_of(who)
                if kind == TEAM:
                    values.append(self._team_alias(id))
                budget = self._find_budget(kind, id) if id else None
                if budget is None or tuple(values) in shown:
                    continue
                shown.add(tuple(values))
                left, most, hours = families
                left.add(values, float_dollars(budget.max_budget - budget.spent))
                most.add(values, float_dollars(budget.max_budget))
                if budget.ends is not None:
                    hours.add(values, max(budget.ends - self._now(), 0.0) / 3_600)
            yield from families
            if kind in (KEY, TEAM):
                yield from self._rate_limits(kind, name, labels, {values_of(who): who for who in principals})

    def _rate_limits(
        self, kind: str, name: str, labels: Sequence[str], found: Mapping[tuple[str, ...], Principal]
    ) -> Iterator[Metric]:
        allowed, used = (
            NumberFamily(f"litellm_{name}_rate_limit_{what}_metric", text, (*labels, "rate_limit_type"), "gauge")
            for what, text in (
                ("allowed", f"The limit of a {kind} in a minute, of requests or of tokens."),
                ("used", f"What a {kind} used of its limit in the last minute."),
            )
        )
        shown: set[tuple[str, ...]] = set()
        for id, *values in found:
            if kind == TEAM:
                values.append(self._team_alias(id))
            if not id or tuple(values) in shown:
                continue
            shown.add(tuple(values))
            for what, limit in zip(("requests", "tokens"), self._find_limits(kind, id), strict=True):
                if limit is None:
                    continue
                allowed.add((*values, what), limit.most)
                if limit.used is not None:
                    used.add((*values, what), limit.used)
        yield from (allowed, used)


_FIGURES = (
    ("litellm_remaining_{}_budget_metric", "What is left of the budget of a {}, in US dollars."),
    ("litellm_{}_max_budget_metric", "The budget of a {}, in US dollars."),
    ("litellm_{}_budget_remaining_hours_metric", "Hours until the budget of a {} begins anew."),
)
#: kind, LiteLLM's name of it, the labels, and the id with the values of the labels
_BUDGETS: tuple[tuple[str, str, tuple[str, ...], Callable[[Principal], tuple[str, ...]]], ...] = (
    (KEY, "api_key", ("hashed_api_key", "api_key_alias"), lambda who: (who.key_id, who.hash_prefix, who.name)),
    (TEAM, "team", ("team", "team_alias"), lambda who: (who.team_id or "", who.team_id or "")),
    (USER, "user", ("user",), lambda who: (who.user_id or "", who.user_id or "")),
    (ORGANIZATION, "org", ("org_id",), lambda who: (who.organization_id or "", who.organization_id or "")),
)


class _Sums:
    """Sums by counter and labels: what differs in no label of a counter is one sample."""

    def __init__(self) -> None:
        self._sums: dict[str, Counter[tuple[str, ...]]] = {name: Counter() for name in COUNTERS}

    def add(self, counter: str, labels: Mapping[str, str], number: int) -> None:
        """Add to a counter."""
        names = COUNTERS[counter][2]
        self._sums[counter][tuple(labels.get(name, "") for name in names)] += number

    def families(self) -> Iterator[Metric]:
        """Return all counters."""
        for counter, sums in self._sums.items():
            name, text, labels = COUNTERS[counter]
            family = NumberFamily(name, text, labels)
            for values, number in sums.items():
                family.add(values, float_dollars(number) if counter == "spend" else number)
            yield family


def _add_usage(sums: _Sums, labels: Mapping[str, str], usage: ModelUsage) -> None:
    if not usage.is_any:
        return
    for counter, number in (
        ("spend", usage.cost),
        ("total_tokens", usage.prompt + usage.completion),
        ("input_tokens", usage.prompt),
        ("output_tokens", usage.completion),
        ("input_cached_tokens", usage.cached),
        ("output_reasoning_tokens", usage.reasoning),
    ):
        sums.add(counter, labels, number)


def _histogram(name: str, text: str, labels: Sequence[str], found: Iterable[tuple[Pair, Histogram]]) -> HistogramFamily:
    family = HistogramFamily(name, text, labels)
    for pair, histogram in found:
        if histogram.count:
            values = {
                "model_group": pair.model,
                "requested_model": pair.model,
                "model": pair.model,
                "litellm_model_name": pair.model,
                "api_base": pair.server,
                "api_provider": PROVIDER,
            }
            family.add([values[label] for label in labels], histogram)
    return family
