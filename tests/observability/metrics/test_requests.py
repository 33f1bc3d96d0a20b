"""What `RequestMetrics` counts, and what it shows to whom."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus_text

from tests.observability.metrics.contexts import CHAT, refused, request, server
from twisted_vllm.context import FailedAttempt, RequestContext
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.metrics import request_collector, requests
from twisted_vllm.observability.metrics.label_numbers import LabelNumbers
from twisted_vllm.observability.metrics.model_names import MAX_NAME, ModelNames
from twisted_vllm.observability.metrics.registry import Metrics
from twisted_vllm.observability.metrics.request_collector import (
    FORGET_AFTER,
    FORGET_NAME_AFTER,
    Place,
    RequestCollector,
)
from twisted_vllm.observability.metrics.requests import RequestMetrics
from twisted_vllm.usage.records import NOTHING_USED, Usage

PREFIX = "vllm_passthrough_"
Samples = dict[tuple[str, ...], float]


class Counting:
    """Counts requests, and shows what was counted."""

    def __init__(self, most_models: int = 100) -> None:
        self.now = 1_003.0
        self.models: list[str] = ["qwen", "llama-*"]
        self.servers: dict[str, int] = {"gpu-1:8000": 1, "gpu-2:8000": 2}
        self.running: list[RequestContext] = []
        self.counted = RequestMetrics(ModelNames(ClientText(lambda text: text.replace("sk-secret", "…")), most_models))
        place = Place(lambda: self.models, lambda: self.servers, lambda: self.running, lambda: self.now)
        self._scrapes = 0
        self._metrics = Metrics(lambda: float(self._scrapes))
        numbers = LabelNumbers(lambda: self.servers)
        self._metrics.add(RequestCollector(self.counted, place, numbers), RequestCollector(self.counted, place, None))

    def count(self, contexts: Iterable[RequestContext]) -> None:
        for context in contexts:
            self.counted.finished(context)

    def text(self, named: bool = True, accept: str = "") -> str:
        self._scrapes += 1
        return self._metrics.expose(accept, named)[0].decode()

    def samples(self, name: str, named: bool = True, zeros: bool = False) -> Samples:
        """Return the samples of a metric, by the values of their labels in the order of the page.

        Args:
            name: its name, without what all begin with.
            named: whether the labels have names.
            zeros: whether counters of requests that are still at 0 are among them.
        """
        return {
            tuple(sample.labels.values()): sample.value
            for family in prometheus_text(self.text(named))
            for sample in family.samples
            if sample.name == PREFIX + name and (zeros or sample.value or name != "requests_total")
        }

    def series(self) -> int:
        """Return the number of all samples of requests."""
        return sum(1 for line in self.text().splitlines() if line.startswith(PREFIX))


@pytest.fixture
def counting() -> Counting:
    return Counting()


def test_a_request_is_counted_once_with_its_labels(counting: Counting) -> None:
    counting.count([request(), request(), request(status=400, server_status=400), refused()])
    assert counting.samples("requests_total") == {
        ("qwen", "gpu-1:8000", "inference", "200", "completed"): 2.0,
        ("qwen", "gpu-1:8000", "inference", "400", "completed"): 1.0,
        ("other", "", "inference", "404", "refused"): 1.0,
    }
    assert counting.samples("refusals_total") == {("model_not_found",): 1.0}


def test_failures_are_at_0_before_the_first_so_that_prometheus_sees_it(counting: Counting) -> None:
    counting.count([request(), refused()])
    before = counting.samples("requests_total", zeros=True)
    for status, outcome in (("502", "completed"), ("502", "upstream_failed"), ("200", "upstream_error")):
        assert before["qwen", "gpu-1:8000", "inference", status, outcome] == 0.0
    assert before["qwen", "", "inference", "503", "failed"] == 0.0
    assert not [labels for labels in before if labels[0] == "other" and before[labels] == 0.0]
    counting.count([request(status=502, server_status=502)] * 1_000)
    after = counting.samples("requests_total", zeros=True)
    assert after["qwen", "gpu-1:8000", "inference", "502", "completed"] == 1_000.0
    assert after.keys() == before.keys()


def test_a_huge_fleet_has_no_series_at_0(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_collector, "MOST_ANNOUNCED", 2)
    for number in range(3):
        assert (len(counting.samples("requests_total", zeros=True)) == number) is (number in (0, 3))
        counting.count([request(at=server(f"gpu-{number}:8000"))])
    assert len(counting.samples("requests_total", zeros=True)) == 3


def test_the_gateways_own_routes_and_what_was_refused_before_its_route_was_known_count_too(counting: Counting) -> None:
    admin = request(sent=False, at=None, group="", model="", authorization=None, meter=None, usage=Usage(), cost=0)
    early = refused("invalid_api_key")
    early.authorization, early.model, early.status = None, "", 401
    counting.count([admin, early])
    assert counting.samples("requests_total") == {
        ("", "", "gateway", "200", "completed"): 1.0,
        ("", "", "gateway", "401", "refused"): 1.0,
    }


def test_tokens_and_cost_are_those_of_the_requests_by_model(counting: Counting) -> None:
    counting.count([request(), request(at=server("gpu-2:8000")), request(group="llama-*", cost=0)])
    assert counting.samples("tokens_total") == {
        ("qwen", "prompt"): 20.0,
        ("qwen", "cached"): 10.0,
        ("qwen", "completion"): 42.0,
        ("qwen", "reasoning"): 6.0,
        ("llama-*", "prompt"): 10.0,
        ("llama-*", "cached"): 5.0,
        ("llama-*", "completion"): 21.0,
        ("llama-*", "reasoning"): 3.0,
    }
    assert counting.samples("cost_usd_total") == {("qwen",): 4.0, ("llama-*",): 0.0}


def test_a_price_of_each_request_counts_where_no_token_does(counting: Counting) -> None:
    counting.count([request(usage=NOTHING_USED)])
    assert counting.samples("cost_usd_total") == {("qwen",): 2.0}


def test_a_background_response_counts_when_it_is_charged(counting: Counting) -> None:
    counting.count([request(usage=NOTHING_USED, cost=0)])
    assert counting.samples("tokens_total") == {}
    assert counting.counted.charged("qwen", "qwen", Usage(7, 0, 9, 0, 16), 10**12) == "qwen"
    assert counting.counted.charged("", "of-a-stranger", Usage(1, 0, 1, 0, 2), 0) == "other"
    tokens = counting.samples("tokens_total")
    assert (tokens["qwen", "prompt"], tokens["qwen", "completion"], tokens["other", "prompt"]) == (7.0, 9.0, 1.0)
    assert counting.samples("cost_usd_total")["qwen",] == 1.0


def test_attempts_and_fallbacks_are_counted_with_their_request(counting: Counting) -> None:
    attempts = (FailedAttempt("gpu-1:8000", "status_503"), FailedAttempt("gpu-2:8000", "upstream_timeout"))
    counting.count([request(attempts=attempts, fallback="llama"), request(attempts=attempts[:1])])
    assert counting.samples("retries_total") == {("status_503",): 2.0, ("upstream_timeout",): 1.0}
    assert counting.samples("fallbacks_total") == {(): 1.0}


def durations(counting: Counting, name: str) -> dict[tuple[str, ...], tuple[float, float]]:
    counts, sums = counting.samples(f"{name}_seconds_count"), counting.samples(f"{name}_seconds_sum")
    return {labels: (count, round(sums[labels], 6)) for labels, count in counts.items()}


def test_times_are_measured_from_the_first_byte_of_the_request(counting: Counting) -> None:
    whole, stream = request(), request(stream=True)
    assert stream.meter is not None
    # the head of the stream came after a second, its first event after another
    stream.meter.began = 1_002.0
    counting.count([whole, stream])
    pair = ("qwen", "gpu-1:8000")
    assert durations(counting, "request_duration") == {pair: (2.0, 6.0)}
    assert durations(counting, "time_to_first_byte") == {(*pair, "false"): (1.0, 1.0), (*pair, "true"): (1.0, 2.0)}
    # 21 tokens, a second from the first
    assert durations(counting, "time_per_output_token") == {pair: (1.0, 0.05)}
    assert durations(counting, "gateway_overhead") == {pair: (2.0, 0.0008)}
    assert durations(counting, "queue_wait") == {}


def test_each_choice_has_its_own_tokens(counting: Counting) -> None:
    stream = request(stream=True, usage=Usage(10, 0, 42, 0, 52))
    assert stream.meter is not None
    stream.meter.began, stream.meter.choices = 1_002.0, 2
    counting.count([stream])
    assert durations(counting, "time_per_output_token")["qwen", "gpu-1:8000"] == (1.0, 0.05)


def test_what_was_estimated_says_nothing_of_tokens(counting: Counting) -> None:
    counting.count(
        [
            request(stream=True, usage=Usage(10, 0, 42, 0, 52, estimated=True)),
            request(stream=True, usage=Usage(1, 0, 1, 0, 2)),
        ]
    )
    assert durations(counting, "time_per_output_token") == {}


def test_an_error_of_the_gateways_own_is_no_first_byte_of_a_server(counting: Counting) -> None:
    counting.count([request(server_status=0, status=502, outcome="upstream_failed", error_code="upstream_unreachable")])
    assert durations(counting, "time_to_first_byte") == {}
    assert durations(counting, "request_duration")["qwen", "gpu-1:8000"][0] == 1.0


def test_who_waited_in_vain_waited_at_no_server(counting: Counting) -> None:
    counting.count([request(queued=0.5), refused("server_busy", queued=2.0)])
    assert durations(counting, "queue_wait") == {("qwen", "gpu-1:8000"): (1.0, 0.5), ("other", ""): (1.0, 2.0)}


def test_requests_in_flight_are_looked_up_at_the_scrape_and_known_pairs_are_at_0(counting: Counting) -> None:
    counting.count([request()])
    counting.running = [request(group="llama-*"), request(group="llama-*"), request(sent=False)]
    assert counting.samples("requests_in_flight") == {
        ("qwen", "gpu-1:8000"): 0.0,
        ("llama-*", "gpu-1:8000"): 2.0,
        ("qwen", ""): 1.0,
    }


# names


def test_a_name_without_an_entry_is_known_once_a_server_answered_it(counting: Counting) -> None:
    counting.count([request(group="", model="mistral", status=404, server_status=404)])
    counting.count(
        [request(group="", model="mistral"), request(group="", model="mistral", status=400, server_status=400)]
    )
    assert {labels[0]: count for labels, count in counting.samples("requests_total").items() if labels[3] != "400"} == {
        "other": 1.0,
        "mistral": 1.0,
    }
    assert ("mistral", "gpu-1:8000", "inference", "400", "completed") in counting.samples("requests_total")


def test_no_key_and_no_long_text_becomes_a_name(counting: Counting) -> None:
    counting.count([request(group="", model="sk-secret"), request(group="", model="m" * (MAX_NAME + 1))])
    assert {labels[0] for labels in counting.samples("requests_total")} == {"…", "other"}


def test_half_a_character_in_a_name_does_not_end_the_scrapes(counting: Counting) -> None:
    counting.count([request(model="a \ud83d b", group="")])
    assert r"a \\ud83d b" in counting.text()


def test_a_route_without_a_model_teaches_no_name(counting: Counting) -> None:
    counting.count([request(group="", model="mistral", path="/ping")])
    assert {labels[0] for labels in counting.samples("requests_total")} == {"other"}


def test_strangers_get_numbers_that_stay(counting: Counting) -> None:
    counting.count([request(at=server("gpu-2:8000"))])
    wanted = ("1", "2", "inference", "200", "completed")
    assert counting.samples("requests_total", named=False) == {wanted: 1.0}
    counting.count([request(group="a-model-before"), request(at=server("gone:8000")), refused()])
    found = counting.samples("requests_total", named=False)
    assert {labels[:2] for labels in found} == {("1", "2"), ("2", "1"), ("1", "left-1"), ("other", "")}
    assert found[wanted] == 1.0
    text = counting.text(named=False)
    assert "gpu-" not in text and "qwen" not in text and "gone" not in text


def test_servers_that_left_are_forgotten_and_those_that_stay_are_not(counting: Counting) -> None:
    counting.count([request(), request(at=server("gpu-2:8000"))])
    before = counting.samples("tokens_total")
    del counting.servers["gpu-2:8000"]
    counting.series()
    counting.now += FORGET_AFTER - 1
    counting.series()
    assert {labels[1] for labels in counting.samples("requests_total")} == {"gpu-1:8000", "gpu-2:8000"}
    counting.now += 1
    assert {labels[1] for labels in counting.samples("requests_total")} == {"gpu-1:8000"}
    # sums by model do not fall
    assert counting.samples("tokens_total") == before
    counting.now += 10 * FORGET_NAME_AFTER
    assert {labels[1] for labels in counting.samples("requests_total")} == {"gpu-1:8000"}


def test_a_model_that_left_and_a_name_that_is_not_used_are_forgotten(counting: Counting) -> None:
    counting.count([request(), request(group="", model="mistral")])
    counting.models.remove("qwen")
    counting.series()
    counting.now += FORGET_AFTER
    assert {labels[0] for labels in counting.samples("requests_total")} == {"mistral"}
    counting.now += FORGET_NAME_AFTER
    assert counting.samples("requests_total") == {}
    assert counting.samples("tokens_total") == {}
    assert len(counting.counted.names) == 0


def test_other_buckets_begin_all_histograms_anew(counting: Counting) -> None:
    counting.count([request()])
    counting.counted.reconfigure((0.5, 5.0))
    assert durations(counting, "request_duration") == {}
    counting.count([request()])
    buckets = counting.samples("request_duration_seconds_bucket")
    assert {labels[2]: count for labels, count in buckets.items()} == {"0.5": 0.0, "5.0": 1.0, "+Inf": 1.0}
    counting.counted.reconfigure((0.5, 5.0))
    assert durations(counting, "request_duration")["qwen", "gpu-1:8000"][0] == 1.0


# strangers


def test_a_hostile_flood_makes_a_bounded_number_of_series() -> None:
    counting = Counting(most_models=10)
    statuses: Sequence[int] = (200, 400, 404, 429)
    for number in range(20_000):
        name = f"name-{number}"
        if number % 2:
            counting.counted.finished(refused(model=name))
        else:
            # the server takes whatever name it is asked for
            counting.counted.finished(request(group="", model=name, status=statuses[number // 2 % 4]))
    assert len(counting.counted.names) == 10
    assert len(counting.counted.pairs) == 12
    assert len(counting.counted.combinations) <= 12 * len(statuses)
    assert counting.series() < 12 * 150


def test_pairs_and_combinations_have_a_bound_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MOST_PAIRS", 20)
    monkeypatch.setattr(requests, "MOST_COMBINATIONS", 30)
    counting = Counting()
    for number in range(200):
        counting.counted.finished(request(at=server(f"pod-{number}:8000"), status=200 + number % 3))
    assert len(counting.counted.pairs) <= 21
    assert len(counting.counted.combinations) <= 33
    found = counting.samples("requests_total")
    assert sum(found.values()) == 200.0
    assert sum(count for labels, count in found.items() if labels[:2] == ("other", "other")) == 180.0
    assert counting.samples("tokens_total")["other", "prompt"] == 1_800.0


TEXTS = st.text(max_size=300)
FIELDS: dict[str, Any] = {
    "group": st.sampled_from(["", "qwen"]) | TEXTS,
    "model": TEXTS,
    "status": st.integers(0, 999),
    "server_status": st.integers(0, 999),
    "stream": st.booleans(),
    "sent": st.booleans(),
    "error_code": st.sampled_from(["", "server_busy"]),
    "outcome": st.sampled_from(["completed", "refused", "failed"]),
    "path": st.sampled_from([CHAT, "/ping", "/v1/models", "/sleep"]),
    "queued": st.none() | st.floats(0, 100),
}


@given(st.lists(st.fixed_dictionaries(FIELDS), max_size=5))
def test_whatever_comes_both_formats_can_be_read_and_all_is_counted(found: list[dict[str, Any]]) -> None:
    counting = Counting()
    counting.count(request(**fields) for fields in found)
    assert sum(counting.samples("requests_total").values()) == len(found)
    assert sum(counting.samples("requests_total", named=False).values()) == len(found)
    for named in (False, True):
        families = {family.name for family in openmetrics(counting.text(named, "application/openmetrics-text"))}
        assert PREFIX + "requests" in families
