"""Every request has one line in the log, with these fields."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Any

import pytest_twisted

from tests.end_to_end.end_to_end_harness import HOST, MASTER_KEY, begin, request_bytes, server_at
from tests.end_to_end.messages import OK
from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.config.settings import ModelEntry

FIELDS = {
    "time", "request_id", "client", "key_name", "key_hash", "method", "route", "model", "server", "status", "outcome",
    "error", "bytes_in", "bytes_out", "first_byte_ms", "total_ms", "level", "namespace",
}  # fmt: skip


@pytest_twisted.ensureDeferred
async def test_a_line_tells_who_asked_for_what_and_how_it_went(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    entry = ModelEntry("public", "private", server_at(server.port))
    gateway = gateway_to(None, models=(entry,))
    key = await gateway.make_key(key_alias="team-a", models=["public"])
    client, upstream = await begin(
        server,
        gateway,
        request_bytes(
            "POST",
            "/vllm/chat/completions?secret=in-the-query",
            key,
            headers={"X-Request-Id": "mine-1"},
            body={"model": "public"},
        ),
        until=b'"private"}',
    )
    gateway.clock.advance(0.25)
    upstream.send(b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await client.until_received(b"abc")
    gateway.clock.advance(0.5)
    upstream.send(b"2\r\nde\r\n0\r\n\r\n")
    await client.until_received(b"\r\n0\r\n\r\n")
    line = gateway.request_lines()[-1]
    assert line.keys() == FIELDS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "request_id": "mine-1",
        "client": HOST,
        "key_name": "team-a",
        "key_hash": hash_key(key)[:8],
        "method": "POST",
        "route": "/v1/chat/completions",
        "model": "public",
        "server": f"{HOST}:{server.port}",
        "status": 201,
        "outcome": "completed",
        "error": "",
        "bytes_in": 19,
        "bytes_out": 5,
        "first_byte_ms": 250.0,
        "total_ms": 750.0,
        "level": "info",
        "namespace": "twisted_vllm.requests",
    }
    assert "in-the-query" not in gateway.log_text()


@pytest_twisted.ensureDeferred
async def test_every_request_has_one_line_whatever_became_of_it(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    await gateway.ask("GET", "/vllm/v1/models")
    await gateway.ask("GET", "/vllm/v1/models", None)
    await gateway.ask("GET", "/health/readiness", None)
    await gateway.ask("GET", "/nowhere")
    await gateway.ask("GET", "/vllm/v1/models", headers={"X-Long": "x" * 70_000})
    bad = await gateway.send(b"nonsense\r\n\r\n")
    await bad.until_lost()
    server.answer = None
    client = await gateway.send(request_bytes("GET", "/vllm/metrics"))
    await server.connections[0].until_received(b"/metrics")
    client.cut()
    await server.connections[0].until_lost()
    lines = gateway.request_lines()
    found = [(line["route"], line["status"], line["outcome"], line["error"], line["key_name"]) for line in lines]
    assert found == [
        ("/v1/models", 200, "completed", "", "master"),
        ("/vllm/v1/models", 401, "refused", "missing_api_key", ""),
        ("/health/readiness", 200, "completed", "", ""),
        ("/nowhere", 404, "refused", "not_found", ""),
        ("/vllm/v1/models", 431, "refused", "head_too_large", ""),
        ("", 400, "refused", "malformed_http", ""),
        ("/metrics", 0, "client_disconnected", "", "master"),
    ]
    assert len({line["request_id"] for line in lines}) == len(lines)


@pytest_twisted.ensureDeferred
async def test_an_administrator_s_request_names_the_master_key_s_holder(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(OK).port)
    await gateway.make_key()
    [line] = gateway.request_lines()
    assert (line["route"], line["key_name"], line["server"]) == ("/key/generate", "master", "")


@pytest_twisted.ensureDeferred
async def test_the_client_behind_a_trusted_proxy_is_the_one_that_the_proxy_saw(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port, trusted_proxies=(ip_network("127.0.0.0/8"),))
    await gateway.answer_to(
        b"GET /vllm/health HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 192.0.2.7\r\n"
        b"X-Forwarded-Proto: https\r\nAuthorization: Bearer " + MASTER_KEY.encode() + b"\r\n\r\n"
    )
    [line] = gateway.request_lines()
    assert line["client"] == "192.0.2.7"
    assert b"X-Forwarded-For: 6.6.6.6, 192.0.2.7, 127.0.0.1\r\nX-Forwarded-Proto: https\r\n" in server.received


@pytest_twisted.ensureDeferred
async def test_a_model_s_name_of_a_megabyte_does_not_fill_the_log(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(None, models=(ModelEntry("m", "m", server_at(server.port)),))
    await gateway.ask("POST", "/vllm/v1/completions", body={"model": "x" * 1_000_000})
    assert len(gateway.log_text()) < 5000


@pytest_twisted.ensureDeferred
async def test_two_live_requests_never_share_an_id(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    await begin(server, gateway)
    raw = request_bytes("GET", "/vllm/health", headers={"X-Request-Id": "same"})
    await gateway.send(raw)
    first = await server.connection(1)
    await first.until_received(b"X-Request-Id: same\r\n")
    await gateway.send(raw)
    second = await server.connection(2)
    await second.until_received(b"\r\n\r\n")
    assert b"same" not in second.received
