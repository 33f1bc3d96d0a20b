"""After a mixed load, the metrics of requests agree with the ledger and the log, row for row."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

import attrs
import pytest_twisted
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import eventually, request_bytes, server_at
from tests.end_to_end.ledger_harness import Columns, rows_in
from tests.end_to_end.messages import STREAM
from tests.end_to_end.test_fail_over import BUSY, IN_ORDER
from twisted_vllm.config.metrics import MetricsSettings
from twisted_vllm.config.settings import HealthSettings, ModelEntry, PriceList
from twisted_vllm.money import from_dollars

CHAT = "/vllm/v1/chat/completions"
MODEL = "simulated-model"
HELLO = [{"role": "user", "content": "hello, how are you?"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
PRICES = PriceList(input_cost_per_token=Decimal("0.001"), output_cost_per_token=Decimal("0.002"))
TYPES = ("prompt", "cached", "completion", "reasoning")

Samples = dict[tuple[str, ...], float]


def samples_in(text: str, name: str) -> Samples:
    """Return the samples of a metric above 0, by the values of their labels."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"vllm_passthrough_{name}" and sample.value
    }


async def mixed_load(gateway: Any, reactor: Any, hanging: Any, key: str, poor: str) -> None:
    """Send what clients send: good and bad requests, streams, tools, embeddings, and some that they give up."""

    async def chat(expected: int = 200, by: str = key, path: str = CHAT, **body: Any) -> None:
        answer = await gateway.ask("POST", path, by, body={"model": MODEL, "messages": HELLO, **body})
        assert answer.status == expected, answer.body

    await chat()
    await chat(stream=True)
    await chat(stream=True, stream_options={"include_usage": True}, max_tokens=3)
    await chat(tools=TOOLS, tool_choice="required")
    await chat(n=2)
    await chat(path="/vllm/v1/embeddings", input="hello", messages=None)
    await chat(path="/v1/completions", prompt="hello", messages=None)
    # vLLM's own error
    await chat(400, max_tokens=10**9)
    # an attempt that another followed, and a model that took another's place
    await chat(model="twice")
    await chat(model="gone")
    # what the gateway refuses
    await chat(404, model="no-such-model")
    await chat(401, by="sk-nobody-0123456789")
    await chat(by=poor)
    await chat(429, by=poor)
    await chat(502, model="dead")
    assert (await gateway.ask("GET", "/vllm/version", key)).status == 200
    assert (await gateway.ask("POST", "/vllm/sleep", key)).status == 403
    assert (await gateway.ask("GET", "/key/info", key)).status == 200
    assert (await gateway.ask("GET", "/no/such/path")).status == 404
    assert (await gateway.answer_to(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n")).status == 400
    # clients that leave: before an answer began, and in the middle of a stream
    raw = request_bytes("POST", CHAT, key, body={"model": "hanging", "messages": HELLO, "stream": True})
    for began in (False, True):
        client = await gateway.send(raw)
        server = await hanging.connection(int(began))
        await server.until_received(b"hello, how")
        if began:
            server.send(STREAM)
            await client.until_received(b"abc")
        client.cut()
        await server.until_lost()
    await eventually(reactor, lambda: not gateway.service.wiring.site.running())


@pytest_twisted.ensureDeferred
async def test_metrics_ledger_and_log_say_the_same(
    simulator: Any, stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    hanging, busy = stand_in(), stand_in(BUSY)
    served = server_at(simulator.port)

    def entry(name: str, port: int, **options: Any) -> ModelEntry:
        return ModelEntry(name, MODEL, server_at(port), prices=PRICES, **options)

    models = (
        ModelEntry(MODEL, MODEL, served, prices=PRICES),
        entry("twice", busy.port),
        ModelEntry("twice", MODEL, served, prices=PRICES),
        entry("gone", free_port()),
        entry("dead", free_port()),
        entry("hanging", hanging.port),
    )
    routing = attrs.evolve(IN_ORDER, fallbacks={"gone": (MODEL,)})
    gateway = gateway_to(
        None,
        models=models,
        routing=routing,
        health=HealthSettings(interval=None),
        metrics=MetricsSettings(key_labels=10, team_labels=10, litellm_names=True),
    )
    key = await gateway.make_key(key_alias="ada", team_id="t1")
    poor = await gateway.make_key(key_alias="poor", rpm_limit=1)
    await mixed_load(gateway, reactor, hanging, key, poor)
    text = (await gateway.ask("GET", "/metrics")).body.decode()
    # without the line of the scrape
    lines = gateway.request_lines()[:-1]
    await gateway.stop()
    rows = [row for found in rows_in(gateway.database_file).values() for row in found]
    agree_with_the_log(text, lines)
    agree_with_the_ledger(text, rows)


def agree_with_the_log(text: str, lines: list[Columns]) -> None:
    requests = samples_in(text, "requests_total")
    by_end: Counter[tuple[str, str]] = Counter()
    for (_, _, _, status, outcome), count in requests.items():
        by_end[status, outcome] += int(count)
    assert by_end == Counter((str(line["status"]), line["outcome"]) for line in lines)
    assert {"completed", "refused", "client_disconnected", "upstream_failed"} == {line["outcome"] for line in lines}
    errors = samples_in(text, "refusals_total")
    assert errors == {(code,): count for code, count in Counter(line["error"] for line in lines).items() if code}
    assert len(errors) >= 7
    attempts = Counter(each.split(" ")[1] for line in lines for each in line.get("attempts", "").split(", ") if each)
    assert samples_in(text, "retries_total") == {(reason,): count for reason, count in attempts.items()}
    assert samples_in(text, "fallbacks_total") == {(): sum("fallback" in line for line in lines)}
    counts = samples_in(text, "request_duration_seconds_count")
    assert sum(counts.values()) == len(lines)
    keys: Counter[tuple[str, str, str]] = Counter(
        (line["key_name"], line["key_hash"], line["outcome"]) for line in lines
    )
    assert samples_in(text, "key_requests_total") == keys
    # nothing is left in flight but the scrape itself
    assert samples_in(text, "requests_in_flight") == {("", ""): 1.0}


def agree_with_the_ledger(text: str, rows: list[Columns]) -> None:
    requests = samples_in(text, "requests_total")
    sent = Counter((row["model"] or "", row["server"], str(row["status"]), row["outcome"]) for row in rows)
    found: Counter[tuple[str, ...]] = Counter()
    for (model, server, _, status, outcome), count in requests.items():
        if server:
            found[model, server, status, outcome] += int(count)
    assert found == sent
    assert len(rows) > 12
    tokens: Counter[tuple[str, ...]] = Counter()
    cost: Counter[tuple[str, ...]] = Counter()
    of_keys: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        for kind in TYPES:
            tokens[row["model"] or "", kind] += row[f"{kind}_tokens"]
            of_keys[row["key_name"], row["key_hash"], kind] += row[f"{kind}_tokens"]
        cost[row["model"] or "",] += row["cost"]
    assert samples_in(text, "tokens_total") == {labels: count for labels, count in tokens.items() if count}
    assert samples_in(text, "key_tokens_total") == {labels: count for labels, count in of_keys.items() if count}
    found_cost = {labels: from_dollars(dollars) for labels, dollars in samples_in(text, "cost_usd_total").items()}
    assert found_cost == {labels: picodollars for labels, picodollars in cost.items() if picodollars}
    assert sum(cost.values()) > 0
    litellm = [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "litellm_total_tokens_metric_total"
    ]
    assert sum(value for labels, value in litellm if labels["api_key_alias"] == "ada" and labels["team"] == "t1") == (
        sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows if row["key_name"] == "ada")
    )
    streams = samples_in(text, "time_per_output_token_seconds_count")
    assert sum(streams.values()) == sum(
        bool(row["stream"] and not row["estimated"] and row["completion_tokens"] > 1) for row in rows
    )
