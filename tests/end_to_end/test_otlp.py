"""What receivers of OTLP get of a whole gateway: its metrics, and Langfuse its traces."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import attrs
import pytest
import pytest_twisted
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

pytest.importorskip("opentelemetry.sdk")

from tests.conftest import LoggedFailures
from tests.end_to_end.end_to_end_harness import Gateway, eventually, server_at
from tests.end_to_end.messages import whole
from tests.otlp_receiver import OtlpReceiver, http_receiver, plain
from twisted_vllm.config import otlp_metrics, otlp_sinks
from twisted_vllm.config.log_bodies import LogBodiesSettings
from twisted_vllm.config.otlp_metrics import OtlpMetricsSettings
from twisted_vllm.config.problems import Place, Report
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import ModelEntry, PriceList
from twisted_vllm.config.sinks import SinkQueue, SinkSettings
from twisted_vllm.config.tracing import TracingSettings, resolved
from twisted_vllm.config.tracing_vendors import vendor_destination

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Capital of France?"}]}
ANSWER = whole(
    json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        }
    ).encode()
)
INTERVAL = 15.0


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with http_receiver() as found:
        yield found


def exporting(found: OtlpReceiver, **changes: Any) -> OtlpMetricsSettings:
    written = OtlpMetricsSettings(endpoint=f"{found.url}/v1/metrics", interval=INTERVAL, **changes)
    return otlp_metrics.resolved(written, TracingSettings(), Place("", Report(), {}))


async def arrived(reactor: Any, found: OtlpReceiver, count: int) -> None:
    await eventually(reactor, lambda: len(found.exports) >= count)


def delivery(gateway: Gateway, what: str, sink: str) -> float:
    text = gateway.service.wiring.metrics.expose("", named=True)[0].decode()
    name = f'vllm_passthrough_delivery_{what}{{sink="{sink}"}} '
    return next(float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name))


class Failing(Collector):
    """Cannot be collected until it is told otherwise."""

    fails = True

    def collect(self) -> Iterator[Metric]:
        if self.fails:
            raise ZeroDivisionError
        return iter(())

    def describe(self) -> Iterator[Metric]:
        return iter(())


@pytest_twisted.ensureDeferred
async def test_a_collection_that_fails_does_not_end_the_exports(
    reactor: Any, stand_in: Any, gateway_to: Any, receiver: OtlpReceiver, logged_failures: LoggedFailures
) -> None:
    gateway = gateway_to(stand_in(ANSWER).port, otlp_metrics=exporting(receiver))
    failing = Failing()
    gateway.service.wiring.metrics.add(failing)
    gateway.clock.advance(INTERVAL)
    assert logged_failures.flush(ZeroDivisionError)
    failing.fails = False
    gateway.clock.advance(INTERVAL)
    await arrived(reactor, receiver, 1)


async def delivered(reactor: Any, gateway: Gateway, count: int) -> None:
    """Wait until so many exports have been answered: until then, the time that passes counts as their timeout."""
    await eventually(reactor, lambda: delivery(gateway, "delivered_total", "metrics:otlp") == count)


@pytest_twisted.ensureDeferred
async def test_the_metrics_are_exported_at_each_interval(
    reactor: Any, stand_in: Any, gateway_to: Any, receiver: OtlpReceiver
) -> None:
    gateway = gateway_to(stand_in(ANSWER).port, otlp_metrics=exporting(receiver))
    assert (await gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT)).status == 200
    assert receiver.exports == []
    gateway.clock.advance(INTERVAL)
    await arrived(reactor, receiver, 1)
    found = receiver.metrics()
    assert found["vllm_passthrough_requests_in_flight"].HasField("gauge")
    requests = found["vllm_passthrough_requests"].sum
    assert requests.is_monotonic
    assert sum(point.as_double for point in requests.data_points) == 1
    durations = found["vllm_passthrough_request_duration_seconds"].histogram
    assert sum(point.count for point in durations.data_points) == 1
    resource = plain(receiver.exports[0].data.resource_metrics[0].resource)
    assert resource["service.name"] == "vllm-passthrough"
    await delivered(reactor, gateway, 1)
    gateway.clock.advance(INTERVAL)
    await arrived(reactor, receiver, 2)


@pytest_twisted.ensureDeferred
async def test_a_receiver_that_is_away_costs_a_metric_and_gets_the_latest_figures(
    reactor: Any, stand_in: Any, gateway_to: Any, receiver: OtlpReceiver
) -> None:
    gateway = gateway_to(stand_in(ANSWER).port, otlp_metrics=exporting(receiver, timeout=0.2))
    receiver.status = 503
    gateway.clock.advance(INTERVAL)
    await eventually(reactor, lambda: delivery(gateway, "failures_total", "metrics:otlp") == 1)
    assert (await gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT)).status == 200
    receiver.status = 200
    before = len(receiver.exports)
    gateway.clock.advance(INTERVAL)

    def has_latest() -> bool:
        gateway.clock.advance(0.1)
        return len(receiver.exports) > before and "vllm_passthrough_requests" in receiver.metrics()

    await eventually(reactor, has_latest)
    requests = receiver.metrics()["vllm_passthrough_requests"].sum.data_points
    assert sum(point.as_double for point in requests) == 1
    assert delivery(gateway, "queued", "metrics:otlp") <= 1


@pytest_twisted.ensureDeferred
async def test_a_stopping_gateway_exports_its_last_figures(
    reactor: Any, stand_in: Any, gateway_to: Any, receiver: OtlpReceiver
) -> None:
    gateway = gateway_to(stand_in(ANSWER).port, otlp_metrics=exporting(receiver))
    assert (await gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT)).status == 200
    await gateway.clean_up()
    requests = receiver.metrics()["vllm_passthrough_requests"].sum.data_points
    assert sum(point.as_double for point in requests) == 1


@pytest_twisted.ensureDeferred
async def test_a_reload_switches_them_over_and_off(
    reactor: Any, stand_in: Any, gateway_to: Any, receiver: OtlpReceiver
) -> None:
    gateway = gateway_to(stand_in(ANSWER).port)
    telemetry = gateway.service.wiring.telemetry
    gateway.clock.advance(INTERVAL)
    on = attrs.evolve(gateway.settings, otlp_metrics=exporting(receiver))
    telemetry.prepare(on)()
    gateway.clock.advance(INTERVAL)
    await delivered(reactor, gateway, 1)
    with http_receiver() as other:
        telemetry.prepare(attrs.evolve(on, otlp_metrics=exporting(other)))()
        gateway.clock.advance(INTERVAL)
        await delivered(reactor, gateway, 2)
        assert len(other.exports) == 1
        telemetry.prepare(gateway.settings)()
        gateway.clock.advance(INTERVAL)
        gateway.clock.advance(INTERVAL)
    assert len(receiver.exports) == 1
    # once the last export has ended
    metrics = gateway.service.wiring.metrics
    await eventually(reactor, lambda: "metrics:otlp" not in metrics.expose("", named=True)[0].decode())


def logging_to(found: OtlpReceiver, **changes: Any) -> tuple[SinkSettings, ...]:
    sink = SinkSettings(
        name="collector", type="otlp", url=Secret(f"{found.url}/v1/logs"), queue=SinkQueue(timeout=0.5), **changes
    )
    return otlp_sinks.with_environment((sink,), TracingSettings(), Place("", Report(), {}))


@pytest_twisted.ensureDeferred
async def test_requests_and_lines_of_the_log_are_records(
    reactor: Any, stand_in: Any, gateway_to: Any, receiver: OtlpReceiver
) -> None:
    gateway = gateway_to(stand_in(ANSWER).port, sinks=logging_to(receiver, format="event"))
    answer = await gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT)
    assert answer.status == 200
    assert (
        await gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT | {"model": "x"}, key="sk-no")
    ).status == 401

    def requests() -> list[Any]:
        gateway.clock.advance(1.5)
        return [record for record in receiver.records() if record.event_name]

    await eventually(reactor, lambda: len(requests()) == 1)
    (record,) = requests()
    assert record.body.string_value == "POST /v1/chat/completions 200 completed"
    said = plain(record)
    assert said["vllm_passthrough.request_id"] == answer.header("x-request-id")
    assert said["gen_ai.usage.input_tokens"] == 3
    lines = [plain(each)["vllm_passthrough.namespace"] for each in receiver.records() if not each.event_name]
    assert [each for each in lines if each.startswith("twisted_vllm.")]


@pytest_twisted.ensureDeferred
async def test_a_collector_of_logs_that_is_away_costs_a_metric(
    reactor: Any, stand_in: Any, gateway_to: Any, receiver: OtlpReceiver
) -> None:
    receiver.status = 503
    gateway = gateway_to(stand_in(ANSWER).port, sinks=logging_to(receiver, events=("requests",)))
    assert (await gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT)).status == 200

    def has_failed() -> bool:
        gateway.clock.advance(0.1)
        return delivery(gateway, "failures_total", "collector") >= 1

    await eventually(reactor, has_failed)
    assert delivery(gateway, "queued", "collector") == 1


LANGFUSE = {"LANGFUSE_PUBLIC_KEY": "pk-lf-0123456789", "LANGFUSE_SECRET_KEY": "sk-lf-abcdefghijklmn"}


@pytest_twisted.ensureDeferred
async def test_langfuse_gets_its_path_its_credential_and_its_attributes(
    reactor: Any, stand_in: Any, gateway_to: Any, receiver: OtlpReceiver
) -> None:
    report = Report()
    root = Place("", report, LANGFUSE | {"LANGFUSE_HOST": receiver.url})
    destination = vendor_destination("langfuse", root)
    assert destination is not None
    tracing = resolved(TracingSettings(destinations=(destination,), enabled=True), root)
    assert report.problems == []
    server = stand_in(ANSWER)
    gateway = gateway_to(None, tracing=tracing, log_bodies=LogBodiesSettings(mode="full"), models=priced(server.port))
    headers = {"x-litellm-session-id": "s-1", "x-litellm-tags": "blue"}
    answer = await gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT | {"user": "anna"}, headers=headers)
    assert answer.status == 200

    def has_come() -> bool:
        gateway.clock.advance(1.5)
        return len(receiver.spans()) == 2

    await eventually(reactor, has_come)
    (export,) = receiver.exports
    assert export.path == "/api/public/otel/v1/traces"
    scheme, _, credential = export.headers["authorization"].partition(" ")
    assert (scheme, b64decode(credential)) == ("Basic", b"pk-lf-0123456789:sk-lf-abcdefghijklmn")
    assert export.headers["x-langfuse-ingestion-version"] == "4"
    root_span, call = (plain(span) for span in sorted(receiver.spans(), key=lambda span: span.kind))
    assert root_span["langfuse.trace.name"] == "chat m"
    assert root_span["langfuse.user.id"] == "anna"
    assert root_span["langfuse.session.id"] == "s-1"
    assert root_span["langfuse.trace.tags"] == ["blue"]
    assert call["langfuse.observation.type"] == "generation"
    assert json.loads(call["langfuse.observation.input"]) == CHAT["messages"]
    assert call["langfuse.observation.output"] == "Paris."
    assert json.loads(call["langfuse.observation.usage_details"]) == {"input": 3, "output": 2, "total": 5}
    assert json.loads(call["langfuse.observation.cost_details"]) == {"total": pytest.approx(7.0)}
    await gateway.clean_up()
    written = gateway.log_file.read_text()
    assert credential not in written
    assert LANGFUSE["LANGFUSE_SECRET_KEY"] not in written


def priced(port: int) -> tuple[ModelEntry, ...]:
    """A model that costs a dollar for each token of a prompt, and two for each that it generates."""
    prices = PriceList(input_cost_per_token=Decimal(1), output_cost_per_token=Decimal(2))
    return (ModelEntry("m", "m", server_at(port), prices=prices),)
