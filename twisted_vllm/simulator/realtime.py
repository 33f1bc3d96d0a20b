"""``/v1/realtime``: a WebSocket that takes audio in events and gives simulated words, as vLLM 0.32 does.

The events are those of ``vllm/entrypoints/speech_to_text/realtime``: ``session.update`` names the model,
``input_audio_buffer.append`` brings audio, ``input_audio_buffer.commit`` with ``final`` ends it.
"""

from __future__ import annotations

import binascii
import math
from base64 import b64decode
from collections import deque

import msgspec
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from twisted.web.server import Request
from twisted.web.websocket import WebSocketResource, WebSocketTransport

from twisted_vllm.simulator.engine import Engine
from twisted_vllm.simulator.generation import usage_of
from twisted_vllm.simulator.replies import Work
from twisted_vllm.simulator.text import compose

PATH = "/v1/realtime"

#: PCM16 of one channel at 16 kHz
_BYTES_PER_SECOND = 32_000
_WORDS_PER_SECOND = 2.5


def asks_for_websocket(request: Request) -> bool:
    """Tell whether a request is the handshake of a WebSocket at `PATH`."""
    upgrades = request.requestHeaders.getRawHeaders("upgrade", [])
    return (
        request.method == b"GET"
        and request.uri.partition(b"?")[0] == PATH.encode("ascii")
        and any(value.strip().lower() == "websocket" for value in upgrades)
    )


class Sessions:
    """Makes the sessions of a simulated server.

    Args:
        engine: is told what runs and what is done.
        clock: tells the time and calls later.
    """

    def __init__(self, engine: Engine, clock: IReactorTime) -> None:
        self._engine = engine
        self._clock = clock
        self.resource = WebSocketResource(self)

    def buildProtocol(self, request: Request) -> Session:
        """Make the session of one connection."""
        return Session(self._engine, self._clock)


class Session:
    """One WebSocket.

    Args:
        engine: is told what runs and what is done.
        clock: tells the time and calls later.
    """

    _transport: WebSocketTransport

    def __init__(self, engine: Engine, clock: IReactorTime) -> None:
        self._engine = engine
        self._clock = clock
        self._model: str | None = None
        self._audio = 0
        self._work: Work | None = None
        self._words: deque[str] = deque()
        self._said = ""
        self._timer: IDelayedCall | None = None

    # WebSocketProtocol, for Twisted

    def negotiationStarted(self, transport: WebSocketTransport) -> None:
        """Keep what sends."""
        self._transport = transport

    def negotiationFinished(self) -> None:
        """Say that there is a session."""
        self._send("session.created", id=f"sess-{self._engine.new_id()}", created=self._engine.now())

    def pongReceived(self, payload: bytes) -> None:
        """Do nothing: nobody was pinged."""

    def bytesMessageReceived(self, data: bytes | bytearray) -> None:
        """Refuse: events are text."""
        self._fail("Invalid JSON", "invalid_json")

    def textMessageReceived(self, message: str) -> None:
        """Act on an event."""
        try:
            event = msgspec.json.decode(message)
        except msgspec.DecodeError:
            self._fail("Invalid JSON", "invalid_json")
            return
        kind = event.get("type") if isinstance(event, dict) else None
        if kind == "session.update":
            self._update(event.get("model"))
        elif kind == "input_audio_buffer.append":
            self._append(event.get("audio"))
        elif kind == "input_audio_buffer.commit":
            self._commit(event.get("final") is True)
        else:
            self._fail(f"Unknown event type: {kind}", "unknown_event")

    def connectionLost(self, reason: Failure) -> None:
        """Give up what runs."""
        if self._timer is not None:
            self._timer.cancel()
        work, self._work = self._work, None
        if work is not None:
            self._engine.abort(work, work.steps - len(self._words))

    # events

    def _send(self, kind: str, **fields: object) -> None:
        self._transport.sendTextMessage(msgspec.json.encode({"type": kind, **fields}).decode())

    def _fail(self, error: str, code: str) -> None:
        self._send("error", error=error, code=code)

    def _update(self, model: object) -> None:
        if model is None:
            self._fail("Missing required field: model", "invalid_event")
        elif model in self._engine.settings.models:
            self._model = str(model)
        else:
            self._fail(f"The model `{model}` does not exist.", "model_not_found")

    def _append(self, audio: object) -> None:
        try:
            data = b64decode(audio, validate=True) if isinstance(audio, str) else b""
        except binascii.Error:
            data = b""
        if data:
            self._audio += len(data)
        else:
            self._fail("Invalid audio data", "invalid_audio")

    def _commit(self, final: bool) -> None:
        if self._model is None:
            self._fail(
                "Model not validated. Make sure to validate the model by sending a session.update event.",
                "model_not_validated",
            )
        elif final and self._work is None:
            self._transcribe(self._model)

    def _transcribe(self, model: str) -> None:
        audio, self._audio = self._audio, 0
        words = max(1, math.ceil(audio / _BYTES_PER_SECOND * _WORDS_PER_SECOND))
        self._words = deque(compose("", words, ignore_eos=True).tokens)
        self._said = ""
        # vLLM has a token for each 80 ms or so of audio
        self._work = Work(model, max(1, audio * 12 // _BYTES_PER_SECOND), words, words)
        self._engine.begin(self._work)
        self._later(self._engine.settings.first_token)

    def _later(self, seconds: float) -> None:
        self._timer = self._clock.callLater(seconds, self._say)

    def _say(self) -> None:
        self._timer = None
        work = self._work
        if work is None:
            return
        word = self._words.popleft()
        self._said += word
        self._send("transcription.delta", delta=word)
        if self._words:
            self._later(self._engine.settings.token_interval)
            return
        self._work = None
        self._engine.finish(work)
        usage = usage_of(work.prompt_tokens, work.completion_tokens)
        self._send("transcription.done", text=self._said, usage=usage)
