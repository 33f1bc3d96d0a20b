"""The metrics' formats: the client chooses, and nothing that it may ask for is an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus_text
from prometheus_client.registry import Collector

from twisted_vllm.observability.metrics.registry import BURST, PER_SECOND, Metrics

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
#: what Prometheus 3 sends
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
#: shared by the examples of a property: it keeps nothing between two scrapes
METRICS = Metrics()


class Temperature(Collector):
    """What it says is what it is when it is asked."""

    def __init__(self) -> None:
        self.degrees = 20.0

    def collect(self) -> list[Metric]:
        return [GaugeMetricFamily("degrees", "How warm it is.", value=self.degrees)]


@pytest.mark.parametrize("accept", ["", "*/*", "text/html, */*;q=0.8", "text/plain;version=0.0.4"])
def test_prometheus_text_is_what_everybody_gets(accept: str) -> None:
    assert METRICS.expose(accept)[1] == TEXT


@pytest.mark.parametrize("accept", ["application/openmetrics-text", "text/html, application/openmetrics-text"])
def test_openmetrics_is_for_those_who_ask_for_it(accept: str) -> None:
    assert METRICS.expose(accept)[1] == OPENMETRICS


def test_prometheus_itself_gets_openmetrics_that_its_parser_takes() -> None:
    body, content_type = METRICS.expose(PROMETHEUS)
    assert content_type == f"{OPENMETRICS}; escaping=allow-utf-8"
    assert "vllm_passthrough" in {family.name for family in openmetrics(body.decode())}


@pytest.mark.parametrize("version", ["banana", "1.0.0é", "2.0.0", "99", "1..0", '"1.0.0"', "-1"])
@pytest.mark.parametrize("media_type", ["application/openmetrics-text", "text/plain"])
def test_a_version_that_is_not_known_is_not_promised(media_type: str, version: str) -> None:
    assert METRICS.expose(f"{media_type};version={version}")[1] == TEXT
    assert METRICS.expose(f"{media_type};version={version},application/openmetrics-text")[1] == OPENMETRICS


PIECES = st.sampled_from(
    [
        "application/openmetrics-text",
        "text/plain",
        "version",
        "escaping",
        "q",
        "1.0.0",
        "0.0.4",
        "2.é",
        ",",
        ";",
        "=",
        " ",
    ]
)


@given(st.lists(PIECES | st.text(max_size=4), max_size=20).map("".join))
def test_no_accept_is_an_error(accept: str) -> None:
    body, content_type = METRICS.expose(accept)
    assert content_type.isascii()
    assert content_type.partition(";")[0] in ("text/plain", "application/openmetrics-text")
    assert b"vllm_passthrough_info" in body


def test_a_flood_of_scrapes_collects_ten_times_a_second_and_gets_the_last_collection_otherwise() -> None:
    now = 100.0
    metrics, temperature = Metrics(lambda: now), Temperature()
    metrics.add(temperature)
    seen = set()
    for tick in range(3_000):
        now = 100.0 + tick / 1_000
        temperature.degrees = float(tick)
        body, content_type = metrics.expose("")
        assert content_type == TEXT
        seen.add(body)
    assert len(seen) <= BURST + 3 * PER_SECOND
    now += 1.0
    assert b"degrees 2999.0" in metrics.expose("")[0]


def test_each_format_has_its_own_last_collection() -> None:
    metrics = Metrics(lambda: 100.0)
    for accept, content_type in [("", TEXT), (PROMETHEUS, OPENMETRICS)] * 10:
        body, found = metrics.expose(accept)
        assert found.startswith(content_type)
        assert body.endswith(b"# EOF\n") == (content_type == OPENMETRICS)


def test_what_is_added_is_asked_anew_by_each_scrape_and_shared_with_nobody() -> None:
    metrics, temperature = Metrics(), Temperature()
    metrics.add(temperature)
    for degrees in (20.0, 30.0):
        temperature.degrees = degrees
        families = {family.name: family for family in prometheus_text(metrics.expose("")[0].decode())}
        assert families["degrees"].samples[0].value == degrees
    assert b"degrees" not in Metrics().expose("")[0]
    assert REGISTRY.get_sample_value("degrees") is None


def test_a_collection_that_takes_long_counts_for_several() -> None:
    now = 100.0
    metrics = Metrics(lambda: now)

    class Slow(Collector):
        def collect(self) -> list[Metric]:
            nonlocal now
            now += 0.05
            return [GaugeMetricFamily("slow", "When it was collected.", value=now)]

    metrics.add(Slow())
    # adding it collected once; ten seconds of a flood
    now, seen = 100.0, set()
    for tick in range(10_000):
        now = max(now, 100.0 + tick / 1_000)
        seen.add(metrics.expose("")[0])
    # one takes as long as ten usual ones
    assert len(seen) <= 1 + BURST * 0.1 + 10 * PER_SECOND * 0.1 + 1


def test_what_strangers_ask_for_leaves_administrators_their_own() -> None:
    now = 100.0
    metrics, temperature = Metrics(lambda: now), Temperature()
    metrics.add(temperature)
    for tick in range(1_000):
        temperature.degrees = float(tick)
        metrics.expose("")
    assert b"degrees 999.0" not in metrics.expose("")[0]
    assert b"degrees 999.0" in metrics.expose("", named=True)[0]


def test_what_is_for_administrators_is_not_there_for_others() -> None:
    metrics = Metrics()
    metrics.add_for_administrators(Temperature())
    assert b"degrees 20.0" in metrics.expose("", named=True)[0]
    assert b"degrees" not in metrics.expose("")[0]
