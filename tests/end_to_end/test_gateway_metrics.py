"""``GET /metrics`` of a whole gateway: what its document promises, and nothing about users to strangers."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus_text

from tests.end_to_end.end_to_end_harness import MASTER_KEY
from tests.end_to_end.messages import whole
from twisted_vllm.config.callbacks import Callbacks
from twisted_vllm.config.metrics import MetricsSettings
from twisted_vllm.config.settings import LedgerSettings
from twisted_vllm.upstreams.merged_metrics import SCRAPE_UP

CHAT = "/vllm/v1/chat/completions"
DOCUMENTS = Path(__file__).parents[2] / "docs"
PAGE = (DOCUMENTS / "metrics.md").read_text("utf-8")
RULES = DOCUMENTS.parent / "config" / "prometheus" / "alerts.yml"
OURS = re.compile(r"vllm_passthrough_\w+")
#: the metrics of the page's tables, each with its labels and its type
DOCUMENTED = {
    name: (tuple(labels.split(",")) if labels else (), kind)
    for name, labels, kind in re.findall(r"^\| `(\w+)(?:\{(\w+(?:,\w+)*)\})?` \| (\w+) \|", PAGE, re.MULTILINE)
}
#: those of several processes
OF_WORKERS = set(
    re.findall(r"^\| `(\w+)", PAGE.partition("only with several processes")[2].partition("## ")[0], re.MULTILINE)
)
#: there only where it is configured
CONFIGURED = (
    {"vllm_passthrough_limits_redis_up"}
    | {name for name in DOCUMENTED if name.startswith("vllm_passthrough_usage_export_")}
    | OF_WORKERS
)
OF_THE_LEDGER = {name for name in DOCUMENTED if name.startswith("vllm_passthrough_ledger_")}
#: what only administrators get, if it is switched on
OF_CALLERS = {
    name for name in DOCUMENTED if re.match(r"litellm_|vllm_passthrough_(key|user|team)_(requests|tokens|cost)", name)
}
#: everything on
ALL = MetricsSettings(key_labels=10, user_labels=10, team_labels=10, litellm_names=True)
ENDINGS = ("_bucket", "_sum", "_count")


async def scrape(gateway: Any, key: str | None = None, **headers: str) -> str:
    answer = await gateway.ask("GET", "/metrics", key, headers={"Host": "localhost", **headers})
    assert answer.status == 200
    text: str = answer.body.decode()
    return text


def declared_in(text: str) -> dict[str, str]:
    """Return the types of the gateway's own metrics, by name."""
    found = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    return {name: kind for name, kind in found.items() if name.startswith(("vllm_passthrough_", "litellm_"))}


def labels_in(text: str) -> dict[str, set[str]]:
    """Return the names of the labels of all samples, by the name of the metric."""
    found: dict[str, set[str]] = {}
    for family in prometheus_text(text):
        for sample in family.samples:
            name = sample.name
            if family.type == "histogram":
                name = next(name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending))
            found.setdefault(name, set()).update(sample.labels.keys() - {"le"})
    return found


async def check(gateway: Any, key: str | None, expected: set[str]) -> None:
    """Check that the gateway exposes these metrics and no others, with the types and labels of the page."""
    text = await scrape(gateway, key)
    declared = declared_in(text)
    assert declared == {name: DOCUMENTED[name][1] for name in expected}
    found = labels_in(text)
    for name, kind in declared.items():
        labels = DOCUMENTED[name][0]
        # what has labels has no sample before something happened
        assert found.get(name, set(labels)) == set(labels), name
        assert labels or kind == "histogram" or name in found, name
    for name, help_text in re.findall(r"^# HELP ((?:vllm_passthrough|litellm)_\w+) (.*)$", text, re.MULTILINE):
        assert re.fullmatch(r"[A-Z0-9].{1,160}[^.]\.|The gateway", help_text), name
        assert name.endswith("_total") == (declared[name] == "counter"), name


@pytest_twisted.ensureDeferred
async def test_the_page_names_every_metric_and_no_other(simulator: Any, gateway_to: Any) -> None:
    gateway = gateway_to(simulator.port, metrics=ALL)
    assert OF_CALLERS and OF_THE_LEDGER
    await check(gateway, None, DOCUMENTED.keys() - OF_CALLERS - CONFIGURED)
    key = await gateway.make_key(key_alias="ada", user_id="u", team_id="t", max_budget=10.0, budget_duration="30d")
    for stream in (False, True):
        body = {"model": "simulated-model", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
        assert (await gateway.ask("POST", CHAT, key, body=body)).status == 200
    await check(gateway, "sk-master-0123456789abcdef", set(DOCUMENTED) - CONFIGURED)


@pytest_twisted.ensureDeferred
async def test_what_nobody_switched_on_is_not_there(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in().port)
    await check(gateway, "sk-master-0123456789abcdef", DOCUMENTED.keys() - OF_CALLERS - CONFIGURED)


@pytest_twisted.ensureDeferred
async def test_the_callback_prometheus_gives_litellms_names(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in().port, callbacks=Callbacks(litellm_metrics=True))
    litellm = {name for name in DOCUMENTED if name.startswith("litellm_")}
    await check(gateway, "sk-master-0123456789abcdef", DOCUMENTED.keys() - OF_CALLERS - CONFIGURED | litellm)


@pytest_twisted.ensureDeferred
async def test_what_a_key_used_of_its_limits_is_told_by_litellms_name(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(whole(b"{}")).port, callbacks=Callbacks(litellm_metrics=True))
    key = await gateway.make_key(key_alias="ada", rpm_limit=10)
    for _ in range(3):
        await gateway.ask("POST", CHAT, key, body={"model": "m", "messages": []})
    text = await scrape(gateway, MASTER_KEY)
    figures = dict(
        re.findall(r'^litellm_api_key_rate_limit_(\w+)_metric{.*"ada",.*"requests"} (\S+)$', text, re.MULTILINE)
    )
    assert figures == {"allowed": "10.0", "used": "3.0"}


@pytest_twisted.ensureDeferred
async def test_each_alert_asks_for_metrics_that_there_are(stand_in: Any, gateway_to: Any) -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]
    # the second scrape of the example is GET /metrics/upstreams
    there = declared_in(await scrape(gateway_to(stand_in().port))).keys() | {SCRAPE_UP} | CONFIGURED
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
    await check(gateway, None, DOCUMENTED.keys() - OF_THE_LEDGER - OF_CALLERS - CONFIGURED)


@pytest_twisted.ensureDeferred
async def test_the_operator_may_close_it_to_all_but_administrators(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in().port, require_auth_for_metrics_endpoint=True)
    refused = await gateway.ask("GET", "/metrics", None)
    assert (refused.status, refused.error["code"]) == (401, "missing_api_key")
    refused = await gateway.ask("GET", "/metrics", await gateway.make_key())
    assert (refused.status, refused.error["code"]) == (403, "route_not_allowed")
    assert (await gateway.ask("GET", "/metrics")).status == 200


@pytest_twisted.ensureDeferred
async def test_strangers_learn_no_name_and_administrators_all(simulator: Any, gateway_to: Any) -> None:
    gateway = gateway_to(simulator.port, metrics=ALL)
    names = {"key_alias": "alias-of-hers", "user_id": "user-of-hers", "team_id": "team-of-hers"}
    key = await gateway.make_key(**names)
    body = {"model": "simulated-model", "messages": [{"role": "user", "content": "hi"}], "user": "end-user-of-hers"}
    assert (await gateway.ask("POST", CHAT, key, body=body)).status == 200
    shown = await scrape(gateway)
    assert "vllm_passthrough_ledger_rows_spooled_total 1.0" in shown
    assert 'vllm_passthrough_tokens_total{model="1",type="prompt"}' in shown
    assert 'vllm_passthrough_requests_in_flight{model="1",server="1"} 0.0' in shown
    assert not re.search(rf"of-hers|simulated-model|{re.escape(key)}|127\.0\.0\.1", shown)
    named = await scrape(gateway, "sk-master-0123456789abcdef")
    assert f'requests_in_flight{{model="simulated-model",server="127.0.0.1:{simulator.port}"}} 0.0' in named
    assert all(name in named for name in names.values())
    assert "end-user-of-hers" not in named and key not in named


@pytest_twisted.ensureDeferred
async def test_dashboards_of_litellm_find_the_names_of_teams(simulator: Any, gateway_to: Any, reactor: Any) -> None:
    gateway = gateway_to(simulator.port, metrics=ALL)
    made = await gateway.ask("POST", "/team/new", body={"team_id": "t1", "team_alias": "research", "max_budget": 5.0})
    assert made.status == 200
    key = await gateway.make_key(key_alias="ada", team_id="t1")
    body = {"model": "simulated-model", "messages": [{"role": "user", "content": "hi"}]}
    assert (await gateway.ask("POST", CHAT, key, body=body)).status == 200
    text = ""
    while 'team_alias="research"' not in text:
        gateway.pass_time(1)
        text = await scrape(gateway, "sk-master-0123456789abcdef")
    assert 'litellm_remaining_team_budget_metric{team="t1",team_alias="research"} 5.0' in text
    assert re.search(r'litellm_spend_metric_total\{.*team="t1",team_alias="research"', text)
    renamed = await gateway.ask("POST", "/team/update", body={"team_id": "t1", "team_alias": "science"})
    assert renamed.status == 200
    while 'team_alias="science"' not in text:
        gateway.pass_time(100)
        text = await scrape(gateway, "sk-master-0123456789abcdef")
    assert 'team_alias="research"' not in text


@pytest_twisted.ensureDeferred
async def test_openmetrics_has_the_same_samples(simulator: Any, gateway_to: Any) -> None:
    gateway = gateway_to(simulator.port, metrics=ALL)
    body = {"model": "simulated-model", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    assert (await gateway.ask("POST", CHAT, body=body)).status == 200
    master = "sk-master-0123456789abcdef"
    families = list(openmetrics(await scrape(gateway, master, Accept="application/openmetrics-text")))
    found = {sample.name for family in families for sample in family.samples}
    plain = {sample.name for family in prometheus_text(await scrape(gateway, master)) for sample in family.samples}
    wanted = {name for name in plain if name.startswith(("vllm_passthrough_", "litellm_"))}
    assert len(wanted) > 60
    assert wanted <= found


@pytest_twisted.ensureDeferred
async def test_a_reload_switches_labels_on_and_off(simulator: Any, gateway_to: Any) -> None:
    gateway = gateway_to(simulator.port)
    master = "sk-master-0123456789abcdef"
    wiring = gateway.service.wiring
    for metrics, expected in [
        (ALL, DOCUMENTED.keys() - CONFIGURED),
        (MetricsSettings(), DOCUMENTED.keys() - OF_CALLERS - CONFIGURED),
    ]:
        wiring.prepare(attrs.evolve(gateway.settings, metrics=metrics))[1]()
        await check(gateway, master, set(expected))


@pytest_twisted.ensureDeferred
async def test_the_process_says_how_it_is(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in().port)
    samples = {
        (sample.name.removeprefix("vllm_passthrough_"), *sample.labels.values()): sample.value
        for family in prometheus_text((await gateway.ask("GET", "/metrics")).body.decode())
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
