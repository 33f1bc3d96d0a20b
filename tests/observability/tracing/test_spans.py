"""The spans of a finished request."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind
from opentelemetry.trace.status import StatusCode

from tests.observability.request_events import STARTED, request_event
from twisted_vllm.observability.request_event import Attempt
from twisted_vllm.observability.tracing.spans import SpanMaker
from twisted_vllm.observability.tracing.traced_request import TracedRequest

TRACE, OWN, PARENT = "0af7651916cd43dd8448eb211c80319c", "00000000000000a1", "00000000000000b2"
FIRST, SECOND = "00000000000000c1", "00000000000000c2"
OK = Attempt("gpu-1:8000", STARTED + 0.1, STARTED + 0.9, 200, "", FIRST)
RETRIED = (
    Attempt("gpu-0:8000", STARTED + 0.1, STARTED + 0.2, 503, "status_503", FIRST),
    Attempt("gpu-1:8000", STARTED + 0.3, STARTED + 0.9, 200, "", SECOND),
)


def spans(parent: str = "", state: str = "", **changes: Any) -> list[ReadableSpan]:
    event = request_event(**{"trace_id": TRACE, "span_id": OWN, "attempts": (OK,), **changes})
    maker = SpanMaker({"service.name": "gateway"}, ("gen_ai",))
    return list(maker.spans(TracedRequest(event, parent, state)))


def moved(attempt: Attempt, seconds: float) -> Attempt:
    return msgspec.structs.replace(attempt, began=STARTED + seconds, ended=STARTED + seconds + 0.1)


def names_and_times(span: ReadableSpan) -> list[tuple[str, float]]:
    return [(each.name, round(each.timestamp / 1e9 - STARTED, 3)) for each in span.events]


def ids(span: ReadableSpan) -> tuple[str, str, str]:
    context = span.get_span_context()
    assert context is not None
    parent = "" if span.parent is None else f"{span.parent.span_id:016x}"
    return f"{context.trace_id:032x}", f"{context.span_id:016x}", parent


def test_a_request_has_a_span_of_the_server_and_one_of_the_client_below() -> None:
    server, client = spans()
    assert (server.name, server.kind, ids(server)) == ("POST /v1/chat/completions", SpanKind.SERVER, (TRACE, OWN, ""))
    assert (client.name, client.kind, ids(client)) == ("chat llama", SpanKind.CLIENT, (TRACE, FIRST, OWN))
    assert (server.start_time, server.end_time) == (STARTED * 1e9, (STARTED + 0.9) * 1e9)
    assert (client.start_time, client.end_time) == ((STARTED + 0.1) * 1e9, (STARTED + 0.9) * 1e9)
    assert server.resource.attributes["service.name"] == "gateway"
    assert server.resource.attributes["telemetry.sdk.name"] == "opentelemetry"
    assert {server.status.status_code, client.status.status_code} == {StatusCode.UNSET}


def test_the_caller_s_span_is_the_parent() -> None:
    server, _ = spans(PARENT, "vendor=1")
    assert ids(server) == (TRACE, OWN, PARENT)
    assert server.parent is not None
    assert server.parent.is_remote
    context = server.get_span_context()
    assert context is not None
    assert context.trace_state.to_header() == "vendor=1"


def test_each_attempt_has_a_span_and_the_request_an_event_for_each_retry() -> None:
    server, failed, answered = spans(attempts=RETRIED)
    assert [ids(each) for each in (failed, answered)] == [(TRACE, FIRST, OWN), (TRACE, SECOND, OWN)]
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "503")
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "503"
    assert answered.status.status_code is StatusCode.UNSET
    assert server.status.status_code is StatusCode.UNSET
    assert names_and_times(server) == [("retry", 0.2), ("first_token", 0.25)]
    assert dict(server.events[0].attributes or {}) == {
        "vllm_passthrough.attempt": 1,
        "vllm_passthrough.server": "gpu-0:8000",
        "vllm_passthrough.reason": "status_503",
        "vllm_passthrough.next_server": "gpu-1:8000",
    }
    assert names_and_times(failed) == []
    assert names_and_times(answered) == [("first_token", 0.25)]


def test_an_answer_that_is_no_stream_has_a_first_byte() -> None:
    server, client = spans(stream=False)
    assert names_and_times(server) == names_and_times(client) == [("first_byte", 0.25)]


def test_the_wait_for_a_busy_server_is_an_event_where_it_began() -> None:
    server, _ = spans(queued_ms=80.0)
    assert names_and_times(server)[0] == ("queued", 0.02)
    assert dict(server.events[0].attributes or {}) == {"vllm_passthrough.queued_ms": 80.0}


def test_a_wait_after_an_attempt_that_failed_begins_there() -> None:
    server, *_ = spans(queued_ms=2_000.0, attempts=(RETRIED[0], moved(RETRIED[1], 2.5)), ended=STARTED + 3)
    assert ("queued", 0.2) in names_and_times(server)


def test_a_fallback_is_an_event() -> None:
    server, *_ = spans(fallback="small", attempts=RETRIED)
    assert ("fallback", 0.3) in names_and_times(server)


def test_a_request_that_waited_in_vain_has_no_attempt() -> None:
    changes: dict[str, Any] = {
        "attempts": (),
        "queued_ms": 900.0,
        "status": 503,
        "outcome": "refused",
        "error": "server_busy",
    }
    [server] = spans(**changes)
    assert names_and_times(server) == [("queued", 0.0)]
    # as the log has it: the gateway was asked for too much
    assert server.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("changes", "description"),
    [
        ({"status": 502, "outcome": "upstream_failed", "error": "upstream_unreachable"}, "upstream_unreachable"),
        ({"status": 200, "outcome": "upstream_error"}, "upstream_error"),
        ({"status": 500, "outcome": "completed"}, "500"),
        ({"status": 500, "outcome": "failed", "error": "internal_error"}, "internal_error"),
    ],
)
def test_a_fault_is_an_error(changes: dict[str, Any], description: str) -> None:
    server, *_ = spans(**changes)
    assert (server.status.status_code, server.status.description) == (StatusCode.ERROR, description)
    assert server.attributes is not None
    assert server.attributes["error.type"] == description


@pytest.mark.parametrize(
    "changes",
    [
        {"status": 429, "outcome": "refused", "error": "rate_limit_exceeded", "attempts": ()},
        {"status": 400, "outcome": "completed"},
        {"status": 200, "outcome": "client_disconnected"},
        {"status": 200, "outcome": "revoked"},
    ],
)
def test_a_mistake_of_the_client_is_no_error(changes: dict[str, Any]) -> None:
    server, *_ = spans(**changes)
    assert server.status.status_code is StatusCode.UNSET


def test_an_answer_of_the_gateway_s_own_is_not_a_server_s_first_byte() -> None:
    failed = Attempt("gpu-1:8000", STARTED + 0.1, STARTED + 0.2, 0, "upstream_unreachable", FIRST)
    server, client = spans(status=502, outcome="upstream_failed", error="upstream_unreachable", attempts=(failed,))
    assert names_and_times(server) == names_and_times(client) == []
    assert client.status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("outcome", ["client_disconnected", "revoked"])
def test_that_the_client_left_or_may_not_go_on_is_no_error_of_the_attempt(outcome: str) -> None:
    left = Attempt("gpu-1:8000", STARTED + 0.1, STARTED + 0.9, 200, outcome, FIRST)
    _, client = spans(outcome=outcome, attempts=(left,))
    assert client.status.status_code is StatusCode.UNSET
    assert client.attributes is not None
    assert "error.type" not in client.attributes


def test_an_attempt_without_an_id_has_no_span() -> None:
    assert len(spans(attempts=(Attempt("gpu-1:8000", STARTED, STARTED + 1, 200),))) == 1
