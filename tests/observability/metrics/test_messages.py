"""How the families of several processes become those of one gateway."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.end_to_end.test_gateway_metrics import DOCUMENTED
from twisted_vllm.histogram import Histogram
from twisted_vllm.observability.metrics.conversion import message_of, metrics_of
from twisted_vllm.observability.metrics.families import HistogramFamily, NumberFamily
from twisted_vllm.observability.metrics.messages import (
    MOST_ROWS,
    Family,
    Part,
    RawPart,
    add_ended,
    for_strangers,
    merge,
    names_in,
)
from twisted_vllm.observability.metrics.registry import Metrics, encoder_for, written
from twisted_vllm.observability.metrics.rules import GAUGES, Rule, rule_of

PREFIX = "vllm_passthrough"


def counter(*rows: tuple[tuple[str, ...], float], name: str = f"{PREFIX}_requests") -> Family:
    family = NumberFamily(name, "Requests.", ["model"])
    for values, number in rows:
        family.add(values, number)
    return message_of(family, is_open=True)


def gauge(name: str, value: float) -> Family:
    return message_of(GaugeMetricFamily(f"{PREFIX}_{name}", "A figure.", value), is_open=True)


def histogram(bounds: tuple[float, ...], *observed: float) -> Family:
    counted = Histogram(bounds)
    for value in observed:
        counted.observe(value)
    family = HistogramFamily(f"{PREFIX}_request_duration_seconds", "Seconds.", ["model"])
    family.add(["m"], counted)
    return message_of(family, is_open=True)


def text_of(families: list[Family], accept: str = "") -> str:
    return written(metrics_of(families), encoder_for(accept)[0]).decode()


def samples(families: list[Family]) -> dict[str, float]:
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text_of(families).splitlines()
        if not line.startswith("#")
    }


def test_each_gauge_of_the_page_has_a_rule_and_each_rule_a_gauge() -> None:
    gauges = {name for name, (_, kind) in DOCUMENTED.items() if kind == "gauge"} - {f"{PREFIX}_info"}
    assert gauges == GAUGES.keys()


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text;version=1.0.0"])
def test_what_one_process_sent_reads_as_if_it_had_been_asked_itself(accept: str) -> None:
    metrics = Metrics()
    plain = CounterMetricFamily("a", "A.", labels=["x"])
    plain.add_metric(['quoted " \\ \n'], 3)
    fast = NumberFamily(f"{PREFIX}_requests", "Requests.", ["model"])
    fast.add(["m"], 2)

    class Both:
        def collect(self) -> list[Metric]:
            counted = Histogram((1.0,))
            counted.observe(0.5)
            slow = HistogramFamily(f"{PREFIX}_h", "Seconds.", [])
            slow.add([], counted)
            return [plain, fast, slow]

    metrics.add(Both())
    sent = msgspec.msgpack.encode([message_of(metric, is_open=is_open) for metric, is_open in metrics.families()])
    received = msgspec.msgpack.decode(sent, type=list[Family])
    skipped = r"^(# \w+ )?(process_|python_).*\n"
    expected = re.sub(skipped, "", metrics.expose(accept, named=True)[0].decode(), flags=re.MULTILINE)
    assert re.sub(skipped, "", text_of(received, accept), flags=re.MULTILINE) == expected


def test_counters_and_histograms_add() -> None:
    one = Part("worker-1", [counter((("a",), 2), (("b",), 1)), histogram((1.0, 2.0), 0.5, 5)])
    other = Part("worker-2", [counter((("b",), 4)), histogram((1.0, 2.0), 1.5)])
    found = samples(merge([one, other]))
    assert found[f'{PREFIX}_requests_total{{model="a"}}'] == 2
    assert found[f'{PREFIX}_requests_total{{model="b"}}'] == 5
    duration = f"{PREFIX}_request_duration_seconds"
    assert [found[f'{duration}_bucket{{model="m",le="{le}"}}'] for le in ("1.0", "2.0", "+Inf")] == [1, 2, 3]
    assert (found[f'{duration}_count{{model="m"}}'], found[f'{duration}_sum{{model="m"}}']) == (3, 7)


def test_histograms_with_other_bounds_add_where_their_bounds_are_the_same() -> None:
    found = samples(merge([Part("a", [histogram((1.0, 2.0), 0.5)]), Part("b", [histogram((2.0, 3.0), 2.5, 9)])]))
    name = f"{PREFIX}_request_duration_seconds_bucket"
    assert {key: count for key, count in found.items() if key.startswith(name)} == {
        f'{name}{{model="m",le="2.0"}}': 1,
        f'{name}{{model="m",le="+Inf"}}': 3,
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("connections", {"": 5.0}),
        ("last_reload_failed", {"": 3.0}),
        ("database_up", {"": 2.0}),
        ("upstream_kv_cache_usage", {"": 2.0}),
        ("open_files", {'{process="housekeeper"}': 2.0, '{process="worker-1"}': 3.0}),
    ],
)
def test_a_gauge_follows_its_rule(name: str, expected: dict[str, float]) -> None:
    parts = [Part("housekeeper", [gauge(name, 2)]), Part("worker-1", [gauge(name, 3)])]
    assert samples(merge(parts)) == {f"{PREFIX}_{name}{labels}": value for labels, value in expected.items()}


def test_of_two_processes_with_one_name_the_first_shows_its_own_figures_and_both_count() -> None:
    parts = [
        Part("worker-1", [gauge("open_files", 1), counter((("a",), 1))]),
        Part("worker-1", [gauge("open_files", 2), counter((("a",), 1))]),
    ]
    assert samples(merge(parts)) == {
        f'{PREFIX}_open_files{{process="worker-1"}}': 1,
        f'{PREFIX}_requests_total{{model="a"}}': 2,
    }


def test_what_ended_counts_where_it_adds_and_nowhere_else() -> None:
    ended = add_ended([], [gauge("connections", 7), gauge("open_files", 1), counter((("a",), 2))])
    ended = add_ended(ended, [counter((("a",), 1), (("b",), 1))])
    found = samples(merge([Part("worker-1", [counter((("a",), 1))]), Part("", ended, is_current=False)]))
    assert found == {f'{PREFIX}_requests_total{{model="a"}}': 4, f'{PREFIX}_requests_total{{model="b"}}': 1}


def test_what_ended_is_bounded_and_the_oldest_is_forgotten() -> None:
    ended: list[Family] = []
    for begin in (0, MOST_ROWS - 1):
        ended = add_ended(ended, [counter(*(((str(begin + number),), 1.0) for number in range(MOST_ROWS)))])
    (family,) = ended
    assert len(family.rows) == MOST_ROWS
    assert family.rows[0][2] == [2.0] if family.rows[0][0] == ("9999",) else True
    assert ("0",) not in {key for key, _, _ in family.rows}


def test_reloads_are_not_counted_once_for_each_process() -> None:
    assert rule_of(f"{PREFIX}_reloads", "counter") == Rule.MAX


def test_strangers_get_numbers_and_no_families_of_administrators() -> None:
    slow = GaugeMetricFamily(f"{PREFIX}_upstream_healthy", "Health.", labels=["server", "state"])
    slow.add_metric(["gpu-1:8000", "x"], 1)
    families = [
        counter((("secret-model",), 1), (("other",), 2), (("",), 3), (("late",), 4)),
        message_of(slow, is_open=True),
        message_of(NumberFamily("litellm_x", "A.", ["team"]), is_open=False),
    ]
    names = names_in(families)
    assert names == [("model", "secret-model"), ("model", "late"), ("server", "gpu-1:8000")]
    numbers = {("model", "secret-model"): "1", ("server", "gpu-1:8000"): "2"}
    assert samples(for_strangers(families, numbers)) == {
        f'{PREFIX}_requests_total{{model="1"}}': 1,
        f'{PREFIX}_requests_total{{model="other"}}': 2,
        f'{PREFIX}_requests_total{{model=""}}': 3,
        f'{PREFIX}_upstream_healthy{{server="2",state="x"}}': 1,
    }


def test_a_part_with_families_as_they_came_reads_as_one() -> None:
    family = counter((("a",), 1))
    raw = RawPart("worker-1", msgspec.Raw(msgspec.msgpack.encode([family])))
    part = msgspec.msgpack.decode(msgspec.msgpack.encode(raw), type=Part)
    assert (part.process, part.is_current) == ("worker-1", True)
    assert samples(part.families) == samples([family])


@given(st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 1000)), max_size=5))
def test_no_order_of_processes_changes_a_sum(counts: list[dict[str, int]]) -> None:
    parts = [
        Part(f"worker-{at}", [counter(*(((model,), float(count)) for model, count in each.items()))])
        for at, each in enumerate(counts)
    ]
    expected = {
        f'{PREFIX}_requests_total{{model="{model}"}}': float(sum(each.get(model, 0) for each in counts))
        for model in {model for each in counts for model in each}
    }
    assert samples(merge(parts)) == samples(merge(reversed(parts))) == expected


def test_what_is_written_can_be_parsed() -> None:
    parts = [Part("a", [counter((("m",), 1)), histogram((1.0,), 1)]), Part("b", [gauge("open_files", 1)])]
    found = {family.name: family.type for family in parse(text_of(merge(parts)))}
    assert found == {
        f"{PREFIX}_requests": "counter",
        f"{PREFIX}_request_duration_seconds": "histogram",
        f"{PREFIX}_open_files": "gauge",
    }
