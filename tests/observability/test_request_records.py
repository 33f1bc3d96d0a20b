"""What a finished request leaves in the log."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from twisted.logger import ILogObserver, LogEvent
from zope.interface import implementer

from tests.proxy.gateway_fakes import server
from twisted_vllm.api_routes import classify
from twisted_vllm.auth.records import Principal
from twisted_vllm.context import Authorization, Peer, RequestContext
from twisted_vllm.http.headers import HeaderList, RequestHead, ResponseHead
from twisted_vllm.observability.client_text import TEXT_LIMIT, ClientText
from twisted_vllm.observability.logging.lines import ILines, JsonLines, TextLines
from twisted_vllm.observability.logging.redaction import Redactor
from twisted_vllm.observability.logging.request_log import RequestLog
from twisted_vllm.observability.request_record import RequestRecord
from twisted_vllm.proxy.forwarded import ClientAddresses
from twisted_vllm.proxy.paths import target
from twisted_vllm.usage.meter import UsageMeter
from twisted_vllm.usage.pricing import FREE, RoutePricing
from twisted_vllm.usage.records import Payer, refer

NOW = 1_767_225_600.0
#: the most bytes of a line: of a request without a key, whose path alone is long, and of one that names a model
MOST_STRANGERS_BYTES, MOST_TENANTS_BYTES = 4_096, 8_192
TENANT = Principal(kind="key", name="team-a", hash_prefix="0123abcd")


def request(
    uri: bytes = b"/vllm/chat/completions?q=1",
    headers: HeaderList | None = None,
    host: str = "192.0.2.1",
    **changes: Any,
) -> RequestContext:
    """A request that was answered, with some attributes changed; it is not over yet."""
    made = RequestContext(Peer(host, False), 10.0)
    made.head = RequestHead(b"POST", uri, b"HTTP/1.1", headers or [])
    made.request_id, made.status, made.first_byte = b"5f0e", 200, 10.25
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def forwarded(made: RequestContext, model: str = "m", outcome: str = "completed") -> RequestContext:
    """Say of a request that it was forwarded."""
    where = target(made.head.target.removeprefix(b"/vllm"))
    made.authorization = Authorization(
        TENANT, refer(Payer()), classify(b"POST", where.path), where.path, where.forwarded, False, False
    )
    made.principal, made.model, made.server, made.outcome = TENANT, model, server(), outcome
    return made


@implementer(ILogObserver)
def _ignore(event: LogEvent) -> None: ...


def log(observer: Any = None, redact: Any = None, trusted: Any = ()) -> RequestLog:
    return RequestLog(
        observer or _ignore,
        ClientText(redact or Redactor()),
        ClientAddresses(trusted).of,
        now=lambda: NOW,
    )


def record(
    made: RequestContext,
    made_by: RequestLog | None = None,
    answered: bool = True,
    drained: bool = False,
    bytes_in: int = 0,
) -> RequestRecord:
    made.finish(11.5, answered=answered, drained=drained, bytes_in=bytes_in, bytes_out=7, body_complete=True)
    return (made_by or log()).record(made)


def test_a_forwarded_request_says_who_what_where_and_how_long() -> None:
    assert record(forwarded(request()), bytes_in=3) == RequestRecord(
        time="2025-12-31T23:59:58.500Z",
        request_id="5f0e",
        client="192.0.2.1",
        key_name="team-a",
        key_hash="0123abcd",
        method="POST",
        route="/v1/chat/completions",
        model="m",
        server="gpu-1:8000",
        status=200,
        outcome="completed",
        error="",
        bytes_in=3,
        bytes_out=7,
        first_byte_ms=250.0,
        total_ms=1500.0,
    )


def test_a_request_that_was_not_forwarded_shows_the_path_that_came_without_its_query() -> None:
    found = record(request(uri=b"/key/info?key=sk-secret"))
    assert (found.route, found.server, found.key_name, found.key_hash) == ("/key/info", "", "", "")


@pytest.mark.parametrize("uri", [b"", b"*", b"http://user:pass@host/vllm", b"host:443"])
def test_a_target_that_is_no_path_is_not_shown(uri: bytes) -> None:
    assert record(request(uri=uri)).route == ""


#: with these codes the gateway turns requests away because it is full, which is no fault
FULL = ["server_busy", "out_of_sockets", "no_room_for_body", "form_spool_full", "reports_busy"]


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "completed"),
        ({"status": 404}, "completed"),
        ({"status": 401, "error_code": "invalid_api_key"}, "refused"),
        ({"status": 503, "error_code": "draining"}, "refused"),
        *(({"status": 503, "error_code": code}, "refused") for code in FULL),
        ({"status": 504, "error_code": "report_timeout"}, "failed"),
        ({"status": 503, "error_code": "limits_unavailable"}, "failed"),
        ({"status": 503, "error_code": "database_unavailable"}, "failed"),
        ({"status": 500, "error_code": "internal_error"}, "failed"),
        ({"answered": False, "status": 0, "first_byte": None}, "client_disconnected"),
    ],
)
def test_the_outcome_of_a_request_that_no_server_was_asked_about(changes: Any, outcome: str) -> None:
    answered = changes.pop("answered", True)
    assert record(request(**changes), answered=answered).outcome == outcome


@pytest.mark.parametrize("outcome", ["completed", "upstream_failed", "failed"])
def test_the_outcome_of_a_forwarded_request_is_the_relay_s(outcome: str) -> None:
    assert record(forwarded(request(), outcome=outcome)).outcome == outcome


def meter_of(body: bytes) -> UsageMeter:
    """Return the meter of a stream with this body."""
    meter = UsageMeter(RoutePricing(classify(b"POST", b"/v1/completions"), FREE), 5, 1, usage_injected=False)
    meter.start(ResponseHead(200, b"OK", [(b"Content-Type", b"text/event-stream")]))
    meter.feed(body)
    return meter


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("completed", "upstream_error"),
        # a client may leave because of the error
        ("client_disconnected", "upstream_error"),
        ("upstream_failed", "upstream_failed"),
        ("failed", "failed"),
    ],
)
def test_an_error_of_the_server_s_in_a_stream_has_an_outcome_of_its_own(outcome: str, expected: str) -> None:
    made = forwarded(request(), outcome=outcome)
    made.meter = meter_of(b'data: {"error":{"code":500}}\n\n')
    assert record(made, answered=outcome == "completed").outcome == expected
    made.ended_as = "revoked"
    assert record(made).outcome == "revoked"


def test_a_stream_without_an_error_ends_as_it_ended() -> None:
    made = forwarded(request())
    made.meter = meter_of(b'data: {"choices":[],"error":null}\n\n')
    assert record(made).outcome == "completed"


@pytest.mark.parametrize("outcome", ["", "client_disconnected"])
def test_a_request_that_was_ended_with_its_key_is_not_the_client_s_leaving(outcome: str) -> None:
    made = forwarded(request(status=200, error_code="blocked_api_key"), outcome=outcome)
    made.ended_as = "revoked"
    assert record(made).outcome == "revoked"


def test_a_request_that_was_refused_after_it_was_forwarded_is_not_the_client_s_leaving() -> None:
    made = forwarded(request(status=400, error_code="malformed_http"), outcome="client_disconnected")
    assert record(made).outcome == "refused"


def test_a_request_that_was_cut_at_the_end_of_the_drain_is_not_the_client_s_leaving() -> None:
    found = record(forwarded(request(), outcome="client_disconnected"), answered=False)
    assert (found.outcome, found.error) == ("client_disconnected", "")
    found = record(forwarded(request(), outcome="client_disconnected"), answered=False, drained=True)
    assert (found.outcome, found.error) == ("failed", "draining")


def test_a_request_without_a_response_has_no_first_byte() -> None:
    found = record(request(status=0, first_byte=None), answered=False)
    assert (found.first_byte_ms, found.status) == (None, 0)


def test_the_client_is_the_one_that_trusted_proxies_saw() -> None:
    recorder = log(trusted=(ip_network("192.0.2.0/24"),))
    headers = [(b"X-Forwarded-For", b"6.6.6.6"), (b"X-Forwarded-For", b"198.51.100.1")]
    assert record(request(headers=headers), recorder).client == "198.51.100.1"
    assert record(request(headers=headers)).client == "192.0.2.1"


def test_a_client_on_a_unix_socket_is_unknown() -> None:
    assert record(request(host="")).client == "unknown"


def test_a_key_that_stands_where_it_does_not_belong_is_struck_out() -> None:
    recorder = log(redact=Redactor(["master/key"]))
    made = forwarded(request(uri=b"/vllm/x/master/key/y", headers=[(b"X-Request-Id", b"sk-mine")]), model="sk-mine")
    made.request_id = b"sk-mine"
    found = record(made, recorder)
    assert (found.route, found.model, found.request_id) == ("/x/***/y", "***", "***")


def test_what_a_client_wrote_is_cut_after_it_was_struck_out() -> None:
    secret = "sk-" + "k" * 40
    made = forwarded(request(uri=b"/vllm/" + b"x" * (TEXT_LIMIT - 20) + b"-" + secret.encode()), model="m" * 5000)
    found = record(made)
    assert len(found.route) <= TEXT_LIMIT
    assert len(found.model) == TEXT_LIMIT
    assert "sk-k" not in found.route


def test_any_observer_of_twisted_s_sees_the_record_in_an_event() -> None:
    events: list[LogEvent] = []
    made = forwarded(request())
    made.finish(11.5, answered=True, drained=False, bytes_in=0, bytes_out=7, body_complete=True)
    log(events.append).finished(made)
    [event] = events
    assert event["request_record"] == log().record(made)


# what one request can make the log hold


@pytest.mark.parametrize("text", ["\x01", "\x85", "\xa0", "\U0001f600", "\U000e0001", '"', "\\"])
@pytest.mark.parametrize("lines", [JsonLines(), TextLines()])
def test_a_line_has_bounded_bytes_whatever_a_caller_sends(text: str, lines: ILines) -> None:
    path = (b"/" + text.encode()) * 60_000
    strangers = request(path, request_id=b'"' * 128, host="2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", outcome="refused")
    size = len(lines.request(record(strangers), "info"))
    tenants = forwarded(request(b"/vllm" + b"/x" * 30_000), model=text * 4_096)
    with_model = len(lines.request(record(tenants), "info"))
    print(f"{size} bytes of a stranger, {with_model} bytes of a tenant")
    assert size < MOST_STRANGERS_BYTES
    assert with_model < MOST_TENANTS_BYTES
