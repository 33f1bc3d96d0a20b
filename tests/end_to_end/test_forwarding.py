"""What reaches the server and what comes back, byte for byte."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import HOST, MASTER_KEY, begin, lower, parse_head, request_bytes, server_at
from tests.end_to_end.messages import OK
from twisted_vllm.http.server.request import GatewayRequest


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest_twisted.ensureDeferred
async def test_every_method_reaches_the_server(stand_in: Any, gateway_to: Any, method: str) -> None:
    server = stand_in(OK)
    answer = await gateway_to(server.port).ask(method, "/vllm/v1/models")
    assert answer.status == 200
    assert answer.body == (b"" if method == "HEAD" else b"ok")
    assert server.received.startswith(f"{method} /v1/models HTTP/1.1\r\n".encode())


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ("/vllm/v1/models", "/v1/models"),
        ("/vllm/v1/models?a=1&a=2&b=&c", "/v1/models?a=1&a=2&b=&c"),
        ("/vllm/v1/models?q=a+b%20c%2Fd&%61=%zz", "/v1/models?q=a+b%20c%2Fd&%61=%zz"),
        ("/vllm/v1/models?q=%ff%FE&q=%c3%28&%00=%0d%0a", "/v1/models?q=%ff%FE&q=%c3%28&%00=%0d%0a"),
        ("/vllm/v1/models?;a=1;&&==?/:@!$'()*,~", "/v1/models?;a=1;&&==?/:@!$'()*,~"),
        ("/vllm/v1/models?", "/v1/models?"),
        ("/vllm/v1/files/a%2Fb", "/v1/files/a%2Fb"),
        ("/vllm/metrics", "/metrics"),
        ("/vllm/score", "/score"),
        ("/vllm/chat/completions", "/v1/chat/completions"),
        ("/vllm/messages?beta=true", "/v1/messages?beta=true"),
        ("/vllm/x//y", "/x//y"),
        ("/vllm/x/../y", "/x/../y"),
        ("/vllm", "/"),
        ("/vllm/", "/"),
        ("/vllm?x=1", "/?x=1"),
        ("/vllm/UPPER/%e4%b8%ad", "/UPPER/%e4%b8%ad"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_path_and_query_keep_their_bytes(stand_in: Any, gateway_to: Any, sent: str, seen: str) -> None:
    server = stand_in(OK)
    assert (await gateway_to(server.port).ask("GET", sent)).status == 200
    assert parse_head(server.received)[0] == f"GET {seen} HTTP/1.1".encode()


@pytest_twisted.ensureDeferred
async def test_a_server_below_a_path_is_asked_below_it(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server_at(server.port, base_path=b"/gpu/1"))
    await gateway.ask("GET", "/vllm/models?x=1")
    assert server.received.startswith(b"GET /gpu/1/v1/models?x=1 HTTP/1.1\r\n")


@pytest_twisted.ensureDeferred
async def test_the_client_s_headers_arrive_in_order_with_their_case_and_repetitions(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in(OK)
    await gateway_to(server.port).answer_to(
        b"GET /vllm/health HTTP/1.1\r\nHost: gateway.example\r\nX-b: 1\r\nAccept: */*\r\nx-B:  2 \r\n"
        b"Cookie: a=b; c=d\r\nX-Latin: caf\xe9\r\nX-Empty: \r\nConnection: keep-alive, X-Hop\r\nx-hop: gone\r\n"
        b"Keep-Alive: 5\r\nTE: trailers\r\nProxy-Authorization: Basic eA==\r\nUpgrade: h2c\r\n"
        b"X-Request-Id: mine-1\r\nX-Forwarded-For: 6.6.6.6\r\n"
        b"authorization: Bearer " + MASTER_KEY.encode() + b"\r\nAPI-KEY: k\r\nx-api-key: k\r\nX-LiteLLM-API-Key: k\r\n"
        b"\r\n"
    )
    _, headers = parse_head(server.received)
    assert headers == [
        (b"Host", f"{HOST}:{server.port}".encode()),
        (b"X-b", b"1"),
        (b"Accept", b"*/*"),
        (b"x-B", b"2"),
        (b"Cookie", b"a=b; c=d"),
        (b"X-Latin", b"caf\xe9"),
        (b"X-Empty", b""),
        (b"X-Forwarded-For", b"127.0.0.1"),
        (b"X-Forwarded-Proto", b"http"),
        (b"X-Forwarded-Host", b"gateway.example"),
        (b"X-Request-Id", b"mine-1"),
    ]


@pytest_twisted.ensureDeferred
async def test_the_server_s_own_key_takes_the_place_of_the_client_s(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server_at(server.port, api_key="servers-own"))
    await gateway.ask("GET", "/vllm/v1/models")
    assert lower(parse_head(server.received)[1])[b"authorization"] == b"Bearer servers-own"
    assert MASTER_KEY.encode() not in server.received


@pytest_twisted.ensureDeferred
async def test_a_body_keeps_its_bytes(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    body = b'{ "model":"m" ,\n "stream" : false, "x": [1.0, 1e2, "\\u00e9"], "x": 2 }'
    await gateway_to(server.port).ask(
        "POST", "/vllm/v1/completions", body=body, headers={"Content-Type": "application/json"}
    )
    assert server.received.partition(b"\r\n\r\n")[2] == body
    assert lower(parse_head(server.received)[1])[b"content-length"] == str(len(body)).encode()


@pytest_twisted.ensureDeferred
async def test_a_post_without_a_body_keeps_its_content_length_of_zero(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    await gateway_to(server.port).ask("POST", "/vllm/sleep", body=b"")
    assert lower(parse_head(server.received)[1])[b"content-length"] == b"0"


@pytest_twisted.ensureDeferred
async def test_status_reason_header_order_and_body_come_back_as_they_are(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(
        b"HTTP/1.1 418 I am a Teapot, really\r\nserver: uvicorn\r\nX-A: 1\r\nset-cookie: a=1\r\n"
        b"Content-Type: text/x\r\nSet-Cookie: b=2\r\nx-a: caf\xe9\r\nConnection: close, x-private\r\n"
        b"X-Private: gone\r\nKeep-Alive: timeout=5\r\n"
        b"Content-Encoding: gzip\r\nContent-Length: 6\r\nX-Request-Id: from-vllm\r\n\r\n\x1f\x8b\x00\xff\r\n"
    )
    answer = await gateway_to(server.port, litellm_headers=False).ask("GET", "/vllm/v1/models")
    assert (answer.status, answer.reason) == (418, b"I am a Teapot, really")
    assert answer.headers == [
        (b"server", b"uvicorn"),
        (b"X-A", b"1"),
        (b"set-cookie", b"a=1"),
        (b"Content-Type", b"text/x"),
        (b"Set-Cookie", b"b=2"),
        (b"x-a", b"caf\xe9"),
        (b"Content-Encoding", b"gzip"),
        (b"Content-Length", b"6"),
        (b"X-Request-Id", b"from-vllm"),
    ]
    assert answer.body == b"\x1f\x8b\x00\xff\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 12\r\n\r\nvllm's words",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno",
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_server_s_errors_and_redirects_are_the_client_s(stand_in: Any, gateway_to: Any, raw: bytes) -> None:
    server = stand_in(raw)
    client = await gateway_to(server.port).send(request_bytes("GET", "/vllm/v1/models"))
    head, _, body = raw.partition(b"\r\n\r\n")
    await client.until(lambda: client.received.endswith(b"\r\n\r\n" + body))
    assert client.received.startswith(head)
    assert b"x-vllm-passthrough-error" not in client.received


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
@pytest_twisted.ensureDeferred
async def test_a_response_that_never_has_a_body_ends_with_its_head(
    stand_in: Any, gateway_to: Any, status: bytes
) -> None:
    server = stand_in(b"HTTP/1.1 " + status + b"\r\nX-A: 1\r\n\r\n")
    gateway = gateway_to(server.port)
    client = await gateway.send(request_bytes("GET", "/vllm/health") * 2)
    await client.until(lambda: client.received.count(b"HTTP/1.1 " + status) == 2)
    assert client.received.count(b"\r\n\r\n") == 2
    assert b"ransfer" not in client.received


@pytest_twisted.ensureDeferred
async def test_a_body_that_ends_with_the_connection_arrives_whole(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    client, upstream = await begin(server, gateway_to(server.port), request_bytes("GET", "/vllm/metrics"))
    upstream.send(b"HTTP/1.0 200 OK\r\n\r\nall")
    upstream.send(b" of it")
    upstream.close()
    await client.until_received(b"\r\n0\r\n\r\n")
    assert client.received.partition(b"\r\n\r\n")[2].endswith(b"0\r\n\r\n")
    assert b"of it" in client.received


@pytest_twisted.ensureDeferred
async def test_interim_responses_reach_the_client(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK)
    client = await gateway_to(server.port).send(request_bytes("GET", "/vllm/health"))
    await client.until_received(b"\r\n\r\nok")
    assert client.received.startswith(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n")


@pytest_twisted.ensureDeferred
async def test_a_request_id_is_made_passed_on_and_returned(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    answer = await gateway_to(server.port).ask("GET", "/vllm/health")
    seen = lower(parse_head(server.received)[1])[b"x-request-id"].decode()
    assert len(seen) == 32
    assert answer.header("x-request-id") == seen


@pytest_twisted.ensureDeferred
async def test_tenants_cannot_set_what_steers_the_scheduler_and_administrators_can(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    key = await gateway.make_key()
    headers = {"X-Vllm-Priority": "-9", "X-data-parallel-rank": "3", "X-Session-ID": "s", "X-Mine": "stays"}
    await gateway.ask("GET", "/vllm/health", key, headers=headers)
    await gateway.ask("GET", "/vllm/health", headers=headers)
    first, second = (lower(parse_head(each)[1]) for each in server.received.split(b"GET ")[1:])
    assert {name.lower().encode() for name in headers} & first.keys() == {b"x-mine"}
    assert {name.lower().encode() for name in headers} <= second.keys()


@pytest_twisted.ensureDeferred
async def test_an_answered_request_is_freed_at_once_with_its_credential(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").port)
    client = await gateway.connect()
    gc.collect()
    gc.disable()
    try:
        for number in range(1, 4):
            client.send(request_bytes("POST", "/vllm/v1/completions", body={"model": "m"}))
            await client.until(lambda number=number: client.received.count(b"\r\n\r\nok") == number)
        await client.next_turn()
        kept = [thing for thing in gc.get_objects() if isinstance(thing, GatewayRequest)]
    finally:
        gc.enable()
    assert kept == []
