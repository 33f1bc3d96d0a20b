"""The metrics of several servers in one exposition."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Summary, generate_latest
from prometheus_client.metrics_core import GaugeHistogramMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest as generate_open
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from twisted_vllm.upstreams.merged_metrics import SCRAPE_UP, Exposition, Unreadable, merged


def read(server: str, text: str | bytes, *, is_open: bool = False) -> Exposition:
    exposition = Exposition(server, is_open=is_open)
    for _ in exposition.read(text.encode() if isinstance(text, str) else text):
        pass
    return exposition


def merge(*servers: tuple[str, str | None]) -> str:
    found = [(name, None if text is None else read(name, text)) for name, text in servers]
    return b"".join(merged(found)).decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What a scraper reads, without the gateway's own samples."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name != SCRAPE_UP
    }


def test_every_sample_gets_the_name_of_its_server() -> None:
    text = merge(
        ("gpu-1:8000", "# HELP a What it is.\n# TYPE a gauge\na 1\n"),
        ("gpu-2:8000", '# HELP a What it is.\n# TYPE a gauge\na{x="y"} 2\n'),
    )
    assert text == (
        "# HELP vllm_passthrough_upstream_scrape_up Whether the metrics of this server could be read.\n"
        "# TYPE vllm_passthrough_upstream_scrape_up gauge\n"
        'vllm_passthrough_upstream_scrape_up{server="gpu-1:8000"} 1\n'
        'vllm_passthrough_upstream_scrape_up{server="gpu-2:8000"} 1\n'
        "# HELP a What it is.\n"
        "# TYPE a gauge\n"
        'a{server="gpu-1:8000"} 1\n'
        'a{server="gpu-2:8000",x="y"} 2\n'
    )


def test_a_server_without_metrics_hides_only_its_own() -> None:
    text = merge(("a", None), ("b", "up 1\n"))
    assert 'scrape_up{server="a"} 0\n' in text
    assert 'scrape_up{server="b"} 1\n' in text
    assert samples(text) == {("up", frozenset({("server", "b")})): 1.0}


def test_a_servers_own_label_gets_a_prefix_as_in_prometheus() -> None:
    assert 'a{server="s",exported_server="x"} 1\n' in merge(("s", 'a{server="x"} 1\n'))
    text = merge(("s", 'a{server="x",exported_server="y"} 1\n'))
    assert 'a{server="s",exported_exported_server="x",exported_server="y"} 1\n' in text


def test_names_and_values_are_escaped() -> None:
    text = merge(('a"\\\n', '# HELP a Back\\\\slash \\n and \\d.\n# TYPE a gauge\na{x="\\"\\\\\\n"} 1 17\n'))
    (family,) = [each for each in text_string_to_metric_families(text) if each.name == "a"]
    assert family.documentation == "Back\\slash \n and \\d."
    assert family.samples[0].labels == {"server": 'a"\\\n', "x": '"\\\n'}
    assert text.endswith(" 1 17\n")


def test_a_histogram_stays_one() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("wait_seconds", "Waiting.", ["model"], registry=registry, buckets=(1.0, 2.0))
    histogram.labels("x").observe(1.5)
    histogram.labels("y").observe(0.5)
    text = generate_latest(registry).decode()
    joined = merge(("a", text), ("b", text))
    (family,) = [each for each in text_string_to_metric_families(joined) if each.name == "wait_seconds"]
    assert family.type == "histogram"
    assert len([sample for sample in family.samples if sample.name == "wait_seconds_bucket"]) == 12
    assert joined.count("# TYPE wait_seconds histogram") == 1


def test_a_metric_of_two_types_is_untyped() -> None:
    text = merge(
        ("old", "# HELP a Old.\n# TYPE a gauge\na 1\n# TYPE b gauge\nb 1\n"),
        ("new", '# TYPE a histogram\na_bucket{le="+Inf"} 2\na_sum 3\na_count 2\n# TYPE a_sum gauge\n'),
    )
    types = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert types == {
        SCRAPE_UP: "gauge",
        "a": "unknown",
        "a_bucket": "unknown",
        "a_sum": "unknown",
        "a_count": "unknown",
        "b": "gauge",
    }
    assert text.count("# TYPE a ") == 1


def test_openmetrics_becomes_text_that_every_scraper_reads() -> None:
    text = (
        '# TYPE a counter\n# UNIT a seconds\n# HELP a Say \\"it\\".\na_total{x="1"} 5 1.5 # {trace="t"} 1 2\n'
        'a_created{x="1"} 100\n# TYPE b info\nb_info{v="1"} 1\n# TYPE c stateset\nc{c="on"} 1\n# TYPE d unknown\n'
        "d 1\n# EOF\n"
    )
    joined = b"".join(merged([("s", read("s", text, is_open=True))])).decode()
    assert joined.partition("# HELP a")[2] == (
        '_total Say "it".\n# TYPE a_total counter\na_total{server="s",x="1"} 5 1500\n'
        '# HELP a_created Say "it".\n# TYPE a_created gauge\na_created{server="s",x="1"} 100\n'
        '# TYPE b_info gauge\nb_info{server="s",v="1"} 1\n# TYPE c gauge\nc{server="s",c="on"} 1\n'
        '# TYPE d untyped\nd{server="s"} 1\n'
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"\xff 1\n", "UTF-8"),
        (b"a\n", "line 1: it is no sample"),
        (b"a one\n", "no sample"),
        (b'a{x="1"\n', "no sample"),
        (b'a{x="\\d"} 1\n', "no sample"),
        (b'a{x="1",x="2"} 1\n', "twice"),
        (b'a{__name__="b"} 1\n', "__name__"),
        (b"ok 1\na 1\na 2\n", "line 3: the same sample"),
        (b'a{x="1",y="2"} 1\na{y="2",x="1"} 1\n', "the same sample"),
        (b'a{x=""} 1\na 1\n', "the same sample"),
        (b"a 1 99999999999999999999999\n", "too large"),
        (b"a 1 1.5\n", "timestamp"),
        (b"# TYPE a gauge\n# TYPE a counter\n", "two types"),
        (b"# TYPE a strange\n", "type is unknown"),
        (b"# TYPE a histogram\na 1\na_sum 1\n", "two types"),
        (b"<html>It works!</html>\n", "no sample"),
    ],
)
def test_a_text_that_a_scraper_would_refuse_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        read("s", text)


@pytest.mark.parametrize("text", ["a 1\n", "", "# EOF\na 1\n", "# TYPE a counter\na_total 1 1e400\n# EOF\n"])
def test_openmetrics_that_is_cut_or_odd_is_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        read("s", text, is_open=True)


def test_a_gateway_behind_a_gateway_does_not_say_twice_that_a_server_is_up() -> None:
    inner = merge(("gpu", "a 1\n"))
    outer = merge(("gateway", inner))
    assert f'{SCRAPE_UP}{{server="gateway",exported_server="gpu"}} 1\n' in outer
    with pytest.raises(Unreadable):
        read("s", f"{SCRAPE_UP} 1\n")


def test_nothing_is_an_exposition_too() -> None:
    assert merge().splitlines() == [
        f"# HELP {SCRAPE_UP} Whether the metrics of this server could be read.",
        f"# TYPE {SCRAPE_UP} gauge",
    ]


def test_a_long_text_is_read_in_steps() -> None:
    text = "".join(f'a{{x="{index}"}} 1\n' for index in range(10_000)).encode()
    assert len(list(Exposition("s").read(text))) == 100


def test_a_hostile_line_takes_no_longer_than_its_size() -> None:
    for line in ("a{" + 'b="' * 50_000, "a" * 200_000, "a{" + 'b="",' * 40_000 + "!", "a 1" + " " * 200_000 + "x"):
        with pytest.raises(Unreadable):
            read("s", line + "\n")


# any expositions

_VALUES = st.floats(allow_nan=False) | st.just(math.inf)
_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
_LABELS = ("x", "server", "exported_server", "le2")


@st.composite
def registries(draw: st.DrawFn) -> CollectorRegistry:
    """Draw a registry with metrics of all types."""
    registry = CollectorRegistry()
    for name in draw(st.lists(st.sampled_from(["a", "b_c", "d_e", "f_sum", "g_count"]), unique=True, max_size=4)):
        names = draw(st.lists(st.sampled_from(_LABELS), unique=True, max_size=3))
        kind = draw(st.sampled_from([Counter, Gauge, Histogram, Summary]))
        metric = kind(name, draw(_TEXTS), names, registry=registry)
        for values in draw(st.lists(st.tuples(*[_TEXTS] * len(names)), unique=True, min_size=1, max_size=3)):
            one = metric.labels(*values) if names else metric
            amount = draw(_VALUES)
            if isinstance(one, Counter):
                one.inc(abs(amount))
            elif isinstance(one, Gauge):
                one.set(amount)
            else:
                assert isinstance(one, Histogram | Summary)
                one.observe(amount)
    if draw(st.booleans()):
        Info("about", draw(_TEXTS), registry=registry).info({"x": draw(_TEXTS)})
        Enum("state", "", registry=registry, states=["on", "off"]).state(draw(st.sampled_from(["on", "off"])))
        registry.register(_Odd())
    return registry


class _Odd(Collector):
    """Metrics that only OpenMetrics has."""

    def collect(self) -> Iterable[Metric]:
        yield GaugeHistogramMetricFamily("waits", "", buckets=[("1", 2), ("+Inf", 3)], gsum_value=4)
        yield UnknownMetricFamily("what", "", 5)


def expected(server: str, family: Metric) -> Iterable[Sample]:
    for sample in family.samples:
        labels = dict(sample.labels)
        if "server" in labels:
            renamed = "exported_server"
            while renamed in labels:
                renamed = "exported_" + renamed
            labels[renamed] = labels.pop("server")
        yield Sample(sample.name, {"server": server, **labels}, sample.value)


@given(st.lists(st.tuples(registries(), st.booleans()), max_size=3))
def test_a_scraper_reads_exactly_what_the_servers_say(drawn: list[tuple[CollectorRegistry, bool]]) -> None:
    servers, wanted = [], {}
    for index, (registry, is_open) in enumerate(drawn):
        name = f"gpu-{index}:8000"
        text = generate_open(registry) if is_open else generate_latest(registry)
        servers.append((name, read(name, text, is_open=is_open)))
        for family in registry.collect():
            for sample in expected(name, family):
                wanted[sample.name, frozenset(sample.labels.items())] = sample.value
    text = b"".join(merged(servers)).decode()
    assert samples(text) == wanted
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


@given(st.text(st.sampled_from('ab{}",=\\n \n#1.eHELPTYCOUNTcounter_sumhistogram'), max_size=80), st.booleans())
def test_any_text_is_read_or_refused(text: str, is_open: bool) -> None:
    try:
        exposition = read("s", text, is_open=is_open)
    except Unreadable:
        return
    list(text_string_to_metric_families(b"".join(merged([("s", exposition)])).decode()))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_reads_it() -> None:
    registry = CollectorRegistry()
    Histogram("wait_seconds", "Waiting.", ["server"], registry=registry).labels("x").observe(1.5)
    Counter("vllm:tokens", 'Say "it" \\ or\nnot.', registry=registry).inc()
    text = merge(
        ("a", generate_latest(registry).decode()),
        ("b", generate_latest(registry).decode()),
        ("c", None),
        ("d", "# TYPE wait_seconds summary\nwait_seconds_sum 1\nwait_seconds_count 2\n"),
    )
    done = subprocess.run(["promtool", "check", "metrics"], input=text.encode(), capture_output=True, check=False)
    assert b"error" not in done.stderr.lower(), done.stderr
    # 3 is what it says to names that break its conventions
    assert done.returncode in (0, 3), done.stderr
