"""A simulated vLLM behind the gateway, used as clients use it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThreadPool
from websockets.sync.client import connect

from tests.end_to_end.end_to_end_harness import HOST, MASTER_KEY, PATIENCE, request_bytes

MODEL = "simulated-model"
MESSAGES = [{"role": "user", "content": "Hello"}]

FORM = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nsimulated-model\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    b"RIFF\x00\x00\r\n--b--\r\n"
)


VARYING = frozenset(("id", "created", "created_at", "completed_at"))


def without_what_varies(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: without_what_varies(value) for name, value in found.items() if name not in VARYING}
    return [without_what_varies(each) for each in found] if isinstance(found, list) else found


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models", None),
        ("GET", "/version", None),
        ("GET", "/health", None),
        ("GET", "/nowhere", None),
        ("POST", "/v1/chat/completions", {"model": MODEL, "messages": MESSAGES, "max_tokens": 3, "stream": False}),
        ("POST", "/v1/chat/completions", {"model": "unknown", "messages": MESSAGES}),
        ("POST", "/v1/chat/completions", {"model": MODEL, "messages": MESSAGES, "temperature": -1}),
        ("POST", "/v1/completions", {"prompt": "x", "max_tokens": 2}),
        ("POST", "/v1/embeddings", {"model": MODEL, "input": "x"}),
        ("POST", "/score", {"model": MODEL, "text_1": "x", "text_2": "y"}),
        ("POST", "/v1/chat/completions", b"{not json"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_answer_through_the_gateway_is_the_server_s(
    simulator: Any, gateway_to: Any, method: str, path: str, body: Any
) -> None:
    gateway = gateway_to(simulator.port)
    headers = {"Content-Type": "application/json"} if isinstance(body, bytes) else {}
    through = await gateway.ask(method, "/vllm" + path, body=body, headers=headers)
    gateway.port = simulator.port
    direct = await gateway.ask(method, path, body=body, headers=headers)
    assert (through.status, through.reason) == (direct.status, direct.reason)
    assert through.header("content-type") == direct.header("content-type")
    assert through.header("x-vllm-passthrough-error") is None
    if direct.header("content-type") == "application/json":
        assert without_what_varies(through.json) == without_what_varies(direct.json)
    else:
        assert through.body == direct.body


@pytest.mark.parametrize("path", ["/vllm/chat/completions", "/vllm/v1/chat/completions"])
@pytest_twisted.ensureDeferred
async def test_a_chat_streams_to_its_end(simulator: Any, gateway_to: Any, path: str) -> None:
    gateway = gateway_to(simulator.port)
    key = await gateway.make_key(models=[MODEL])
    body = {"model": MODEL, "messages": MESSAGES, "stream": True, "max_tokens": 5}
    answer = await gateway.ask("POST", path, key, body=body)
    assert answer.header("content-type") == "text/event-stream; charset=utf-8"
    assert answer.body.count(b"data: ") >= 5
    assert answer.body.endswith(b"data: [DONE]\n\n")


@pytest_twisted.ensureDeferred
async def test_a_form_reaches_the_server_that_its_model_names(simulator: Any, gateway_to: Any) -> None:
    gateway = gateway_to(simulator.port)
    key = await gateway.make_key(models=[MODEL])
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = await gateway.ask("POST", "/vllm/v1/audio/transcriptions", key, headers=headers, body=FORM)
    assert (answer.status, gateway.request_lines()[-1]["model"]) == (200, MODEL)


@pytest_twisted.ensureDeferred
async def test_requests_on_one_connection_are_answered_in_their_order(simulator: Any, gateway_to: Any) -> None:
    gateway = gateway_to(simulator.port)
    body = {"model": MODEL, "messages": MESSAGES, "stream": True, "max_tokens": 5}
    raw = request_bytes("POST", "/vllm/v1/chat/completions", body=body) + request_bytes("GET", "/vllm/version") * 2
    client = await gateway.send(raw + request_bytes("GET", "/health/liveliness"))
    await client.until_received(b"I'm alive!")
    assert client.received.index(b"[DONE]") < client.received.index(b'"version"')
    assert client.received.count(b'"version"') == 2


@pytest_twisted.ensureDeferred
async def test_a_realtime_session_passes(simulator: Any, gateway_to: Any, reactor: Any) -> None:
    gateway = gateway_to(simulator.port)

    def converse() -> list[Any]:
        url = f"ws://{HOST}:{gateway.port}/vllm/v1/realtime"
        bearer = {"Authorization": f"Bearer {MASTER_KEY}"}
        with connect(url, additional_headers=bearer, open_timeout=PATIENCE) as socket:
            for event in (
                {"type": "session.update", "model": MODEL},
                {"type": "input_audio_buffer.append", "audio": "AAAA" * 8_000},
                {"type": "input_audio_buffer.commit", "final": True},
            ):
                socket.send(json.dumps(event))
            heard = [json.loads(socket.recv(PATIENCE))]
            while heard[-1]["type"] != "transcription.done":
                heard.append(json.loads(socket.recv(PATIENCE)))
            return heard

    heard = await deferToThreadPool(reactor, reactor.getThreadPool(), converse)
    assert [event["type"] for event in heard] == ["session.created", *["transcription.delta"] * 2, "transcription.done"]
    assert heard[-1]["text"] == "This text"
