"""What the header x-simulate makes go wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.web.client import ResponseFailed
from twisted.web.http import PotentialDataLoss

from tests.simulator.simulator_harness import Pending, Simulator, user
from twisted_vllm.simulator.faults import Ending, Faults, parse_faults
from twisted_vllm.simulator.messages import ApiError

CHAT = "/v1/chat/completions"
MID_BODY = [Ending.TRUNCATE, Ending.CLOSE_MID_BODY, Ending.HANG_MID_BODY, Ending.BAD_CHUNK]


def ask(simulator: Simulator, fault: str, *, stream: bool = False, seconds: float = 10) -> Pending:
    body = {"messages": user("hi"), "max_tokens": 10, "ignore_eos": True, "stream": stream}
    pending = simulator.start("POST", CHAT, body, {"x-simulate": fault})
    simulator.advance(seconds)
    # what was planned meanwhile: the rest after a slow head, the reset after half a body
    simulator.advance(0.1)
    return pending


def test_faults_can_be_put_together() -> None:
    assert parse_faults("slow-head=2.5, truncate") == Faults(slow_head=2.5, ending=Ending.TRUNCATE)
    assert parse_faults(" status=503 ") == Faults(status=503)
    assert parse_faults("") == Faults()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("explode", "'explode' is not a fault that the simulator has"),
        ("hang=5", "'hang=5' is not a fault"),
        ("hang, close", "hang and close cannot be had together"),
        ("status=200", "a number from 400 to 599"),
        ("status=abc", "a number from 400 to 599"),
        ("slow-head", "seconds of 0 or more"),
        ("slow-head=-1", "seconds of 0 or more"),
        ("slow-head=nan", "seconds of 0 or more"),
    ],
)
def test_a_fault_that_does_not_exist_is_refused_with_a_reason(header: str, reason: str) -> None:
    with pytest.raises(ApiError, match=reason):
        parse_faults(header)


@given(st.text())
def test_any_header_is_read_or_refused(header: str) -> None:
    try:
        faults = parse_faults(header)
    except ApiError:
        return
    assert faults.slow_head >= 0


def test_a_status_comes_with_an_error_in_vllms_shape_on_every_route(simulator: Simulator) -> None:
    for path in (CHAT, "/health", "/nothing"):
        got = simulator.call("POST", path, {}, {"x-simulate": "status=503"})
        assert got.status == 503
        assert got.json["error"]["type"] == "ServiceUnavailableError"
        assert got.json["error"]["code"] == 503
    assert simulator.call("GET", "/health", None, {"x-simulate": "status=599"}).status == 599
    assert simulator.call("GET", "/health", None, {"x-simulate": "x"}).status == 400


def test_a_slow_head_waits_before_anything_is_sent(simulator: Simulator) -> None:
    pending = ask(simulator, "slow-head=30", seconds=29)
    assert pending.response is None
    simulator.advance(2)
    simulator.advance(1)
    assert pending.got.status == 200


def test_hang_sends_nothing_until_the_client_goes_away(simulator: Simulator) -> None:
    pending = ask(simulator, "hang", seconds=100_000)
    assert (pending.response, pending.ended) == (None, None)
    assert simulator.metric("num_requests_running") == 1
    pending.cancel()
    simulator.flush()
    assert simulator.metric("num_requests_running") == 0


@pytest.mark.parametrize("fault", ["close", "garbage"])
def test_nothing_that_is_http_comes_before_the_end(simulator: Simulator, fault: str) -> None:
    pending = ask(simulator, fault)
    assert pending.response is None
    assert pending.ended is not None
    assert simulator.metric("num_requests_running") == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", MID_BODY)
def test_an_answer_that_breaks_off_has_a_good_head_and_half_a_body(
    simulator: Simulator, fault: Ending, stream: bool
) -> None:
    whole = ask(Simulator(simulator.engine.settings), "", stream=stream).body
    pending = ask(simulator, fault, stream=stream)
    assert pending.got.status == 200
    assert 0.3 * len(whole) < len(pending.body) < 0.7 * len(whole)
    if fault is Ending.HANG_MID_BODY:
        assert pending.ended is None
        pending.disconnect()
        simulator.advance(0)
    else:
        assert pending.ended is not None
        assert pending.ended.check(ResponseFailed, PotentialDataLoss)
    assert simulator.metric("num_requests_running") == 0
    assert simulator.metric("request_success_total", finished_reason="abort") == 1
    assert simulator.clock.getDelayedCalls() == []


def test_a_stream_of_one_token_breaks_off_after_it(simulator: Simulator) -> None:
    body = {"messages": user("hi"), "max_tokens": 1, "stream": True}
    pending = simulator.start("POST", CHAT, body, {"x-simulate": "truncate"})
    simulator.advance(1)
    assert len(pending.got.events) == 2


def test_an_error_event_ends_a_stream_in_order_and_is_a_500_elsewhere(simulator: Simulator) -> None:
    *chunks, error, done = ask(simulator, "error-event", stream=True).got.events
    assert len(chunks) == 6
    assert error == {
        "error": {"message": "Internal server error", "type": "InternalServerError", "param": None, "code": 500}
    }
    assert done == "[DONE]"
    assert ask(simulator, "error-event").got.status == 500


def test_an_error_event_of_anthropics_api_has_its_shape(simulator: Simulator) -> None:
    body = {"model": "small", "messages": user("hi"), "max_tokens": 4, "stream": True}
    got = simulator.post("/v1/messages", body, {"x-simulate": "error-event"})
    name, event = got.named_events[-1]
    assert (name, event["type"], event["error"]["type"]) == ("error", "error", "internal_error")
