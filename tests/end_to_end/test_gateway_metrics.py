"""``GET /metrics`` of a whole gateway: what its document promises, and nothing about users."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import yaml
from prometheus_client.parser import text_string_to_metric_families

from twisted_vllm.config.settings import LedgerSettings
from twisted_vllm.upstreams.merged_metrics import SCRAPE_UP

CHAT = "/vllm/v1/chat/completions"
REPOSITORY = Path(__file__).parents[2]
DOCUMENT = "\n".join((REPOSITORY / "docs" / name).read_text("utf-8") for name in ("operations.md", "metrics.md"))
RULES = REPOSITORY / "config" / "prometheus" / "alerts.yml"
OURS = re.compile(r"vllm_passthrough_\w+")
#: the metrics of the document's table; what follows a name is its labels
DOCUMENTED = dict(re.findall(r"^\| `(vllm_passthrough_\w+)(\{\w+(?:,\w+)*\})?`", DOCUMENT, re.MULTILINE))
#: there only where Redis, or sinks that deliver, are configured
CONFIGURED = {"vllm_passthrough_limits_redis_up", "vllm_passthrough_delivery_dropped_total"}
OF_THE_LEDGER = {name for name in DOCUMENTED if name.startswith("vllm_passthrough_ledger_")}


async def names_of(gateway: Any) -> set[str]:
    """Return the names of the gateway's own metrics, as anybody sees them.

    A metric with labels is declared, but has no sample before something happened; any other metric has one.
    """
    answer = await gateway.ask("GET", "/metrics", None, headers={"Host": "localhost"})
    assert answer.status == 200
    text = answer.body.decode()
    declared = set(re.findall(r"^# TYPE (vllm_passthrough_\w+) ", text, re.MULTILINE))
    # the parser takes _total off the name of a counter
    families = [family.name for family in text_string_to_metric_families(text) if family.samples]
    sampled = {name + ending for name in families for ending in ("", "_total")}
    assert [name for name in declared if not DOCUMENTED.get(name) and name not in sampled] == []
    return declared


@pytest_twisted.ensureDeferred
async def test_the_document_names_every_metric_and_no_other(stand_in: Any, gateway_to: Any) -> None:
    assert await names_of(gateway_to(stand_in().port)) == set(DOCUMENTED) - CONFIGURED


@pytest_twisted.ensureDeferred
async def test_each_alert_asks_for_metrics_that_there_are(stand_in: Any, gateway_to: Any) -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]
    # the second scrape of the example is GET /metrics/upstreams
    there = await names_of(gateway_to(stand_in().port)) | {SCRAPE_UP} | CONFIGURED
    for rule in rules:
        # of a histogram, rules ask for its parts
        asked = {re.sub("_(bucket|count|sum)$", "", name) for name in OURS.findall(rule["expr"])}
        assert asked <= there, rule["alert"]
        assert asked or "{job=" in rule["expr"]


@pytest.mark.parametrize("settings", [{}, {"master_key": None}], ids=["with a master key", "open"])
@pytest_twisted.ensureDeferred
async def test_without_a_ledger_there_is_what_the_process_says(
    stand_in: Any, gateway_to: Any, settings: dict[str, Any]
) -> None:
    gateway = gateway_to(stand_in().port, ledger=LedgerSettings(enabled=False), **settings)
    expected = set(DOCUMENTED) - OF_THE_LEDGER - CONFIGURED
    assert OF_THE_LEDGER and "vllm_passthrough_info" in expected
    assert await names_of(gateway) == expected


@pytest_twisted.ensureDeferred
async def test_the_operator_may_close_it_to_all_but_administrators(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in().port, require_auth_for_metrics_endpoint=True)
    refused = await gateway.ask("GET", "/metrics", None)
    assert (refused.status, refused.error["code"]) == (401, "missing_api_key")
    refused = await gateway.ask("GET", "/metrics", await gateway.make_key())
    assert (refused.status, refused.error["code"]) == (403, "route_not_allowed")
    assert (await gateway.ask("GET", "/metrics")).status == 200


@pytest_twisted.ensureDeferred
async def test_metrics_tell_nothing_about_users(simulator: Any, gateway_to: Any) -> None:
    gateway = gateway_to(simulator.port)
    key = await gateway.make_key(key_alias="alias-of-hers", user_id="user-of-hers", team_id="team-of-hers")
    body = {"model": "simulated-model", "messages": [{"role": "user", "content": "hi"}], "user": "end-user-of-hers"}
    assert (await gateway.ask("POST", CHAT, key, body=body)).status == 200
    shown = (await gateway.ask("GET", "/metrics", None)).body.decode()
    assert "vllm_passthrough_ledger_rows_spooled_total 1.0" in shown
    assert not re.search(rf"of-hers|simulated-model|{re.escape(key)}|127\.0\.0\.1", shown)


@pytest_twisted.ensureDeferred
async def test_the_process_says_how_it_is(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in().port)
    samples = {
        (sample.name.removeprefix("vllm_passthrough_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families((await gateway.ask("GET", "/metrics")).body.decode())
        for sample in family.samples
    }
    # the one that asks
    assert (samples["connections", "busy"], samples["connections", "idle"]) == (1, 0)
    assert 3 < samples["open_files",] < samples["open_files_limit",]
    assert samples["connections_refused_total", "total"] == samples["connections_refused_total", "address"] == 0
    assert samples["reloads_total", "succeeded"] == samples["last_reload_failed",] == samples["draining",] == 0
    assert abs(samples["last_reload_success_timestamp_seconds",] - time.time()) < 60
    assert samples["budgets", "key", "0.9"] == 0
    assert samples["log_lines_dropped_total",] == 0
