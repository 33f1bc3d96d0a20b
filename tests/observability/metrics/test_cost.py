"""What the metrics of requests cost: CPU for each request, and the time of a scrape."""

from __future__ import annotations

import time
from collections.abc import Callable

import attrs
import pytest

from tests.observability.metrics.contexts import ADA, refused, request, server
from twisted_vllm.context import RequestContext
from twisted_vllm.lifecycle import Lifecycle
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.metrics.callers import KINDS, CallerMetrics
from twisted_vllm.observability.metrics.litellm_requests import LitellmMetrics
from twisted_vllm.observability.metrics.model_names import ModelNames
from twisted_vllm.observability.metrics.registry import Metrics
from twisted_vllm.observability.metrics.request_collector import Place, RequestCollector
from twisted_vllm.observability.metrics.requests import RequestMetrics

#: the most CPU of a request in µs: as it comes, and with labels of keys, users and teams and LiteLLM's names
DEFAULT, EVERYTHING = 4.0, 12.0
ROUNDS, REQUESTS = 20, 2_000


def traffic() -> list[RequestContext]:
    """Return requests of many kinds: a third are streams, a tenth are refused, of 10 models, 8 servers and 50 keys."""
    keys = [attrs.evolve(ADA, key_id=f"k{number}", name=f"key-{number}") for number in range(50)]
    servers = [server(f"gpu-{number}:8000") for number in range(8)]
    found: list[RequestContext] = []
    for number in range(REQUESTS):
        who, model = keys[number * 7 % 50], f"model-{number % 10}"
        if number % 10 == 9:
            found.append(refused("rate_limit_exceeded", principal=who))
            continue
        context = request(
            group=model, at=servers[number % 8], stream=number % 3 == 0, principal=who, model_id=f"id-{number % 10}"
        )
        assert context.meter is not None
        context.meter.began = 1_001.0 + number / REQUESTS
        found.append(context)
    return found


def cost(metrics: RequestMetrics) -> float:
    """Return the CPU of a request in µs, of the best of some rounds."""
    contexts, finished = traffic(), Lifecycle([metrics]).finished
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        for context in contexts:
            finished(context)
        best = min(best, time.process_time() - began)
    return best / REQUESTS * 1e6


def plain() -> RequestMetrics:
    return RequestMetrics(ModelNames(ClientText(str)))


def with_keys() -> RequestMetrics:
    metrics = plain()
    metrics.listeners = tuple(CallerMetrics(kind, 100).count for kind in KINDS.values())
    return metrics


def with_litellm() -> RequestMetrics:
    metrics = plain()
    metrics.listeners = (LitellmMetrics(metrics, 100).count,)
    return metrics


def with_everything() -> RequestMetrics:
    metrics = with_keys()
    metrics.listeners += (LitellmMetrics(metrics, 100).count,)
    return metrics


@pytest.mark.parametrize(
    ("make", "most"),
    [(plain, DEFAULT), (with_keys, EVERYTHING), (with_litellm, EVERYTHING), (with_everything, EVERYTHING)],
)
def test_a_request_costs_a_few_microseconds(make: Callable[[], RequestMetrics], most: float) -> None:
    found = cost(make())
    print(f"{make.__name__}: {found:.2f} µs")
    assert found < most


def test_ten_thousand_samples_are_written_in_milliseconds() -> None:
    counted = plain()
    for model in range(25):
        for number in range(4):
            for stream in (False, True):
                counted.finished(request(group=f"model-{model}", at=server(f"gpu-{number}:8000"), stream=stream))
    place = Place(list, list, list, lambda: 0.0)
    now = 0.0
    metrics = Metrics(lambda: now)
    metrics.add(RequestCollector(counted, place, None))
    best = float("inf")
    samples = 0
    for _ in range(5):
        # none gets the last collection again
        now += 10.0
        began = time.process_time()
        text = metrics.expose("")[0]
        best = min(best, time.process_time() - began)
        samples = text.count(b"\nvllm_passthrough_")
    print(f"{samples} samples: {best * 1e3:.1f} ms")
    assert samples > 9_000
    assert best < 0.05
