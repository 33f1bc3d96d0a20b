"""What a finished request leaves in the log."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from tests.proxy.gateway_fakes import FakePeer, FakeRequest, server
from twisted_vllm.api_routes import classify
from twisted_vllm.auth.records import Principal
from twisted_vllm.observability.logging.redaction import Redactor
from twisted_vllm.observability.request_record import RequestRecord
from twisted_vllm.proxy.admission import Entry
from twisted_vllm.proxy.paths import target
from twisted_vllm.proxy.relay import Relay
from twisted_vllm.proxy.request_recorder import TEXT_LIMIT, RequestRecorder
from twisted_vllm.proxy.resource import RequestContext
from twisted_vllm.usage.records import Payer, refer

NOW = 1_767_225_600.0
TENANT = Principal(kind="key", name="team-a", hash_prefix="0123abcd")


def request(**changes: Any) -> Any:
    """A request that was answered, with some attributes changed."""
    made: Any = FakeRequest(uri=changes.pop("uri", b"/vllm/chat/completions?q=1"), headers=changes.pop("headers", []))
    made.status, made.finished, made.first_byte, made.sentLength = 200, True, 10.25, 7
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def forwarded(made: Any, model: str = "m", outcome: str = "completed") -> Any:
    """Say of a request that it was forwarded."""
    where = target(made.uri.removeprefix(b"/vllm"))
    note = RequestContext(Entry(TENANT, classify(made.method, where.path), where, False, False, refer(Payer())))
    note.model, note.server = model, server().name
    note.relay = Relay(made)
    note.relay.outcome = outcome
    made.note, made.principal = note, TENANT
    return made


def record(made: Any, recorder: RequestRecorder | None = None) -> RequestRecord:
    return (recorder or RequestRecorder(now=lambda: NOW)).record(made, 11.5)


def test_a_forwarded_request_says_who_what_where_and_how_long() -> None:
    assert record(forwarded(request(body_received=3))) == RequestRecord(
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


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "completed"),
        ({"status": 404}, "completed"),
        ({"status": 401, "error_code": "invalid_api_key"}, "refused"),
        ({"status": 503, "error_code": "draining"}, "refused"),
        ({"status": 503, "error_code": "database_unavailable"}, "failed"),
        ({"status": 500, "error_code": "internal_error"}, "failed"),
        ({"finished": False, "status": 0, "first_byte": None}, "client_disconnected"),
    ],
)
def test_the_outcome_of_a_request_that_no_server_was_asked_about(changes: Any, outcome: str) -> None:
    assert record(request(**changes)).outcome == outcome


@pytest.mark.parametrize("outcome", ["completed", "upstream_failed", "failed"])
def test_the_outcome_of_a_forwarded_request_is_the_relay_s(outcome: str) -> None:
    assert record(forwarded(request(), outcome=outcome)).outcome == outcome


@pytest.mark.parametrize("outcome", ["", "client_disconnected"])
def test_a_request_that_was_ended_with_its_key_is_not_the_client_s_leaving(outcome: str) -> None:
    made = forwarded(request(status=200, error_code="blocked_api_key"), outcome=outcome)
    made.revoked = True
    assert record(made).outcome == "revoked"


def test_a_request_that_was_refused_after_it_was_forwarded_is_not_the_client_s_leaving() -> None:
    made = forwarded(request(status=400, error_code="malformed_http"), outcome="client_disconnected")
    assert record(made).outcome == "refused"


def test_a_request_that_was_cut_at_the_end_of_the_drain_is_not_the_client_s_leaving() -> None:
    made = forwarded(request(finished=False), outcome="client_disconnected")
    assert record(made).outcome == "client_disconnected"
    made.channel.site.aborted = True
    assert (record(made).outcome, record(made).error) == ("failed", "draining")


def test_a_request_without_a_response_has_no_first_byte() -> None:
    found = record(request(finished=False, status=0, first_byte=None))
    assert (found.first_byte_ms, found.status) == (None, 0)


def test_the_client_is_the_one_that_trusted_proxies_saw() -> None:
    recorder = RequestRecorder((ip_network("192.0.2.0/24"),), now=lambda: NOW)
    headers = [(b"X-Forwarded-For", b"6.6.6.6"), (b"X-Forwarded-For", b"198.51.100.1")]
    assert record(request(headers=headers), recorder).client == "198.51.100.1"
    assert record(request(headers=headers)).client == "192.0.2.1"


def test_a_client_on_a_unix_socket_is_unknown() -> None:
    made = request()
    made.channel.peer = FakePeer("")
    assert record(made).client == "unknown"


def test_a_key_that_stands_where_it_does_not_belong_is_struck_out() -> None:
    recorder = RequestRecorder(redact=Redactor(["master/key"]), now=lambda: NOW)
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
