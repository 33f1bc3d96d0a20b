"""Every refusal that the gateway makes itself, as its client sees it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import HOST, MASTER_KEY, parse_answer, request_bytes, server_at
from tests.end_to_end.messages import OK
from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.config.settings import Limits, ModelEntry
from twisted_vllm.storage.database import Database
from twisted_vllm.storage.store import Store

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def key_record(key: str, **changes: Any) -> KeyRecord:
    return attrs.evolve(KeyRecord(hash_key(key), "sk-...last", NOW, NOW, "master"), **changes)


@pytest.fixture
def refusing(stand_in: Any, gateway_to: Any) -> Any:
    """A gateway whose server must not be reached."""
    server = stand_in()
    yield gateway_to(server.port, limits=Limits(max_body_bytes=100_000, max_held_body_bytes=1000))
    assert server.connections == []


@pytest_twisted.ensureDeferred
async def test_no_key(refusing: Any) -> None:
    answer = await refusing.ask("GET", "/vllm/v1/models", None)
    assert (answer.status, answer.error["code"], answer.error["type"]) == (
        401,
        "missing_api_key",
        "auth_error",
    )
    assert "Authorization: Bearer" in answer.error["message"]


@pytest_twisted.ensureDeferred
async def test_an_unknown_key(refusing: Any) -> None:
    answer = await refusing.ask("GET", "/vllm/v1/models", "sk-nobody-knows-this")
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert b"nobody-knows" not in answer.body


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"expires": NOW + timedelta(hours=1)}, "expired_api_key"), ({"blocked": True}, "blocked_api_key")],
)
@pytest_twisted.ensureDeferred
async def test_a_key_that_expired_or_was_blocked(
    stand_in: Any, gateway_to: Any, reactor: Any, changes: dict[str, Any], code: str
) -> None:
    first = gateway_to(stand_in(OK).port)
    await first.stop()
    database = Database(reactor, first.settings.database_url)
    database.open()
    record = key_record("sk-once-good", **changes)
    await Store(database).change(lambda transaction: transaction.keys.insert(record))
    await database.stop()
    second = gateway_to(stand_in(OK).port, database_url=first.settings.database_url)
    answer = await second.ask("GET", "/vllm/v1/models", "sk-once-good")
    assert (answer.status, answer.error["code"]) == (401, code)
    assert b"once-good" not in answer.body
    assert hash_key("sk-once-good").encode() not in answer.body


@pytest_twisted.ensureDeferred
async def test_a_model_without_a_server(refusing: Any, stand_in: Any, gateway_to: Any) -> None:
    entry = ModelEntry("known", "known", server_at(stand_in().port))
    gateway = gateway_to(None, models=(entry,))
    answer = await gateway.ask("POST", "/vllm/v1/completions", body={"model": "unknown"})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert "Send a model_name of the gateway's model_list" in answer.error["message"]
    assert HOST not in answer.body.decode()


@pytest_twisted.ensureDeferred
async def test_a_body_over_the_cap_before_it_is_sent(refusing: Any) -> None:
    raw = request_bytes("POST", "/vllm/v1/completions", headers={"Content-Length": "100001"})
    answer = await refusing.answer_to(raw)
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert "100000" in answer.error["message"]


@pytest_twisted.ensureDeferred
async def test_a_body_that_must_be_held_over_its_cap(refusing: Any) -> None:
    key = await refusing.make_key(models=["m"])
    answer = await refusing.ask("POST", "/vllm/v1/completions", key, body={"model": "m", "prompt": "x" * 1000})
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")


@pytest_twisted.ensureDeferred
async def test_a_body_that_nothing_depends_on_is_not_held_to_the_cap_of_held_bodies(
    stand_in: Any, gateway_to: Any
) -> None:
    gateway = gateway_to(stand_in(OK).port, limits=Limits(max_held_body_bytes=1000))
    answer = await gateway.ask("POST", "/vllm/v1/completions", body={"model": "m", "prompt": "x" * 2000})
    assert answer.status == 200


@pytest_twisted.ensureDeferred
async def test_a_head_over_the_cap(refusing: Any) -> None:
    answer = await refusing.ask("GET", "/vllm/v1/models", headers={"X-Long": "x" * 70_000})
    assert (answer.status, answer.error["code"]) == (431, "head_too_large")


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /vllm/v1/models HTTP/1.1\r\nHost : h\r\n\r\n",
        b"GET /vllm/v1/models HTTP/1.1\r\n\r\n",
        b"POST /vllm/v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /vllm/v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET http://elsewhere/vllm/health HTTP/1.1\r\nHost: h\r\n\r\n",
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_not_http(refusing: Any, raw: bytes) -> None:
    client = await refusing.send(raw)
    await client.until_lost()
    answer = parse_answer(client.received)
    assert (answer.status, answer.error["code"]) == (400, "malformed_http")
    assert answer.header("connection") == "close"


@pytest.mark.parametrize("path", ["/vllm/../key/list", "/vllm/%2e%2e/x", "/vllm/a/../../x", "/vllm/..%2fx"])
@pytest_twisted.ensureDeferred
async def test_a_path_that_climbs_out(refusing: Any, path: str) -> None:
    answer = await refusing.ask("GET", path)
    assert (answer.status, answer.error["code"]) == (400, "invalid_request")


@pytest_twisted.ensureDeferred
async def test_an_unknown_path(refusing: Any) -> None:
    answer = await refusing.ask("GET", "/vllmx/v1/models")
    assert (answer.status, answer.error["code"]) == (404, "not_found")


@pytest_twisted.ensureDeferred
async def test_a_refusal_leaves_the_connection_usable(refusing: Any) -> None:
    client = await refusing.send(request_bytes("GET", "/vllm/v1/models", "sk-wrong") * 2)
    await client.until(lambda: client.received.count(b'"code":"invalid_api_key"}}') == 2)
    assert client.lost is None


@pytest_twisted.ensureDeferred
async def test_a_refused_upload_ends_and_its_body_is_never_taken_for_a_request(refusing: Any) -> None:
    smuggled = request_bytes("DELETE", "/vllm/sleep")
    client = await refusing.send(request_bytes("POST", "/vllm/v1/audio/speech", None, body=b"x" * 90_000)[:-90_000])
    await client.until_received(b"missing_api_key")
    client.send(smuggled)
    client.close()
    await client.until_lost()
    assert client.received.count(b"HTTP/1.1 ") == 1
    assert MASTER_KEY.encode() not in client.received
