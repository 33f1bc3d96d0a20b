"""What sinks and traces are told of a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.conftest import LoggedFailures
from tests.observability.test_request_records import forwarded, request
from twisted_vllm.bodies.request_tags import Said
from twisted_vllm.context import FailedAttempt, RequestContext
from twisted_vllm.errors import ModelNotAllowed
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.logging.redaction import Redactor
from twisted_vllm.observability.request_event import Attempt, RequestEvent, RequestEvents, read_event
from twisted_vllm.proxy.forwarded import ClientAddresses
from twisted_vllm.usage.records import Usage


def events(**changes: Any) -> RequestEvents:
    return RequestEvents(ClientText(Redactor()), ClientAddresses(()).of, **changes)


def event(made: RequestContext) -> RequestEvent:
    made.finish(11.5, answered=True, drained=False, bytes_in=3, bytes_out=7, body_complete=True)
    return events().event(made)


def test_it_says_who_asked_for_what_and_what_it_used() -> None:
    made = forwarded(request(), model="m")
    made.sent, made.attempted, made.attempt_began, made.queued, made.group = True, 10.1, 10.1, 0.04, "qwen*"
    made.usage, made.cost = Usage(7, 2, 5, 1, 12), 3_000_000_000
    made.said, made.end_user = Said(("blue",), '{"a":1}'), "ada"
    found = event(made)
    assert (found.key_name, found.route, found.route_class) == ("team-a", "/v1/chat/completions", "inference")
    assert (found.model, found.group, found.end_user, found.tags) == ("m", "qwen*", "ada", ("blue",))
    assert (found.prompt_tokens, found.cached_tokens, found.completion_tokens, found.reasoning_tokens) == (7, 2, 5, 1)
    assert (found.cost_usd, found.metadata, found.total_ms, found.first_byte_ms) == (0.003, '{"a":1}', 1500.0, 250.0)
    assert (found.overhead_ms, found.queued_ms) == (60.0, 40.0)
    [attempt] = found.attempts
    assert (attempt.server, attempt.began, attempt.ended, attempt.reason) == (found.server, 10.1, 11.5, "")


def test_the_id_of_an_answer_is_vllms_own() -> None:
    """vLLM makes it of the ``X-Request-Id`` that it gets: of the last attempt's."""
    made = forwarded(request(sent=True), model="m")
    found = event(made)
    assert (found.route, found.response_id) == ("/v1/chat/completions", f"chatcmpl-{found.request_id}")
    again = forwarded(request(sent=True, repeated_as="second"), model="m")
    assert event(again).response_id == "chatcmpl-second"


def test_what_was_not_answered_well_has_no_id_of_an_answer() -> None:
    assert event(forwarded(request(sent=True, status=503), model="m")).response_id == ""
    assert event(forwarded(request(), model="m")).response_id == ""
    assert event(request(status=403)).response_id == ""


def test_it_tells_each_attempt() -> None:
    failed = FailedAttempt("gpu-1", "status_503", 10.0, 10.5, 503)
    made = forwarded(request(attempts=(failed,), sent=True, attempt_began=10.5), outcome="upstream_failed")
    made.error_code = "upstream_timeout"
    first, last = event(made).attempts
    assert first == Attempt("gpu-1", 10.0, 10.5, 503, "status_503")
    assert (last.began, last.reason) == (10.5, "upstream_timeout")


def test_a_refused_request_has_no_attempt_and_no_overhead() -> None:
    made = request(error_code=ModelNotAllowed.code, status=403)
    found = event(made)
    assert (found.attempts, found.overhead_ms, found.outcome, found.route_class) == ((), None, "refused", "gateway")


@pytest.mark.parametrize("received", [0.0, 10.05])
def test_the_overhead_begins_when_the_whole_request_has_come(received: float) -> None:
    made = request(received=received, attempted=10.08, queued=0.02)
    assert made.overhead == pytest.approx(10.08 - (received or 10.0) - 0.02)


def test_an_overhead_is_never_below_zero() -> None:
    # the clock of a machine may be set back
    assert request(attempted=9.0).overhead == 0.0


def test_keys_in_texts_of_clients_are_struck_out() -> None:
    key = "sk-4f9a8b7c6d5e4f3a2b1c"
    made = forwarded(request(), model=f"m-{key}")
    made.said, made.end_user, made.fallback = Said((key,), f'{{"key":"{key}"}}'), key, key
    assert key.encode() not in msgspec.json.encode(event(made))


def test_each_consumer_gets_one_and_the_same_event(logged_failures: LoggedFailures) -> None:
    told: list[RequestEvent] = []
    observer = events()

    def fail(event: RequestEvent, context: RequestContext) -> None:
        raise ZeroDivisionError

    observer.consumers = (fail, lambda event, context: told.append(event), lambda event, context: told.append(event))
    observer.finished(request())
    assert told[0] is told[1]
    assert b'"contents"' not in msgspec.json.encode(told[0])
    assert len(logged_failures.flush(ZeroDivisionError)) == 1


class Nothing:
    """Gathers nothing."""

    def start(self, head: ResponseHead) -> None: ...

    def feed(self, data: bytes) -> None: ...


def test_an_event_with_contents_is_told_once_they_are_json() -> None:
    told: list[RequestEvent] = []
    waiting: list[Callable[[msgspec.Raw | None], None]] = []
    observer = events()
    observer.consumers = (lambda event, context: told.append(event),)
    observer.render = lambda contents, context, tell: waiting.append(tell)
    for _ in range(2):
        made = request()
        made.contents = Nothing()
        observer.finished(made)
        assert made.contents is None
    assert told == []
    waiting[0](msgspec.Raw(b'{"input":[]}'))
    waiting[1](None)
    assert b'"contents":{"input":[]}' in msgspec.json.encode(told[0])
    assert told[1].contents is None


def test_contents_that_nobody_wants_are_dropped() -> None:
    observer = events()
    made = request()
    made.contents = Nothing()
    observer.finished(made)
    assert made.contents is None


@pytest.mark.parametrize("contents", [None, b'{"mode":"full","input":"a\\nb","output":null}', b"[[[1e5]]]"])
def test_an_event_is_read_as_it_was_written(contents: bytes | None) -> None:
    written = event(forwarded(request(), model="m"))
    if contents is not None:
        written = msgspec.structs.replace(written, contents=msgspec.Raw(contents))
    found = read_event(msgspec.json.encode(written))
    assert msgspec.json.encode(found) == msgspec.json.encode(written)
    assert (None if found.contents is None else bytes(found.contents)) == contents


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"time":1}'])
def test_what_is_no_event_is_not_read(data: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        read_event(data)
