"""Bodies of any content and framing pass unchanged both ways, and no client sees another's."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import (
    HOST,
    MASTER_KEY,
    begin,
    lower,
    parse_answer,
    parse_head,
    request_bytes,
    server_at,
    unchunked,
)
from tests.end_to_end.messages import LAST, OK, chunk
from twisted_vllm.config.settings import ModelEntry

BODIES = {
    "empty": b"",
    "one byte": b"\0",
    "every byte": bytes(range(256)),
    "what looks like chunks": b"5\r\nhello\r\n0\r\n\r\n",
    "what looks like a response": OK,
    "gzip": gzip.compress(b"some text " * 50, mtime=0),
    "more than a segment": bytes(range(256)) * 1_024,
}
each_body = pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
each_framing = pytest.mark.parametrize("framing", ["length", "chunked"])


def in_chunks(body: bytes) -> bytes:
    return b"".join(chunk(body[at : at + 1_000]) for at in range(0, len(body), 1_000)) + LAST


@each_framing
@each_body
@pytest_twisted.ensureDeferred
async def test_a_request_body_reaches_the_server_byte_for_byte(
    stand_in: Any, gateway_to: Any, body: bytes, framing: str
) -> None:
    server = stand_in()
    headers = {"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"}
    if framing == "length":
        raw = request_bytes("POST", "/vllm/v1/embeddings", headers=headers, body=body)
    else:
        raw = request_bytes("POST", "/vllm/v1/embeddings", headers={**headers, "Transfer-Encoding": "chunked"})
        raw += in_chunks(body)
    client, upstream = await begin(server, gateway_to(server.port), raw, until=b"\r\n\r\n")

    def came() -> bytes:
        _, found = parse_head(upstream.received)
        data: bytes = upstream.received.partition(b"\r\n\r\n")[2]
        if lower(found).get(b"transfer-encoding") == b"chunked":
            return unchunked(data) if data.endswith(LAST) else b""
        assert int(lower(found)[b"content-length"]) == len(body)
        return data

    await upstream.until(lambda: len(came()) >= len(body))
    assert came() == body
    assert lower(parse_head(upstream.received)[1])[b"content-encoding"] == b"gzip"
    upstream.send(OK)
    await client.until_received(b"\r\n\r\nok")


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@each_body
@pytest_twisted.ensureDeferred
async def test_a_response_body_reaches_the_client_byte_for_byte(
    stand_in: Any, gateway_to: Any, body: bytes, framing: str
) -> None:
    server = stand_in()
    client, upstream = await begin(
        server,
        gateway_to(server.port),
        request_bytes("GET", "/vllm/v1/models", headers={"Accept-Encoding": "gzip"}),
        until=b"Accept-Encoding: gzip\r\n",
    )
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n"
    if framing == "length":
        upstream.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await client.until(lambda: client.received.endswith(b"\r\n\r\n" + body))
        assert parse_answer(client.received).body == body
        return
    if framing == "chunked":
        upstream.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + in_chunks(body))
    else:
        upstream.send(head + b"\r\n" + body)
        upstream.close()

    def is_whole() -> bool:
        data = client.received.partition(b"\r\n\r\n")[2]
        return data.endswith(LAST) and unchunked(data) == body

    await client.until(is_whole)
    assert parse_answer(client.received).header("content-encoding") == "gzip"


@pytest_twisted.ensureDeferred
async def test_nothing_is_added_to_a_response_but_the_request_s_id(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port, litellm_headers=False)
    client = await gateway.send(request_bytes("GET", "/vllm/health", headers={"X-Request-Id": "mine"}))
    await client.until_received(b"\r\n\r\nok")
    assert client.received == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nx-request-id: mine\r\n\r\nok"


@pytest_twisted.ensureDeferred
async def test_the_framing_of_a_chunked_response_is_all_that_is_added_to_it(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n2;ext=1\r\nok\r\n0\r\nX-T: 1\r\n\r\n")
    gateway = gateway_to(server.port, litellm_headers=False)
    client = await gateway.send(request_bytes("GET", "/vllm/health", headers={"X-Request-Id": "mine"}))
    await client.until_received(b"X-T: 1\r\n\r\n")
    assert client.received == (
        b"HTTP/1.1 200 \r\nx-request-id: mine\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: 1\r\n\r\n"
    )


@pytest_twisted.ensureDeferred
async def test_a_cookie_that_the_server_sets_for_one_client_is_not_sent_for_another(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in(b"HTTP/1.1 200 OK\r\nSet-Cookie: session=ada; Path=/\r\nContent-Length: 2\r\n\r\nok")
    gateway = gateway_to(server.port)
    first = await gateway.ask("GET", "/vllm/v1/models")
    assert first.header("set-cookie") == "session=ada; Path=/"
    await gateway.ask("GET", "/vllm/v1/models")
    assert len(server.connections) == 1, "both went over one connection"
    assert server.received.count(b"GET /v1/models") == 2
    assert b"session" not in server.received
    assert b"ookie" not in server.received


@pytest_twisted.ensureDeferred
async def test_a_redirect_is_relayed_and_not_followed(stand_in: Any, gateway_to: Any) -> None:
    elsewhere = stand_in(OK)
    location = b"http://%b:%d/v1/models" % (HOST.encode(), elsewhere.port)
    server = stand_in(
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n",
    )
    answer = await gateway_to(server.port).ask("GET", "/vllm/v1/models")
    assert (answer.status, answer.header("location")) == (307, location.decode())
    assert elsewhere.connections == []
    assert server.received.count(b"GET ") == 1


def form(*fields: bytes) -> bytes:
    return b"".join(b"--b\r\n" + field + b"\r\n" for field in fields) + b"--b--\r\n"


def model_field(name: bytes) -> bytes:
    return b'Content-Disposition: form-data; name="model"\r\n\r\n' + name


FILE = (
    b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    + bytes(range(256)) * 400
)
LANGUAGE = b'Content-Disposition: form-data; name="language"\r\n\r\nen'
ORDERS = {
    "first": lambda name: form(model_field(name), FILE, LANGUAGE),
    "between": lambda name: form(FILE, model_field(name), LANGUAGE),
    "last": lambda name: form(LANGUAGE, FILE, model_field(name)),
}
TRANSCRIBE = "/vllm/v1/audio/transcriptions"
FORM_TYPE = {"Content-Type": "multipart/form-data; boundary=b"}


@each_framing
@pytest.mark.parametrize("order", ORDERS)
@pytest_twisted.ensureDeferred
async def test_the_model_of_a_form_picks_the_server_whatever_the_order_of_its_fields(
    stand_in: Any, gateway_to: Any, order: str, framing: str
) -> None:
    body = ORDERS[order](b"whisper")
    other, right = stand_in(OK), stand_in()
    gateway = gateway_to(
        None,
        models=(
            ModelEntry("tiny", "tiny", server_at(other.port)),
            ModelEntry("whisper", "whisper", server_at(right.port)),
        ),
    )
    if framing == "length":
        raw = request_bytes("POST", TRANSCRIBE, headers=FORM_TYPE, body=body)
    else:
        raw = request_bytes("POST", TRANSCRIBE, headers={**FORM_TYPE, "Transfer-Encoding": "chunked"}) + in_chunks(body)
    client = await gateway.send(raw)
    upstream = await right.connection()
    await upstream.until_received(b"--b--\r\n" if framing == "length" else b"\r\n0\r\n\r\n")
    head, _, came = upstream.received.partition(b"\r\n\r\n")
    found = lower(parse_head(head)[1])
    if framing == "length":
        assert (came, found[b"content-length"]) == (body, b"%d" % len(body))
    else:
        assert (unchunked(came), found[b"transfer-encoding"]) == (body, b"chunked")
    upstream.send(OK)
    await client.until_received(b"\r\n\r\nok")
    assert other.connections == []


@pytest.mark.parametrize("order", ORDERS)
@pytest_twisted.ensureDeferred
async def test_the_model_of_a_form_is_permitted_or_refused_whatever_the_order_of_its_fields(
    stand_in: Any, gateway_to: Any, order: str
) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    key = await gateway.make_key(models=["whisper"])
    refused = await gateway.ask("POST", TRANSCRIBE, key, headers=FORM_TYPE, body=ORDERS[order](b"tiny"))
    assert (refused.status, refused.error["code"]) == (403, "model_not_allowed")
    assert server.connections == []
    body = ORDERS[order](b"whisper")
    client, upstream = await begin(
        server, gateway, request_bytes("POST", TRANSCRIBE, key, headers=FORM_TYPE, body=body), until=b"--b--\r\n"
    )
    assert upstream.received.partition(b"\r\n\r\n")[2] == body
    upstream.send(OK)
    await client.until_received(b"\r\n\r\nok")


@pytest_twisted.ensureDeferred
async def test_a_form_begins_to_stream_before_its_end_where_no_model_is_needed(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    raw = request_bytes("POST", TRANSCRIBE, headers=FORM_TYPE, body=ORDERS["last"](b"whisper"))
    client = await gateway_to(server.port).send(raw[:-40])
    upstream = await server.connection()
    await upstream.until(lambda: upstream.received.endswith(raw[-80:-40]))
    client.send(raw[-40:])
    await upstream.until_received(raw[-40:])
    upstream.send(OK)
    await client.until_received(b"\r\n\r\nok")


@pytest.mark.parametrize("nominated", ["Content-Length", "content-length, Host", "Content-Type", "X-Request-Id"])
@pytest_twisted.ensureDeferred
async def test_a_connection_header_cannot_take_the_framing_from_a_request(
    stand_in: Any, gateway_to: Any, nominated: str
) -> None:
    server = stand_in()
    body = json.dumps({"model": "m"}).encode()
    client, upstream = await begin(
        server,
        gateway_to(server.port),
        request_bytes("POST", "/vllm/v1/completions", headers={"Connection": nominated}, body=body),
        until=body,
    )
    found = lower(parse_head(upstream.received)[1])
    assert found[b"content-length"] == b"%d" % len(body)
    assert found[b"host"] == f"{HOST}:{server.port}".encode()
    assert MASTER_KEY.encode() not in upstream.received
    upstream.send(OK)
    await client.until_received(b"\r\n\r\nok")
