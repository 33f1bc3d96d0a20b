"""What a real collector gets of requests, and what servers are told of their traces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import (
    MASTER_KEY,
    SWITCHING_PROTOCOLS,
    Gateway,
    capped,
    eventually,
    handshake,
    request_bytes,
    server_at,
)
from tests.end_to_end.messages import EVENT_STREAM, LAST, chunk, header_of, whole
from tests.end_to_end.test_fail_over import ANSWER, BUSY, CHAT, IN_ORDER, entries
from tests.otlp_receiver import OtlpReceiver, grpc_receiver, http_receiver, plain
from twisted_vllm.config.problems import Place, Report
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import ModelEntry, RoutingSettings
from twisted_vllm.config.tracing import TracingSettings, resolved
from twisted_vllm.config.tracing_destinations import TraceDestination

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
INCOMING = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1", "baggage": "user=alice"}
CHATTING = "/vllm/v1/chat/completions"

ERROR, UNSET = 2, 0
SERVER, CLIENT = 2, 3


@pytest.fixture(autouse=True)
def collector() -> Iterator[OtlpReceiver]:
    """A collector that outlives the gateway, which exports what waits when it stops."""
    with http_receiver() as found:
        yield found


def tracing_to(*destinations: TraceDestination, **settings: Any) -> TracingSettings:
    written = TracingSettings(destinations=destinations, enabled=True, **settings)
    report = Report()
    found = resolved(written, Place("", report, {}))
    assert report.problems == []
    return found


def over_http(collector: OtlpReceiver, **settings: Any) -> TracingSettings:
    return tracing_to(TraceDestination("test", "http", f"{collector.url}/v1/traces"), **settings)


async def collected(gateway: Gateway, collector: Any, count: int) -> list[Any]:
    """Wait until a number of spans has come; return them, the servers' first."""

    def has_come() -> bool:
        gateway.clock.advance(1.5)
        return len(collector.spans()) >= count

    await eventually(gateway.service.wiring._reactor._reactor, has_come)
    found = sorted(collector.spans(), key=lambda span: (span.kind, span.start_time_unix_nano))
    assert len(found) == count, [span.name for span in found]
    return found


def events_of(span: Any) -> list[str]:
    return [each.name for each in span.events]


def is_child(child: Any, parent: Any) -> bool:
    return bool(child.parent_span_id == parent.span_id and child.trace_id == parent.trace_id)


def told(stand_in: Any, name: str) -> str:
    """A header that a server got with its last request."""
    received: bytes = b"".join(each.received for each in stand_in.connections)
    return header_of(received[received.rindex(b" HTTP/1.1") :].partition(b"\r\n\r\n")[0], name) or ""


@pytest_twisted.ensureDeferred
async def test_a_request_continues_the_caller_s_trace_to_the_server(
    stand_in: Any, gateway_to: Any, collector: OtlpReceiver
) -> None:
    server = stand_in(ANSWER)
    gateway = gateway_to(server.port, tracing=over_http(collector, resource_attributes={"deployment": "test"}))
    answer = await gateway.ask("POST", CHATTING, body=CHAT, headers=INCOMING)
    assert answer.status == 200
    own, attempt = await collected(gateway, collector, 2)
    assert (own.kind, attempt.kind) == (SERVER, CLIENT)
    assert (own.trace_id.hex(), own.parent_span_id.hex(), own.trace_state) == (TRACE, PARENT, "vendor=1")
    assert is_child(attempt, own)
    assert told(server, "traceparent") == f"00-{TRACE}-{attempt.span_id.hex()}-01"
    assert (told(server, "tracestate"), told(server, "baggage")) == ("vendor=1", "user=alice")
    assert (own.status.code, attempt.status.code) == (UNSET, UNSET)
    assert events_of(own) == events_of(attempt) == ["first_byte"]
    assert own.start_time_unix_nano <= attempt.start_time_unix_nano <= attempt.end_time_unix_nano
    resource = plain(collector.exports[0].data.resource_spans[0].resource)
    assert (resource["service.name"], resource["deployment"]) == ("vllm-passthrough", "test")
    said = plain(attempt)
    assert said["gen_ai.usage.input_tokens"] == 3
    assert said["gen_ai.usage.output_tokens"] == 2
    [line] = gateway.request_lines()
    assert line["trace_id"] == TRACE
    assert plain(own)["vllm_passthrough.request_id"] == line["request_id"] == answer.header("x-request-id")


@pytest_twisted.ensureDeferred
async def test_the_same_head_again_has_ids_of_its_own(stand_in: Any, gateway_to: Any, collector: OtlpReceiver) -> None:
    """Equal heads share their serialized headers."""
    server = stand_in(ANSWER)
    gateway = gateway_to(server.port, tracing=over_http(collector))
    seen = []
    for headers in ({}, {}, INCOMING, INCOMING, {**INCOMING, "tracestate": "bad"}, {**INCOMING, "traceparent": "bad"}):
        for _ in range(2):
            await gateway.ask("POST", CHATTING, body=CHAT, headers=headers)
            seen.append((told(server, "traceparent"), told(server, "tracestate")))
    assert len({parent for parent, _ in seen}) == 12
    assert [state for _, state in seen] == [""] * 4 + ["vendor=1"] * 4 + [""] * 4
    assert [TRACE in parent for parent, _ in seen] == [False] * 4 + [True] * 6 + [False] * 2
    attempts = {f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01" for span in await collected(gateway, collector, 24)}
    assert {parent for parent, _ in seen} <= attempts


@pytest_twisted.ensureDeferred
async def test_without_tracing_the_client_s_headers_pass_as_they_came(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(ANSWER)
    gateway = gateway_to(server.port)
    odd = {"traceparent": "odd", "tracestate": "Odd,", "baggage": "a=b;c"}
    for _ in range(3):
        await gateway.ask("POST", CHATTING, body=CHAT, headers=odd)
        assert {name: told(server, name) for name in odd} == odd
    assert "trace_id" not in gateway.request_lines()[0]


@pytest_twisted.ensureDeferred
async def test_servers_are_not_told_if_the_settings_say_so(
    stand_in: Any, gateway_to: Any, collector: OtlpReceiver
) -> None:
    server = stand_in(ANSWER)
    gateway = gateway_to(server.port, tracing=over_http(collector, propagate=False))
    await gateway.ask("POST", CHATTING, body=CHAT, headers=INCOMING)
    assert told(server, "traceparent") == INCOMING["traceparent"]
    own, _ = await collected(gateway, collector, 2)
    assert own.trace_id.hex() == TRACE


@pytest_twisted.ensureDeferred
async def test_a_stream_has_its_first_token(stand_in: Any, gateway_to: Any, collector: OtlpReceiver) -> None:
    server = stand_in(EVENT_STREAM + chunk(b"data: [DONE]\n\n") + LAST)
    gateway = gateway_to(server.port, tracing=over_http(collector))
    await gateway.ask("POST", CHATTING, body={**CHAT, "stream": True})
    own, attempt = await collected(gateway, collector, 2)
    assert events_of(own) == events_of(attempt) == ["first_token"]


@pytest_twisted.ensureDeferred
async def test_each_attempt_has_a_span_that_its_server_saw(
    stand_in: Any, gateway_to: Any, collector: OtlpReceiver
) -> None:
    bad, good = stand_in(BUSY), stand_in(ANSWER)
    models = entries(bad.port, good.port)
    gateway = gateway_to(None, models=models, routing=IN_ORDER, tracing=over_http(collector))
    await gateway.ask("POST", CHATTING, body=CHAT)
    own, failed, answered = await collected(gateway, collector, 3)
    assert is_child(failed, own)
    assert is_child(answered, own)
    for server, span in ((bad, failed), (good, answered)):
        assert told(server, "traceparent") == f"00-{own.trace_id.hex()}-{span.span_id.hex()}-01"
    assert (failed.status.code, answered.status.code, own.status.code) == (ERROR, UNSET, UNSET)
    assert plain(failed)["error.type"] == "503"
    assert plain(failed)["server.port"] == bad.port
    assert events_of(own) == ["retry", "first_byte"]
    assert plain(own.events[0])["vllm_passthrough.reason"] == "status_503"


@pytest_twisted.ensureDeferred
async def test_a_fallback_is_an_event(stand_in: Any, gateway_to: Any, collector: OtlpReceiver) -> None:
    good = stand_in(ANSWER)
    models = (ModelEntry("m", "m", server_at(free_port())), ModelEntry("small", "small", server_at(good.port)))
    routing = RoutingSettings(fallbacks={"m": ("small",)})
    gateway = gateway_to(None, models=models, routing=routing, tracing=over_http(collector))
    await gateway.ask("POST", CHATTING, body=CHAT)
    own, failed, _ = await collected(gateway, collector, 3)
    assert events_of(own) == ["retry", "fallback", "first_byte"]
    assert plain(failed)["error.type"] == "upstream_unreachable"


@pytest_twisted.ensureDeferred
async def test_the_wait_for_a_busy_server_is_an_event(
    reactor: Any, stand_in: Any, gateway_to: Any, collector: OtlpReceiver
) -> None:
    server = stand_in()
    gateway = gateway_to(capped(server.port), tracing=over_http(collector))
    first = await gateway.send(request_bytes("POST", CHATTING, MASTER_KEY, body=CHAT))
    upstream = await server.connection()
    second = await gateway.send(request_bytes("POST", CHATTING, MASTER_KEY, body=CHAT))
    await eventually(reactor, lambda: gateway.queued == 1)
    gateway.clock.advance(0.5)
    upstream.send(ANSWER)
    await first.until_received(b"total_tokens")
    await eventually(reactor, lambda: sum(each.received.count(b"POST") for each in server.connections) == 2)
    server.connections[-1].send(ANSWER)
    await second.until_received(b"total_tokens")
    owns = [span for span in await collected(gateway, collector, 4) if span.kind == SERVER]
    assert sorted(map(events_of, owns)) == [["first_byte"], ["queued", "first_byte"]]


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_is_no_error(
    reactor: Any, stand_in: Any, gateway_to: Any, collector: OtlpReceiver
) -> None:
    server = stand_in()
    gateway = gateway_to(server.port, tracing=over_http(collector))
    client = await gateway.send(request_bytes("POST", CHATTING, MASTER_KEY, body={**CHAT, "stream": True}))
    upstream = await server.connection()
    await upstream.until_received(b"Hello")
    upstream.send(EVENT_STREAM + chunk(b"data: {}\n\n"))
    await client.until_received(b"data: {}")
    client.cut()
    own, attempt = await collected(gateway, collector, 2)
    assert (own.status.code, attempt.status.code) == (UNSET, UNSET)
    assert plain(own)["vllm_passthrough.outcome"] == "client_disconnected"


@pytest_twisted.ensureDeferred
async def test_a_broken_stream_is_an_error(stand_in: Any, gateway_to: Any, collector: OtlpReceiver) -> None:
    server = stand_in()
    gateway = gateway_to(server.port, tracing=over_http(collector, sample_ratio=0.0))
    client = await gateway.send(request_bytes("POST", CHATTING, MASTER_KEY, body={**CHAT, "stream": True}))
    upstream = await server.connection()
    await upstream.until_received(b"Hello")
    assert header_of(upstream.received.partition(b"\r\n\r\n")[0], "traceparent").endswith("-00")
    upstream.send(EVENT_STREAM + chunk(b"data: {}\n\n"))
    await client.until_received(b"data: {}")
    upstream.cut()
    await client.until_lost()
    own, attempt = await collected(gateway, collector, 2)
    assert (own.status.code, attempt.status.code) == (ERROR, ERROR)
    assert events_of(attempt) == ["first_token"]
    assert plain(own)["error.type"] == own.status.message == "upstream_protocol_error"


@pytest_twisted.ensureDeferred
async def test_a_server_that_cannot_be_reached_is_an_error(gateway_to: Any, collector: OtlpReceiver) -> None:
    gateway = gateway_to(free_port(), tracing=over_http(collector))
    assert (await gateway.ask("POST", CHATTING, body=CHAT)).status == 502
    own, attempt = await collected(gateway, collector, 2)
    assert own.status.message == attempt.status.message == "upstream_unreachable"
    assert events_of(own) == []


@pytest_twisted.ensureDeferred
async def test_a_refusal_has_a_span_and_no_error_and_a_stranger_has_none(
    stand_in: Any, gateway_to: Any, collector: OtlpReceiver
) -> None:
    server = stand_in(ANSWER)
    gateway = gateway_to(None, models=entries(server.port), tracing=over_http(collector))
    assert (await gateway.ask("POST", CHATTING, key="sk-a-stranger-guesses", body=CHAT)).status == 401
    assert (await gateway.ask("POST", CHATTING, body={**CHAT, "model": "other"}, headers=INCOMING)).status == 404
    [own] = await collected(gateway, collector, 1)
    assert (own.status.code, own.trace_id.hex()) == (UNSET, TRACE)
    assert plain(own)["error.type"] == "model_not_found"
    lines = gateway.request_lines()
    assert [line.get("trace_id") for line in lines] == [None, TRACE]


@pytest_twisted.ensureDeferred
async def test_a_tunnel_has_a_span(reactor: Any, stand_in: Any, gateway_to: Any, collector: OtlpReceiver) -> None:
    server = stand_in()
    gateway = gateway_to(server.port, tracing=over_http(collector))
    client = await gateway.send(handshake(traceparent=INCOMING["traceparent"]))
    upstream = await server.connection()
    await upstream.until_received(b"\r\n\r\n")
    seen = header_of(upstream.received.partition(b"\r\n\r\n")[0], "traceparent")
    upstream.send(SWITCHING_PROTOCOLS)
    await client.until_received(b"101")
    upstream.cut()
    await client.until_lost()
    own, attempt = await collected(gateway, collector, 2)
    assert seen == f"00-{TRACE}-{attempt.span_id.hex()}-01"
    assert is_child(attempt, own)


@pytest_twisted.ensureDeferred
async def test_the_admin_api_has_spans_if_the_settings_say_so(
    stand_in: Any, gateway_to: Any, collector: OtlpReceiver
) -> None:
    gateway = gateway_to(stand_in(ANSWER).port, tracing=over_http(collector, gateway_routes=True))
    await gateway.ask("GET", "/health/liveliness")
    await gateway.make_key(key_alias="traced")
    [own] = await collected(gateway, collector, 1)
    assert own.name == "POST /key/generate"


@pytest_twisted.ensureDeferred
async def test_grpc_gets_the_same_spans(stand_in: Any, gateway_to: Any) -> None:
    with grpc_receiver() as collector:
        headers = {"x-token": Secret("token-of-this-collector")}
        destination = TraceDestination("grpc", "grpc", collector.url, headers)
        gateway = gateway_to(stand_in(ANSWER).port, tracing=tracing_to(destination))
        await gateway.ask("POST", CHATTING, body=CHAT, headers=INCOMING)
        own, attempt = await collected(gateway, collector, 2)
        assert (own.trace_id.hex(), own.parent_span_id.hex()) == (TRACE, PARENT)
        assert is_child(attempt, own)
        assert collector.exports[0].headers["x-token"] == "token-of-this-collector"


@pytest_twisted.ensureDeferred
async def test_a_reload_switches_traces_on_and_off(stand_in: Any, gateway_to: Any, collector: OtlpReceiver) -> None:
    server = stand_in(ANSWER)
    gateway = gateway_to(server.port)
    wiring = gateway.service.wiring

    def reload(tracing: TracingSettings) -> None:
        wiring.prepare(attrs.evolve(gateway.settings, tracing=tracing))[1]()

    for tracing, seen in ((over_http(collector), False), (TracingSettings(), True), (over_http(collector), False)):
        reload(tracing)
        for _ in range(2):
            await gateway.ask("POST", CHATTING, body=CHAT, headers=INCOMING)
            assert (told(server, "traceparent") == INCOMING["traceparent"]) is seen
    await collected(gateway, collector, 8)


@pytest_twisted.ensureDeferred
async def test_what_waits_is_exported_before_the_gateway_stops(
    stand_in: Any, gateway_to: Any, collector: OtlpReceiver
) -> None:
    gateway = gateway_to(stand_in(ANSWER).port, tracing=over_http(collector))
    await gateway.ask("POST", CHATTING, body=CHAT)
    assert collector.spans() == []
    await gateway.stop()
    assert len(collector.spans()) == 2


def delivery(gateway: Gateway, name: str) -> float:
    """A metric of the deliveries of traces."""
    text = gateway.service.wiring.metrics.expose("")[0].decode()
    start = f'vllm_passthrough_delivery_{name}{{sink="traces:test"}} '
    [line] = [each for each in text.splitlines() if each.startswith(start)]
    return float(line.removeprefix(start))


def passing(gateway: Gateway, is_so: Callable[[], object]) -> Callable[[], object]:
    """Let the gateway's time pass until something is so."""

    def look() -> object:
        gateway.clock.advance(0.5)
        return is_so()

    return look


@pytest_twisted.ensureDeferred
async def test_a_collector_that_is_away_costs_a_metric_and_comes_back(
    reactor: Any, stand_in: Any, gateway_to: Any
) -> None:
    port = free_port()
    destination = TraceDestination("test", "http", f"http://127.0.0.1:{port}/v1/traces", timeout=0.5)
    gateway = gateway_to(stand_in(ANSWER).port, tracing=tracing_to(destination))
    for _ in range(3):
        assert (await gateway.ask("POST", CHATTING, body=CHAT)).status == 200
    await eventually(reactor, passing(gateway, lambda: delivery(gateway, "failures_total") >= 2))
    assert (delivery(gateway, "queued"), delivery(gateway, "dropped_total")) == (3, 0)
    with http_receiver(port) as collector:
        await eventually(reactor, passing(gateway, lambda: delivery(gateway, "queued") == 0))
        assert len(collector.spans()) == 6
        assert delivery(gateway, "delivered_total") == 3
    warnings = [line for line in gateway.log_lines() if line.get("level") in ("warn", "error")]
    assert len([line for line in warnings if "traces:test" in str(line)]) == 1, warnings


@pytest_twisted.ensureDeferred
async def test_a_collector_that_hangs_delays_nobody(
    reactor: Any, stand_in: Any, gateway_to: Any, collector: OtlpReceiver
) -> None:
    gateway = gateway_to(stand_in(ANSWER).port, tracing=over_http(collector, max_queued_bytes=65_536))
    collector.released.clear()
    try:
        await gateway.ask("POST", CHATTING, body=CHAT)
        await eventually(reactor, passing(gateway, collector.arrived.is_set))
        for _ in range(40):
            assert (await gateway.ask("POST", CHATTING, body=CHAT)).status == 200
        # the queue is bounded
        assert delivery(gateway, "dropped_total") > 0
        assert delivery(gateway, "queued") < 40
    finally:
        collector.released.set()
    await eventually(reactor, passing(gateway, lambda: delivery(gateway, "queued") == 0))


@pytest.mark.parametrize("status", [400, 401, 404, 301])
@pytest_twisted.ensureDeferred
async def test_what_a_collector_refuses_for_good_is_dropped_and_counted(
    reactor: Any, stand_in: Any, gateway_to: Any, collector: OtlpReceiver, status: int
) -> None:
    collector.status, collector.answer = status, b"<html>garbage \x00\xff"
    gateway = gateway_to(stand_in(ANSWER).port, tracing=over_http(collector))
    await gateway.ask("POST", CHATTING, body=CHAT)
    await eventually(reactor, passing(gateway, lambda: delivery(gateway, "dropped_total") == 1))
    assert len(collector.exports) == 1
    text = gateway.log_text()
    assert str(status) in text
    assert "garbage" not in text


@pytest_twisted.ensureDeferred
async def test_garbage_with_200_is_taken_for_success(
    reactor: Any, stand_in: Any, gateway_to: Any, collector: OtlpReceiver
) -> None:
    collector.answer = b"\xff" * 200_000
    gateway = gateway_to(stand_in(ANSWER).port, tracing=over_http(collector))
    for _ in range(2):
        await gateway.ask("POST", CHATTING, body=CHAT)
        await eventually(reactor, passing(gateway, lambda: delivery(gateway, "queued") == 0))
    assert delivery(gateway, "delivered_total") == 2


@pytest_twisted.ensureDeferred
async def test_a_destination_gets_its_own_headers_and_none_of_the_environment(
    reactor: Any, stand_in: Any, gateway_to: Any, collector: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-other-key=secret-of-another-collector")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/no/such/file")
    own = TraceDestination("test", "http", f"{collector.url}/v1/traces", {"x-key": Secret("key-of-this-collector")})
    with grpc_receiver() as other:
        tracing = tracing_to(own, TraceDestination("other", "grpc", other.url))
        gateway = gateway_to(stand_in(ANSWER).port, tracing=tracing)
        await gateway.ask("POST", CHATTING, body=CHAT)
        await eventually(reactor, passing(gateway, lambda: collector.exports and other.exports))
    assert collector.exports[0].headers["x-key"] == "key-of-this-collector"
    assert [("x-other-key" in each.exports[0].headers) for each in (collector, other)] == [False, False]


@pytest_twisted.ensureDeferred
async def test_what_found_no_second_place_has_one_attempt(
    reactor: Any, stand_in: Any, gateway_to: Any, collector: OtlpReceiver
) -> None:
    bad = stand_in(BUSY)
    gateway = gateway_to(None, models=entries(bad.port), routing=IN_ORDER, tracing=over_http(collector))
    await gateway.ask("POST", CHATTING, body=CHAT)
    own, attempt = await collected(gateway, collector, 2)
    assert plain(attempt)["http.response.status_code"] == 503
    assert own.status.message == "503"


@pytest_twisted.ensureDeferred
async def test_the_attempt_before_a_fallback_for_a_long_prompt_has_a_span(
    stand_in: Any, gateway_to: Any, collector: OtlpReceiver
) -> None:
    refusal = b'{"error":{"message":"This model\'s maximum context length is 8 tokens."}}'
    small, large = stand_in(whole(refusal, "400 Bad Request")), stand_in(ANSWER)
    models = (ModelEntry("m", "m", server_at(small.port)), ModelEntry("large", "large", server_at(large.port)))
    routing = RoutingSettings(context_window_fallbacks={"m": ("large",)})
    gateway = gateway_to(None, models=models, routing=routing, tracing=over_http(collector))
    assert (await gateway.ask("POST", CHATTING, body=CHAT)).status == 200
    own, refused, answered = await collected(gateway, collector, 3)
    assert is_child(refused, own)
    assert is_child(answered, own)
    assert plain(refused)["http.response.status_code"] == 400
    assert events_of(own) == ["retry", "fallback", "first_byte"]


@pytest_twisted.ensureDeferred
async def test_a_destination_may_get_failures_alone(
    reactor: Any, stand_in: Any, gateway_to: Any, collector: OtlpReceiver
) -> None:
    destination = TraceDestination("test", "http", f"{collector.url}/v1/traces", outcomes=("failure",))
    gateway = gateway_to(None, models=entries(stand_in(ANSWER).port), tracing=tracing_to(destination))
    assert (await gateway.ask("POST", CHATTING, body=CHAT)).status == 200
    assert (await gateway.ask("POST", CHATTING, body={**CHAT, "model": "other"})).status == 404
    [own] = await collected(gateway, collector, 1)
    assert plain(own)["error.type"] == "model_not_found"
