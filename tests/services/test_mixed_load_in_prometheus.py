"""A mixed load, seen by a real Prometheus: what PromQL answers is what the ledger and the log say."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest

from benchmarks.dashboards.__main__ import DASHBOARDS, FOLDER
from benchmarks.dashboards.drawing import draw
from benchmarks.dashboards.mixed_load import Outcome, apply_mixed_load
from benchmarks.dashboards.panel_data import Span
from benchmarks.dashboards.picture import Answers
from benchmarks.dashboards.world import CHAT, EMBEDDING, World, world
from benchmarks.measure import percentile
from benchmarks.prometheus import Prometheus, QueryRefused, find_prometheus
from tests.end_to_end.twistd_harness import wait_until
from tests.ledger_file import open_ledger

SECONDS = 16.0
#: enough for a few of everything
SCALE = 1.6
PICODOLLARS = 10**12


@attrs.frozen
class Seen:
    """A mixed load that is over, with what is known of it.

    Attributes:
        prometheus: what was scraped.
        outcome: what the clients got.
        rows: the ledger's, each with its model and server.
        lines: the log's, of requests.
        span: the time of the load.
    """

    prometheus: Prometheus
    outcome: Outcome
    rows: list[dict[str, Any]]
    lines: list[dict[str, Any]]
    span: Span

    def values(self, expr: str, *labels: str) -> dict[Any, float]:
        """The values of an expression now, by these labels; without labels by ``()``."""
        found = self.prometheus.instant(expr, time.time())
        return {_key(each.labels, labels): each.points[-1][1] for each in found if each.points}

    def value(self, expr: str) -> float:
        """The one value of an expression."""
        [value] = self.values(expr).values()
        return value


def _key(labels: Any, names: tuple[str, ...]) -> Any:
    found = tuple(labels.get(name, "") for name in names)
    return found[0] if len(found) == 1 else found


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    if find_prometheus() is None:
        pytest.skip("Prometheus (prometheus) is not installed")
    directory = tmp_path_factory.mktemp("mixed-load")
    with world(directory, interval="1s", window=6) as everything:
        began = time.time()
        outcome = asyncio.run(apply_mixed_load(everything, SECONDS, scale=SCALE))
        span = Span(began, time.time(), 1.0)
        lines = list(_lines(directory, outcome))
        _wait_for_a_scrape(everything)
        rows = _rows(directory)
        yield Seen(everything.prometheus, outcome, rows, lines, span)


def _lines(directory: Path, outcome: Outcome) -> Iterator[dict[str, Any]]:
    """The log's lines of the clients' requests, once all are there."""
    ours = ("/v1/chat/completions", "/v1/embeddings")

    def read() -> list[dict[str, Any]]:
        every = map(json.loads, (directory / "requests.log").read_text("utf-8").splitlines())
        return [line for line in every if line.get("route") in ours]

    wait_until(lambda: len(read()) >= outcome.statuses.total())
    yield from read()


def _rows(directory: Path) -> list[dict[str, Any]]:
    with closing(open_ledger(directory / "twisted_vllm.sqlite3")) as database:
        database.row_factory = sqlite3.Row
        query = (
            "SELECT usage.*, model, server, coalesce(requests, 1) AS stands_for FROM vllm_passthrough_usage AS usage"
            " JOIN vllm_passthrough_usage_targets AS targets ON targets.id = usage.target"
        )
        return [dict(row) for row in database.execute(query)]


def _wait_for_a_scrape(everything: World) -> None:
    """Wait for one that began after the load, and that saw the last row in the ledger.

    The gateway is not asked: to who asks often it gives older metrics, and to Prometheus then too.
    """
    now = time.time()
    rows = "vllm_passthrough_ledger_spool_rows"
    written = f"timestamp({rows}) and {rows} == 0"

    def is_seen() -> bool:
        return any(each.points[-1][1] > now for each in everything.prometheus.instant(written, time.time()))

    wait_until(is_seen)


def test_requests_by_outcome_are_those_of_the_log(seen: Seen) -> None:
    found = seen.values('sum by (outcome) (vllm_passthrough_requests_total{model!=""})', "outcome")
    of_a_model = Counter(line["outcome"] for line in seen.lines if line.get("model"))
    assert {outcome: count for outcome, count in found.items() if count} == of_a_model
    assert {"completed", "refused", "client_disconnected", "upstream_error"} <= set(found)


def test_the_error_rate_by_cause_is_that_of_the_ledger(seen: Seen) -> None:
    found = seen.values(
        'sum by (server, outcome) (vllm_passthrough_requests_total{server!="",outcome!="completed"} > 0)'
        ' / on (server) group_left sum by (server) (vllm_passthrough_requests_total{server!=""})',
        "outcome",
        "server",
    )
    by_outcome: Counter[tuple[str, str]] = Counter()
    by_server: Counter[str] = Counter()
    for row in seen.rows:
        by_outcome[row["outcome"], row["server"]] += row["stands_for"]
        by_server[row["server"]] += row["stands_for"]
    expected = {
        (outcome, server): count / by_server[server]
        for (outcome, server), count in by_outcome.items()
        if outcome != "completed"
    }
    assert expected
    # Prometheus gives the servers other names: the shares identify them
    assert sorted(found.values()) == pytest.approx(sorted(expected.values()))
    assert Counter(outcome for outcome, _ in found) == Counter(outcome for outcome, _ in expected)


def test_errors_by_code_are_those_that_the_log_has(seen: Seen) -> None:
    found = seen.values("sum by (code) (vllm_passthrough_refusals_total)", "code")
    logged = Counter(line["error"] for line in seen.lines if line.get("error"))
    assert {"rate_limit_exceeded", "invalid_api_key", "model_not_found"} <= set(logged)
    assert {code: found.get(code, 0) for code in logged} == logged
    assert seen.outcome.of("wrong key") == {401: logged["invalid_api_key"]}


def test_cost_and_tokens_by_model_are_those_of_the_ledger(seen: Seen) -> None:
    cost: Counter[str] = Counter()
    tokens: Counter[tuple[str, str]] = Counter()
    for row in seen.rows:
        cost[row["model"]] += row["cost"]
        tokens[row["model"], "prompt"] += row["prompt_tokens"]
        tokens[row["model"], "completion"] += row["completion_tokens"]
    found = seen.values("sum by (model) (vllm_passthrough_cost_usd_total) > 0", "model")
    assert set(found) == {CHAT, EMBEDDING}
    assert found == pytest.approx({model: picodollars / PICODOLLARS for model, picodollars in cost.items()})
    found = seen.values(
        'sum by (model, type) (vllm_passthrough_tokens_total{type=~"prompt|completion"}) > 0', "model", "type"
    )
    assert found == {labels: count for labels, count in tokens.items() if count}


def test_the_p95_of_the_first_byte_is_in_the_bucket_that_the_ledger_s_is_in(seen: Seen) -> None:
    histogram = 'vllm_passthrough_time_to_first_byte_seconds_bucket{stream="false",server!=""}'
    found = seen.value(f"histogram_quantile(0.95, sum by (le) ({histogram}))")
    counted = seen.values(f"sum by (le) ({histogram})", "le")
    bounds = sorted(float(bound) for bound in counted if bound != "+Inf")
    # the gateway's own errors say nothing of a server's first byte
    answered = [row for row in seen.rows if not row["stream"] and not row["error"]]
    seconds = [row["first_byte_us"] / 1e6 for row in answered if row["first_byte_us"] is not None]
    assert counted["+Inf"] == len(seconds)
    exact = percentile(seconds, 95)
    assert exact is not None
    assert abs(bisect_left(bounds, found) - bisect_left(bounds, exact)) <= 1, (found, exact)


def test_a_stream_s_first_event_comes_after_its_head_and_before_its_end(seen: Seen) -> None:
    histogram = 'vllm_passthrough_time_to_first_byte_seconds_bucket{stream="true",server!=""}'
    found = seen.value(f"histogram_quantile(0.95, sum by (le) ({histogram}))")
    streams = [row for row in seen.rows if row["stream"] and row["first_byte_us"] is not None]
    head = percentile([row["first_byte_us"] / 1e6 for row in streams], 50)
    end = percentile([row["total_us"] / 1e6 for row in streams], 100)
    assert head is not None and end is not None
    assert head < found < end


def test_the_server_that_died_is_seen(seen: Seen) -> None:
    state = 'max_over_time(vllm_passthrough_upstream_state{state=~"dead|open",server="gpu-2:8000"}[1m])'
    assert max(seen.values(state, "state").values()) == 1
    failures = seen.values('vllm_passthrough_upstream_failures_total{server="gpu-2:8000"} > 0', "reason")
    # a request or a health check finds out first
    failures |= seen.values('max_over_time(vllm_passthrough_upstream_out{server="gpu-2:8000"}[1m]) > 0', "reason")
    assert any(reason.startswith("connection_") for reason in failures), failures
    assert seen.value('vllm_passthrough_upstream_healthy{server="gpu-1:8000"}') == 1


def test_each_caller_has_its_own_figures(seen: Seen) -> None:
    found = seen.values("sum by (team) (vllm_passthrough_team_cost_usd_total) > 0", "team")
    assert {"assistant", "search", "research", "batch"} == set(found)
    assert sum(found.values()) == pytest.approx(sum(row["cost"] for row in seen.rows) / PICODOLLARS)


def test_a_question_that_cannot_be_answered_is_refused_in_words(seen: Seen) -> None:
    with pytest.raises(QueryRefused, match="parse error"):
        seen.value("sum by (")


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_dashboards_can_be_drawn(seen: Seen, name: str) -> None:
    dashboard = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    drawn = draw(dashboard, Answers(seen.prometheus, seen.span, "10s"), seen.span)
    assert drawn.startswith("<svg ") and drawn.count(">No data<") <= NOTHING[name]
    assert len(drawn) < 300_000


#: panels that have nothing to show: no Redis, no sink, no certificate …
NOTHING = {"operations": 6, "tenants": 2, "fleet": 2}
