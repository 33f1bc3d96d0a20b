"""The metrics with LiteLLM's names."""

from __future__ import annotations

import attrs
import pytest

from tests.observability.metrics.contexts import ADA, refused, request, server
from twisted_vllm.context import FailedAttempt, RequestContext
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.metrics import litellm_requests
from twisted_vllm.observability.metrics.litellm_collector import BudgetState, Deployment, LitellmCollector, RateLimit
from twisted_vllm.observability.metrics.litellm_requests import LitellmMetrics
from twisted_vllm.observability.metrics.model_names import ModelNames
from twisted_vllm.observability.metrics.requests import RequestMetrics
from twisted_vllm.usage.records import Usage

Samples = dict[str, float]
KEY = {"hashed_api_key": "0123abcd", "api_key_alias": "ada", "team": "t1", "team_alias": "research"}


class Counting:
    """Counts requests under LiteLLM's names."""

    def __init__(self, most: int = 10) -> None:
        self.requests = RequestMetrics(ModelNames(ClientText(str)))
        self.counted = LitellmMetrics(self.requests, most)
        self.requests.listeners = (self.counted.count,)
        self.deployments = [Deployment("qwen", "Qwen/Qwen3-8B", "id-1", "gpu-1:8000", 0, rpm=60)]
        self.budgets = {("team", "t1"): BudgetState(10 * 10**12, 4 * 10**12, 7_200.0)}
        self.collector = LitellmCollector(
            self.counted,
            lambda: self.deployments,
            lambda kind, id: self.budgets.get((kind, id)),
            lambda kind, id: (RateLimit(60, 7), None) if kind == "key" else (None, RateLimit(1_000)),
            {"t1": "research"}.__getitem__,
            lambda: 3,
            lambda: 0.0,
        )

    def count(self, *contexts: RequestContext) -> None:
        for context in contexts:
            self.requests.finished(context)

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Return the samples with their labels, without empty ones."""
        return [
            ({label: value for label, value in sample.labels.items() if value}, sample.value)
            for family in self.collector.collect()
            for sample in family.samples
            if sample.name == name
        ]

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have these labels."""
        return sum(value for found, value in self.samples(name) if labels.items() <= found.items())


@pytest.fixture
def counting() -> Counting:
    return Counting()


def test_requests_have_the_labels_that_dashboards_ask_for(counting: Counting) -> None:
    counting.count(request(model_id="id-1"), request(model_id="id-1", status=429, server_status=429))
    found = counting.samples("litellm_proxy_total_requests_metric_total")
    labels = {
        **KEY,
        "user": "u1",
        "requested_model": "qwen",
        "route": "/v1/chat/completions",
        "model_id": "id-1",
        "api_provider": "hosted_vllm",
    }
    assert found == [({**labels, "status_code": "200"}, 1.0), ({**labels, "status_code": "429"}, 1.0)]
    assert counting.samples("litellm_proxy_failed_requests_metric_total") == [
        ({**labels, "exception_status": "429", "exception_class": "RateLimitError"}, 1.0)
    ]


def test_the_gateways_own_routes_count_only_if_they_failed(counting: Counting) -> None:
    own = request(authorization=None, meter=None, sent=False, at=None, group="", model="", usage=Usage(), cost=0)
    counting.count(own, refused("invalid_api_key", principal=None, authorization=None))
    assert counting.total("litellm_proxy_total_requests_metric_total") == 1.0
    assert counting.total("litellm_proxy_failed_requests_metric_total", exception_class="NotFoundError") == 1.0


def test_tokens_and_spend_are_the_requests(counting: Counting) -> None:
    counting.count(request(), request(principal=attrs.evolve(ADA, key_id="k2", name="bob")))
    for name, wanted in [
        ("litellm_input_tokens_metric_total", 10.0),
        ("litellm_output_tokens_metric_total", 21.0),
        ("litellm_total_tokens_metric_total", 31.0),
        ("litellm_input_cached_tokens_metric_total", 5.0),
        ("litellm_output_reasoning_tokens_metric_total", 3.0),
        ("litellm_spend_metric_total", 2.0),
    ]:
        assert counting.total(name, api_key_alias="ada", model="qwen") == wanted, name
        assert counting.total(name) == 2 * wanted, name


def test_attempts_of_servers_are_successes_and_failures(counting: Counting) -> None:
    counting.deployments.append(Deployment("qwen", "Qwen/Qwen3-8B", "id-2", "gpu-2:8000", 2))
    failed = FailedAttempt("gpu-2:8000", "status_503", status=503)
    lost = FailedAttempt("gpu-2:8000", "upstream_unreachable")
    counting.count(request(model_id="id-1", attempts=(failed, lost)), request(outcome="client_disconnected"), refused())
    assert counting.total("litellm_deployment_total_requests_total") == 4.0
    success = "litellm_deployment_success_responses_total"
    assert counting.total(success, litellm_model_name="Qwen/Qwen3-8B", api_base="gpu-1:8000", **KEY) == 1.0
    failures = "litellm_deployment_failure_responses_total"
    assert counting.total(failures, api_base="gpu-2:8000", exception_class="ServiceUnavailableError") == 1.0
    assert counting.total(failures, api_base="gpu-2:8000", exception_class="APIConnectionError") == 1.0
    assert counting.total(failures, api_base="gpu-1:8000") == 1.0


def test_latencies_are_those_of_models_without_keys(counting: Counting) -> None:
    stream = request(stream=True, attempt_began=1_000.5)
    assert stream.meter is not None
    stream.meter.began = 1_002.0
    counting.count(stream, request(at=server("gpu-2:8000")))
    assert counting.total("litellm_request_total_latency_metric_count") == 2.0
    assert counting.total("litellm_llm_api_latency_metric_sum", api_base="gpu-1:8000") == 2.5
    assert counting.total("litellm_llm_api_time_to_first_token_metric_sum", model="qwen") == 1.5
    assert counting.total("litellm_overhead_latency_metric_count") == 2.0
    [(labels, _)] = counting.samples("litellm_llm_api_time_to_first_token_metric_count")
    assert "api_key_alias" not in labels


def test_budgets_are_those_of_callers_who_were_there(counting: Counting) -> None:
    assert counting.samples("litellm_remaining_team_budget_metric") == []
    counting.count(request(), request(principal=attrs.evolve(ADA, key_id="k2", name="bob")))
    assert counting.samples("litellm_remaining_team_budget_metric") == [({"team": "t1", "team_alias": "research"}, 6.0)]
    assert counting.samples("litellm_team_max_budget_metric") == [({"team": "t1", "team_alias": "research"}, 10.0)]
    assert counting.samples("litellm_team_budget_remaining_hours_metric") == [
        ({"team": "t1", "team_alias": "research"}, 2.0)
    ]
    assert counting.samples("litellm_remaining_api_key_budget_metric") == []


def test_entries_have_their_state_and_limits(counting: Counting) -> None:
    counting.deployments.append(counting.deployments[0])
    labels = {
        "litellm_model_name": "Qwen/Qwen3-8B",
        "model_id": "id-1",
        "api_base": "gpu-1:8000",
        "api_provider": "hosted_vllm",
    }
    assert counting.samples("litellm_deployment_state") == [(labels, 0.0)]
    assert counting.samples("litellm_deployment_rpm_limit") == [({"model_group": "qwen", **labels}, 60.0)]
    assert counting.samples("litellm_deployment_tpm_limit") == []
    assert counting.samples("litellm_in_flight_requests") == [({}, 3.0)]


def test_limits_of_callers_are_those_in_effect(counting: Counting) -> None:
    counting.count(request(), request(principal=attrs.evolve(ADA, key_id="k2")))
    key = {"hashed_api_key": "0123abcd", "api_key_alias": "ada", "rate_limit_type": "requests"}
    assert counting.samples("litellm_api_key_rate_limit_allowed_metric") == [(key, 60.0)]
    team = {"team": "t1", "team_alias": "research", "rate_limit_type": "tokens"}
    assert counting.samples("litellm_team_rate_limit_allowed_metric") == [(team, 1_000.0)]
    assert counting.samples("litellm_api_key_rate_limit_used_metric") == [(key, 7.0)]
    assert counting.samples("litellm_team_rate_limit_used_metric") == [], "Redis counts it"


def test_a_server_that_stops_to_get_requests_has_cooled_down(counting: Counting) -> None:
    outages = {"status_503": 2, "connection_refused": 1, "timeout": 3}
    counting.deployments = [attrs.evolve(counting.deployments[0], outages=outages)]
    assert counting.total("litellm_deployment_cooled_down_total", exception_status="503", api_base="gpu-1:8000") == 2.0
    assert counting.total("litellm_deployment_cooled_down_total") == 6.0


def test_fallbacks_served_or_failed(counting: Counting) -> None:
    counting.count(request(fallback="qwen"), request(fallback="qwen", status=502, error_code="upstream_unreachable"))
    good, bad = "litellm_deployment_successful_fallbacks_total", "litellm_deployment_failed_fallbacks_total"
    assert counting.samples(good) == [({**KEY, "fallback_model": "qwen"}, 1.0)]
    assert counting.total(bad, exception_class="BadGatewayError", exception_status="502") == 1.0


def test_background_responses_count_when_they_are_charged(counting: Counting) -> None:
    counting.counted.charged(ADA, "qwen", Usage(7, 0, 9, 0, 16), 10**12, 1_000.0)
    assert counting.total("litellm_total_tokens_metric_total", api_key_alias="ada", model="qwen") == 16.0
    assert counting.total("litellm_spend_metric_total") == 1.0


def test_callers_and_combinations_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litellm_requests, "MOST_COMBINATIONS", 50)
    counting = Counting(most=5)
    attempt = (FailedAttempt("gpu-2:8000", "status_503", status=503),)
    for number in range(500):
        who = attrs.evolve(ADA, key_id=f"k{number % 100}", name=f"key-{number % 100}")
        counting.count(request(principal=who, model_id=f"id-{number}", attempts=attempt))
        counting.counted.charged(who, f"model-{number}", Usage(1, 0, 1, 0, 2), 0, 1_000.0)
    assert len(counting.counted.callers) == 5
    assert len(counting.counted.combinations) <= 51
    assert len(counting.counted.background) <= 51
    assert len(counting.counted.failed_attempts) <= 51
    assert counting.total("litellm_proxy_total_requests_metric_total") == 500.0
    assert counting.total("litellm_proxy_total_requests_metric_total", api_key_alias="other") >= 450.0


def test_what_is_forgotten_of_requests_is_forgotten_here(counting: Counting) -> None:
    counting.count(request(stream=True, attempts=(FailedAttempt("gpu-2:8000", "status_503"),)))
    counting.requests.forget(0.0, lambda model, server: 0.0)
    counting.requests.forget(0.0, lambda model, server: 0.0)
    assert counting.total("litellm_proxy_total_requests_metric_total") == 0.0
    assert counting.total("litellm_llm_api_latency_metric_count") == 0.0
    assert counting.total("litellm_deployment_failure_responses_total") == 0.0
