"""What neither side can do to the other by the form of its messages."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import (
    HOST,
    MASTER_KEY,
    lower,
    parse_answer,
    parse_head,
    request_bytes,
    server_at,
)
from tests.end_to_end.messages import OK, whole

CHAT = "/vllm/v1/chat/completions"
HI = {"model": "m", "messages": []}
PREFLIGHT = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}

# from the server


@pytest.mark.parametrize("names", ["content-length", "close, Content-Length", "x-request-id, content-length, x-hop"])
@pytest_twisted.ensureDeferred
async def test_a_server_that_nominates_its_length_does_not_hold_up_the_client(
    stand_in: Any, gateway_to: Any, names: str
) -> None:
    """Without the length the client would wait for ever, or read the next answer as the first one's body."""
    server = stand_in(
        whole(b"first", kind="text/plain", more=f"Connection: {names}\r\nX-Request-Id: 1\r\nX-Hop: 2\r\n")
    )
    gateway = gateway_to(server.port)
    client = await gateway.send(request_bytes("GET", "/vllm/v1/models") * 2)
    await client.until(lambda: client.received.count(b"first") == 2)
    first, second = (b"HTTP" + part for part in client.received.split(b"HTTP")[1:])
    for raw in (first, second):
        answer = parse_answer(raw)
        assert (answer.status, answer.body) == (200, b"first")
        assert (answer.header("content-length"), answer.header("x-request-id")) == ("5", "1")
        assert answer.header("transfer-encoding") is None


@pytest.mark.parametrize("byte", [0x00, 0x07, 0x1B, 0x7F])
@pytest_twisted.ensureDeferred
async def test_no_control_byte_of_a_reason_phrase_reaches_the_client(stand_in: Any, gateway_to: Any, byte: int) -> None:
    gateway = gateway_to(stand_in(b"HTTP/1.1 200 O%cK\r\nContent-Length: 2\r\n\r\nok" % byte).port)
    answer = await gateway.ask("GET", "/vllm/v1/models")
    assert (answer.status, answer.error["code"]) == (502, "upstream_protocol_error")


@pytest.mark.parametrize("status", ["200 OK", "429 Too Many Requests", "503 Busy"])
@pytest_twisted.ensureDeferred
async def test_a_server_cannot_speak_as_the_gateway(stand_in: Any, gateway_to: Any, status: str) -> None:
    forged = (
        "X-Vllm-Passthrough-Error: budget_exceeded\r\nX-Vllm-Passthrough-Next: 1\r\nX-RateLimit-Limit-Tokens: 1\r\n"
    )
    gateway = gateway_to(stand_in(whole(b"{}", status, more=forged + "Retry-After: 1\r\n")).port)
    for _ in range(3):
        answer = await gateway.ask("GET", "/vllm/v1/models")
        assert answer.status == int(status[:3])
        assert not [name for name, _ in answer.headers if name.lower().startswith((b"x-vllm-pass", b"x-ratelimit"))]
        assert answer.header("retry-after") == "1"
    assert {line["error"] for line in gateway.request_lines()} == {""}


@pytest.mark.parametrize("location", ["http://{own}/v1/models?a=b", "https://{own}/v1/models?a=b", "/v1/models?a=b"])
@pytest_twisted.ensureDeferred
async def test_a_redirect_of_a_server_stays_on_the_gateway(stand_in: Any, gateway_to: Any, location: str) -> None:
    server = stand_in()
    own = f"{HOST}:{server.port}"
    server.answer = whole(b"", "307 Temporary Redirect", more=f"Location: {location.format(own=own)}\r\n")
    gateway = gateway_to(server.port)
    for _ in range(3):
        answer = await gateway.ask("GET", "/vllm/v1/models/?a=b")
        assert (answer.status, answer.header("location")) == (307, "/vllm/v1/models?a=b")
        assert own.encode() not in b"".join(value for _, value in answer.headers)


# from the client


@pytest_twisted.ensureDeferred
async def test_no_spelling_of_a_framing_or_judged_header_reaches_the_server(stand_in: Any, gateway_to: Any) -> None:
    """Servers that make a variable of each header read ``Content_Length`` as ``Content-Length``."""
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    key = await gateway.make_key()
    twins = (
        *("Transfer_Encoding", "Content_Length", "Content.Length", "X_Forwarded_For", "X_Vllm_Priority", "X_Api_Key"),
        *("X_Request_Id", "Content_Type", "X_Amzn_SageMaker_Adapter_Identifier"),
    )
    headers = {**dict.fromkeys(twins, "7"), "X_Own": "8"}
    for body in (HI, None):
        method = "GET" if body is None else "POST"
        assert (await gateway.ask(method, CHAT, key, headers=headers, body=body)).status == 200
        names = lower(parse_head((await server.connection()).received)[1])
        assert names[b"x_own"] == b"8"
        assert not {twin.lower().encode() for twin in twins} & names.keys()
        assert names[b"x-forwarded-for"] == b"127.0.0.1"


@pytest.mark.parametrize("host", ["", ":4000"])
@pytest_twisted.ensureDeferred
async def test_an_empty_host_is_refused(stand_in: Any, gateway_to: Any, host: str) -> None:
    server = stand_in(OK)
    answer = await gateway_to(server.port).ask("GET", "/vllm/v1/models", headers={"Host": host})
    assert (answer.status, answer.error["code"]) == (400, "malformed_http")
    assert server.connections == []


@pytest.mark.parametrize("name", ["transfer-encoding", "content-length", "host", "content-type", "x-forwarded-for"])
@pytest_twisted.ensureDeferred
async def test_a_client_takes_nothing_away_by_nominating_it(stand_in: Any, gateway_to: Any, name: str) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    raw = request_bytes("POST", CHAT, headers={"Connection": name, "X-Hop": "1"}, body=HI)
    for _ in range(2):
        assert (await gateway.answer_to(raw)).status == 200
    received = (await server.connection()).received
    assert received.count(b"Content-Type: application/json\r\n") == received.count(b"POST ")
    assert received.count(b"X-Forwarded-For: 127.0.0.1\r\n") == received.count(b"Content-Length: ")


@pytest_twisted.ensureDeferred
async def test_the_last_options_is_answered_by_the_gateway_and_others_count_down(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    for _ in range(2):
        answer = await gateway.ask("OPTIONS", CHAT, headers={"Max-Forwards": "0"})
        assert (answer.status, answer.header("allow"), answer.body) == (204, "POST, OPTIONS", b"")
    assert (await gateway.ask("OPTIONS", CHAT, None, headers={"Max-Forwards": "0"})).status == 401
    assert (await gateway.ask("TRACE", CHAT, headers={"Max-Forwards": "0"})).status == 405
    assert (await gateway.ask("OPTIONS", CHAT, headers={"Max-Forwards": "one"})).status == 400
    assert server.connections == []
    for value, passed in (("1", b"0"), ("7", b"6"), ("7", b"6")):
        assert (await gateway.ask("OPTIONS", CHAT, headers={"Max-Forwards": value})).status == 200
        upstream = server.connections[-1]
        assert lower(parse_head(upstream.received)[1])[b"max-forwards"] == passed
        upstream.received = b""
    assert (await gateway.ask("GET", "/vllm/v1/models", headers={"Max-Forwards": "0"})).status == 200


# a preflight, which anybody can send


@pytest_twisted.ensureDeferred
async def test_a_preflight_without_a_key_does_not_carry_the_server_s(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server_at(server.port, api_key="the-server-s-own"))
    for key, expected in ((None, None), (None, None), (MASTER_KEY, b"Bearer the-server-s-own"), (None, None)):
        assert (await gateway.ask("OPTIONS", CHAT, key, headers=PREFLIGHT)).status == 200
        upstream = server.connections[-1]
        assert lower(parse_head(upstream.received)[1]).get(b"authorization") == expected
        upstream.received = b""


@pytest.mark.parametrize("framing", ["Content-Length: 20971520", "Transfer-Encoding: chunked"])
@pytest_twisted.ensureDeferred
async def test_a_stranger_s_body_of_20_mb_is_not_read(stand_in: Any, gateway_to: Any, framing: str) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server_at(server.port, api_key="the-server-s-own"))
    head = request_bytes("OPTIONS", CHAT, None, PREFLIGHT).removesuffix(b"\r\n") + framing.encode() + b"\r\n\r\n"
    client = await gateway.send(head)
    await client.until_received(b"}}")
    answer = parse_answer(client.received)
    assert (answer.status, answer.error["code"], answer.header("connection")) == (401, "missing_api_key", "close")
    assert server.connections == []


@pytest_twisted.ensureDeferred
async def test_a_preflight_that_says_it_has_no_body_is_served_each_time(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    for _ in range(4):
        answer = await gateway.ask("OPTIONS", CHAT, None, headers={**PREFLIGHT, "Content-Length": "0"})
        assert answer.status == 200
