"""The metrics of keys, users and teams."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from prometheus_client.core import Metric

from tests.observability.metrics.contexts import ADA, refused, request
from twisted_vllm.auth.records import MASTER
from twisted_vllm.context import RequestContext
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.metrics.callers import KINDS, CallerMetrics
from twisted_vllm.observability.metrics.model_names import ModelNames
from twisted_vllm.observability.metrics.requests import RequestMetrics
from twisted_vllm.usage.records import Payer, Usage

KEY, USER, TEAM = KINDS["key"], KINDS["user"], KINDS["team"]


def count(metrics: CallerMetrics, *contexts: RequestContext) -> None:
    counted = RequestMetrics(ModelNames(ClientText(str)))
    counted.listeners = (metrics.count,)
    for context in contexts:
        counted.finished(context)


def samples(metrics: CallerMetrics) -> dict[str, dict[tuple[str, ...], float]]:
    families: list[Metric] = list(metrics.collect())
    return {
        family.name.removeprefix("vllm_passthrough_"): {
            tuple(sample.labels.values()): sample.value for sample in family.samples
        }
        for family in families
    }


def test_a_key_is_named_as_in_the_log() -> None:
    metrics = CallerMetrics(KEY, 10)
    count(metrics, request(), refused(), request(principal=MASTER), request(principal=None))
    found = samples(metrics)
    assert found["key_requests"] == {
        ("ada", "0123abcd", "completed"): 1.0,
        ("ada", "0123abcd", "refused"): 1.0,
        ("master", "", "completed"): 1.0,
        ("", "", "completed"): 1.0,
    }
    assert found["key_tokens"]["ada", "0123abcd", "prompt"] == 10.0
    assert found["key_cost_usd"]["ada", "0123abcd"] == 2.0


@pytest.mark.parametrize(("kind", "id"), [(USER, "u1"), (TEAM, "t1")])
def test_users_and_teams_are_named_by_their_id(kind: Any, id: str) -> None:
    metrics = CallerMetrics(kind, 10)
    count(metrics, request(), request(), request(principal=MASTER))
    found = samples(metrics)
    assert found[f"{kind.name}_requests"] == {(id, "completed"): 2.0, ("", "completed"): 1.0}
    assert found[f"{kind.name}_cost_usd"] == {(id,): 4.0, ("",): 2.0}


def test_the_rest_is_one_other() -> None:
    metrics = CallerMetrics(KEY, 1)
    others = [attrs.evolve(ADA, key_id=f"k{number}", name=f"key-{number}") for number in range(100)]
    count(metrics, request(), *(request(principal=each) for each in others))
    found = samples(metrics)["key_requests"]
    # its id is that of one of the others
    assert found == {("ada", "0123abcd", "completed"): 2.0, ("other", "", "completed"): 99.0}


def test_two_keys_of_one_name_are_one_sample() -> None:
    metrics = CallerMetrics(KEY, 10)
    count(metrics, request(), request(principal=attrs.evolve(ADA, key_id="another")))
    assert samples(metrics)["key_requests"] == {("ada", "0123abcd", "completed"): 2.0}


def test_a_background_response_counts_for_its_payer() -> None:
    metrics = CallerMetrics(KEY, 10)
    payer = Payer("key", "k1", "0123abcd", "ada", "u1", "t1")
    metrics.charged(payer, "qwen", Usage(7, 0, 9, 0, 16), 10**12, 1_000.0)
    found = samples(metrics)
    assert found["key_tokens"]["ada", "0123abcd", "completion"] == 9.0
    assert found["key_cost_usd"]["ada", "0123abcd"] == 1.0
    assert found["key_requests"] == {}
