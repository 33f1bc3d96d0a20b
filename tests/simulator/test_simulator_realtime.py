"""The simulator's WebSocket, alone and behind a gateway, with a client that somebody else wrote."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThreadPool
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from twisted_vllm.config.secret import Secret
from twisted_vllm.simulator.service import SimulatorService, simulator_service
from twisted_vllm.simulator.settings import SimulatorSettings

PATIENCE = 30.0
SECOND = b64encode(bytes(32_000)).decode()

Talk = Callable[[Callable[[ClientConnection], Any]], Any]


@pytest.fixture
def service(reactor: Any) -> Iterator[SimulatorService]:
    made = simulator_service(reactor, SimulatorSettings(token_interval=0, first_token=0, api_key=Secret("the-key")))
    made.startService()
    yield made
    pytest_twisted.blockon(made.stopService())


@pytest.fixture
def talk(reactor: Any, service: SimulatorService) -> Talk:
    """Runs a conversation in a thread; returns what came of it."""

    def run(conversation: Callable[[ClientConnection], Any], key: str = "the-key") -> Any:
        url = f"ws://127.0.0.1:{service.port}/v1/realtime"

        def converse() -> Any:
            bearer = {"Authorization": f"Bearer {key}"}
            with connect(url, additional_headers=bearer, open_timeout=PATIENCE) as socket:
                return conversation(socket)

        return deferToThreadPool(reactor, reactor.getThreadPool(), converse)

    return run


def say(socket: ClientConnection, kind: str, **fields: object) -> None:
    socket.send(json.dumps({"type": kind, **fields}))


def hear(socket: ClientConnection) -> Any:
    return json.loads(socket.recv(PATIENCE))


@pytest_twisted.ensureDeferred
async def test_audio_becomes_words(talk: Talk, service: SimulatorService) -> None:
    def conversation(socket: ClientConnection) -> list[Any]:
        heard = [hear(socket)]
        say(socket, "session.update", model="simulated-model")
        say(socket, "input_audio_buffer.commit")
        for _ in range(2):
            say(socket, "input_audio_buffer.append", audio=SECOND)
        say(socket, "input_audio_buffer.commit", final=True)
        while heard[-1]["type"] != "transcription.done":
            heard.append(hear(socket))
        return heard

    created, *deltas, done = await talk(conversation)
    assert created["type"] == "session.created"
    assert created["id"].startswith("sess-")
    assert {delta["type"] for delta in deltas} == {"transcription.delta"}
    assert done["text"] == "".join(delta["delta"] for delta in deltas) == "This text is simulated: no"
    assert done["usage"] == {"prompt_tokens": 24, "completion_tokens": 5, "total_tokens": 29}


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("not json", "invalid_json"),
        (b"bytes", "invalid_json"),
        ("[1]", "unknown_event"),
        ('{"type": "response.create"}', "unknown_event"),
        ('{"type": "session.update"}', "invalid_event"),
        ('{"type": "session.update", "model": "other"}', "model_not_found"),
        ('{"type": "input_audio_buffer.append", "audio": "?"}', "invalid_audio"),
        ('{"type": "input_audio_buffer.append"}', "invalid_audio"),
        ('{"type": "input_audio_buffer.commit", "final": true}', "model_not_validated"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_cannot_be_done_is_an_error_event(talk: Talk, message: str | bytes, code: str) -> None:
    def conversation(socket: ClientConnection) -> Any:
        hear(socket)
        socket.send(message)
        return hear(socket)

    found = await talk(conversation)
    assert (found["type"], found["code"]) == ("error", code)


@pytest_twisted.ensureDeferred
async def test_without_the_key_there_is_no_session(talk: Any) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await talk(hear, key="another")
    assert refused.value.response.status_code == 401


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_ends_its_work(reactor: Any, talk: Talk, service: SimulatorService) -> None:
    engine = service.engine

    def conversation(socket: ClientConnection) -> None:
        hear(socket)
        say(socket, "session.update", model="simulated-model")
        for _ in range(100):
            say(socket, "input_audio_buffer.append", audio=SECOND)
        say(socket, "input_audio_buffer.commit", final=True)
        hear(socket)

    await talk(conversation)
    for _ in range(1_000):
        if not engine.running:
            break
        await talk(hear)
    assert engine.running == 0
