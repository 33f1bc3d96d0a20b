"""What is read of the metrics of requests, step by step."""

from __future__ import annotations

import pytest

from tests.observability.metrics.contexts import refused, request, server
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.metrics.model_names import ModelNames
from twisted_vllm.observability.metrics.requests import RequestMetrics
from twisted_vllm.observability.traffic.causes import meaning_of
from twisted_vllm.observability.traffic.sampler import Sampler
from twisted_vllm.observability.traffic.steps import BOUNDS, ModelStep, Step
from twisted_vllm.usage.records import Usage


def counting(*bounds: float) -> tuple[RequestMetrics, Sampler]:
    counted = RequestMetrics(ModelNames(ClientText(str)), bounds or BOUNDS)
    return counted, Sampler(counted)


def test_each_request_is_in_one_step() -> None:
    counted, sampler = counting()
    taken = []
    for number in range(3):
        for _ in range(number):
            counted.finished(request(stream=True))
        taken.append(sampler.take(number, 4))
    assert [each.total().requests for each in taken] == [0, 1, 2]
    assert taken[0] == Step(0, 4)
    # 1 s to the first event, 3 s in all
    assert taken[2].models == {
        "qwen": ModelStep(2, 0, 20, 10, 42, 4_000_000_000, {BOUNDS.index(1.0): 2}, {BOUNDS.index(5.0): 2})
    }


def test_what_was_counted_before_it_began_is_in_no_step() -> None:
    counted = RequestMetrics(ModelNames(ClientText(str)))
    counted.finished(request())
    counted.finished(refused())
    assert Sampler(counted).take(1, 0) == Step(1)


def test_errors_have_causes_that_the_gateway_chooses() -> None:
    counted, sampler = counting()
    for context in (
        refused("budget_exceeded"),
        refused("budget_exceeded"),
        request(status=503, server_status=503),
        request(outcome="client_disconnected"),
        request(outcome="upstream_failed"),
        request(outcome="upstream_error"),
        request(outcome="revoked"),
        request(status=502, outcome="upstream_failed", error_code="upstream_unreachable"),
    ):
        counted.finished(context)
    taken = sampler.take(1, 0)
    assert taken.causes == {
        "budget_exceeded": 2,
        "server_status_503": 1,
        "client_disconnected": 1,
        "answer_cut": 1,
        "stream_error": 1,
        "revoked": 1,
        "upstream_unreachable": 1,
    }
    assert (taken.total().requests, taken.total().failed) == (8, 8)


def test_to_look_at_the_console_is_no_traffic() -> None:
    counted, sampler = counting()
    for status in (200, 404):
        context = request(sent=False, at=None, group="", model="", server_status=0, usage=Usage(), cost=0)
        context.authorization, context.status, context.meter = None, status, None
        context.outcome = "completed" if status == 200 else "refused"
        counted.finished(context)
    taken = sampler.take(1, 0)
    assert (taken.total().requests, taken.total().failed, taken.total().duration) == (1, 1, {})


def test_other_buckets_of_the_metrics_are_put_into_those_of_the_steps() -> None:
    counted, sampler = counting(2.0, 4.0)
    counted.finished(request(stream=True))
    # at most 2 s: within the bucket up to 2.5 s; at most 4 s: within that up to 5 s
    [model] = sampler.take(1, 0).models.values()
    assert (model.first, model.duration) == ({BOUNDS.index(2.5): 1}, {BOUNDS.index(5.0): 1})
    counted.reconfigure((1.0, 60.0))
    counted.finished(request(stream=True))
    [model] = sampler.take(2, 0).models.values()
    assert (model.requests, model.first, model.duration) == (1, {BOUNDS.index(1.0): 1}, {BOUNDS.index(60.0): 1})


def test_pairs_that_were_forgotten_and_come_again_are_counted_once() -> None:
    counted, sampler = counting()
    counted.finished(request(at=server("gpu-2:8000")))
    assert sampler.take(1, 0).total().requests == 1
    counted.forget(2_000.0, lambda model, server: 0.0)
    counted.forget(9_000.0, lambda model, server: 0.0)
    assert sampler.take(2, 0) == Step(2)
    counted.finished(request(at=server("gpu-2:8000")))
    taken = sampler.take(3, 0).total()
    assert (taken.requests, taken.prompt, sum(taken.duration.values())) == (1, 10, 1)


@pytest.mark.parametrize(
    ("cause", "by", "word"),
    [
        ("server_status_503", "server", "answered 503"),
        ("client_disconnected", "client", "left"),
        ("answer_cut", "server", "broke off"),
        ("stream_error", "server", "stream"),
        ("revoked", "gateway", "blocked"),
        ("budget_exceeded", "gateway", "gateway's own"),
        ("other", "other", "Other"),
    ],
)
def test_a_cause_says_who_ended_the_request_and_what_it_means(cause: str, by: str, word: str) -> None:
    assert meaning_of(cause)[0] == by
    assert word in meaning_of(cause)[1]
