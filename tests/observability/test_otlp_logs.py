"""The log as OTLP, read by the official protobuf."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from twisted.logger import LogLevel
from twisted.python.failure import Failure

pytest.importorskip("opentelemetry.sdk")

from tests.observability.request_events import STARTED, contents, request_event
from tests.otlp_receiver import OtlpReceiver, grpc_receiver, http_receiver, plain
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.tracing_destinations import TraceDestination
from twisted_vllm.observability.delivery.interfaces import DeliveryFailed
from twisted_vllm.observability.logging.lines import JsonLines
from twisted_vllm.observability.logging.otlp import OtlpLogs
from twisted_vllm.observability.request_record import RequestRecord

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with http_receiver() as found:
        yield found


def destination(found: OtlpReceiver, protocol: str = "http") -> TraceDestination:
    path = "/v1/logs" if protocol == "http" else ""
    return TraceDestination("otlp", protocol, f"{found.url}{path}", {"x-key": Secret("k")}, timeout=2.0)


def export(found: OtlpReceiver, *lines: bytes) -> list[Any]:
    logs = OtlpLogs(destination(found), {"service.name": "gw"})
    try:
        logs.deliver(lines)
    finally:
        logs.close()
    return found.records()


def event(**changes: Any) -> bytes:
    return msgspec.json.encode(request_event(trace_id=TRACE, span_id=SPAN, **changes))


def test_a_request_is_a_record_in_its_trace(receiver: OtlpReceiver) -> None:
    (record,) = export(receiver, event(contents=contents("Hi", {"text": "Ho", "finish_reasons": ["stop"]})))
    assert record.trace_id.hex() == TRACE
    assert record.span_id.hex() == SPAN
    assert record.body.string_value == "POST /v1/chat/completions 200 completed"
    assert record.severity_text == "INFO"
    assert record.severity_number == 9
    assert record.event_name == "gen_ai.client.inference.operation.details"
    assert record.time_unix_nano == round((STARTED + 0.9) * 1e6) * 1000
    said = plain(record)
    assert said["gen_ai.usage.input_tokens"] == 23
    assert said["vllm_passthrough.cost_usd"] == 0.00123
    assert said["http.response.status_code"] == 200
    assert json.loads(said["gen_ai.output.messages"])[0]["parts"][0]["content"] == "Ho"


@pytest.mark.parametrize(
    ("outcome", "severity"), [("completed", "INFO"), ("upstream_failed", "WARN"), ("failed", "ERROR")]
)
def test_a_request_s_severity_is_its_outcome_s(receiver: OtlpReceiver, outcome: str, severity: str) -> None:
    (record,) = export(receiver, event(outcome=outcome, attempts=(), status=200))
    assert record.severity_text == severity
    assert record.event_name == "vllm_passthrough.request"


def test_a_line_of_the_log_keeps_its_level_time_and_traceback(receiver: OtlpReceiver) -> None:
    try:
        raise ValueError("oops")
    except ValueError:
        failure = Failure()
    line = JsonLines().event(
        {
            "log_format": "Lost {server}",
            "server": "gpu-1",
            "log_level": LogLevel.error,
            "log_time": 1_796_000_000.25,
            "log_namespace": "twisted_vllm.upstreams",
            "log_failure": failure,
        }
    )
    (record,) = export(receiver, line)
    assert record.body.string_value == "Lost gpu-1"
    assert record.severity_number == 17
    assert record.time_unix_nano == 1_796_000_000_250_000_000
    said = plain(record)
    assert said["vllm_passthrough.namespace"] == "twisted_vllm.upstreams"
    assert "ValueError: oops" in said["exception.stacktrace"]
    assert record.trace_id == b""


def test_a_request_s_record_is_understood_too(receiver: OtlpReceiver) -> None:
    record = RequestRecord(
        "2026-11-30T00:53:20.000Z", "req-1", "192.0.2.1", "team-a", "0123", "GET", "/v1/models", "", "", 200,
        "completed", "", 0, 12, 1.5, 2.0, trace_id=TRACE,
    )  # fmt: skip
    (found,) = export(receiver, JsonLines().request(record, "warn"))
    assert found.body.string_value == "GET /v1/models 200 completed"
    assert found.severity_text == "WARN"
    assert found.trace_id.hex() == TRACE
    assert plain(found)["vllm_passthrough.bytes_out"] == 12


@pytest.mark.parametrize("trace", ["", "0" * 32, "xyz", "4bf9", "4BF92F3577B34DA6A3CE929D0E0E4736"])
def test_what_is_no_trace_is_left_out(receiver: OtlpReceiver, trace: str) -> None:
    line = msgspec.json.encode({"message": "Hi", "trace_id": trace, "span_id": SPAN})
    (record,) = export(receiver, line)
    assert record.trace_id == b""


def test_an_event_of_another_version_is_not_lost(receiver: OtlpReceiver) -> None:
    older = msgspec.json.encode({"route_class": "inference", "outcome": "completed", "method": "POST", "x": [1]})
    (record,) = export(receiver, older)
    assert record.body.string_value == "POST  --- completed"
    assert plain(record)["vllm_passthrough.x"] == "[1]"


def test_a_line_that_is_not_json_is_refused(receiver: OtlpReceiver) -> None:
    with pytest.raises(DeliveryFailed) as caught:
        export(receiver, b"Hi")
    assert not caught.value.retryable
    # the others of its batch may be taken
    assert caught.value.too_large


def test_a_busy_receiver_may_take_it_later(receiver: OtlpReceiver) -> None:
    receiver.status = 429
    with pytest.raises(DeliveryFailed) as caught:
        export(receiver, event())
    assert caught.value.retryable


@pytest.mark.parametrize("status", [429, 503])
def test_a_failure_is_told_at_once_and_not_when_the_time_is_over(receiver: OtlpReceiver, status: int) -> None:
    receiver.status = status
    with pytest.raises(DeliveryFailed):
        export(receiver, event())
    # the queue sends it again
    assert len(receiver.exports) == 1


def test_a_receiver_that_is_not_there_may_take_it_later() -> None:
    nobody = OtlpReceiver(url="http://127.0.0.1:9")
    with pytest.raises(DeliveryFailed) as caught:
        export(nobody, event())
    assert (caught.value.message, caught.value.retryable) == ("it cannot be reached", True)


def test_a_connection_that_the_receiver_closed_costs_nothing() -> None:
    with http_receiver() as found:
        logs = OtlpLogs(destination(found), {"service.name": "gw"})
        logs.deliver([event()])
        found.close_connections()
        logs.deliver([event()])
        logs.close()
        assert len(found.exports) == 2


def test_records_go_over_grpc_as_well() -> None:
    with grpc_receiver() as found:
        logs = OtlpLogs(destination(found, "grpc"), {"service.name": "gw"})
        logs.deliver([event(), event()])
        logs.close()
        (one,) = found.exports
        assert one.headers["x-key"] == "k"
        assert len(found.records()) == 2
