"""``/v1/audio/transcriptions`` and ``/v1/realtime``: audio is measured, and its text is simulated.

The realtime API is a WebSocket. Its events are those of ``vllm/entrypoints/speech_to_text/realtime`` in vLLM 0.32:
``session.update`` names the model, ``input_audio_buffer.append`` brings audio, and ``input_audio_buffer.commit`` with
``final`` ends it.
"""

from __future__ import annotations

import binascii
import math
import wave
from base64 import b64decode
from collections import deque
from collections.abc import Iterator
from io import BytesIO

import attrs
import msgspec
from multipart import MultipartError, MultipartParser, parse_options_header
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from twisted.web.server import Request
from twisted.web.websocket import WebSocketResource, WebSocketTransport

from twisted_vllm.simulator.apis.generation import Generation, Sampling, generate, served_model, usage_of
from twisted_vllm.simulator.engine import Engine, compose, count_tokens
from twisted_vllm.simulator.fields import Fields
from twisted_vllm.simulator.messages import (
    DONE,
    ApiError,
    ApiRequest,
    EventStream,
    Response,
    ValidationError,
    Work,
    bad_parameter,
    data_event,
    json_response,
)

REALTIME_PATH = "/v1/realtime"

#: the assumed rate of a recording that is not WAV, 32 kbit/s
_COMPRESSED_BYTES_PER_SECOND = 4_000

#: the rate of realtime audio: PCM16, one channel, 16 kHz
_PCM_BYTES_PER_SECOND = 32_000

#: the pace of speech, roughly
_WORDS_PER_SECOND = 2.5
_MAX_WORDS = 4_096

_MAX_UPLOAD_BYTES = 25 * 1024 * 1024
_MAX_FIELD_BYTES = 1024 * 1024


@attrs.frozen
class Upload:
    """A form with one file.

    Attributes:
        fields: the other fields, as text.
        audio: the file's bytes; ``None`` without a file.
    """

    fields: dict[str, str]
    audio: bytes | None


def transcriptions(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``POST /v1/audio/transcriptions``; raises `ApiError`."""
    upload = read_upload(request.body, request.header("content-type"))
    if upload.audio is None:
        shown = f"<dict of {len(upload.fields)} items>"
        raise ValidationError([("missing", "body.file", "Field required", shown)])
    fields = Fields(dict(upload.fields))
    stream, include_usage = fields.boolean("stream"), fields.boolean("stream_include_usage")
    format_name = upload.fields.get("response_format", "json")
    if format_name not in ("json", "text", "verbose_json"):
        fields.fail("literal_error", "response_format", "Input should be 'json', 'text' or 'verbose_json'")
    fields.check()
    if include_usage and not stream:
        raise bad_parameter("Stream options can only be defined when `stream=True`.", "stream_include_usage")
    model = served_model(engine, upload.fields.get("model"))
    if not upload.audio:
        raise ApiError("Invalid or unsupported audio file.")
    seconds = duration(upload.audio)
    words = max(1, math.ceil(seconds * _WORDS_PER_SECOND))
    sampling = Sampling(limit=min(words, _MAX_WORDS), ignore_eos=True)
    prompt = upload.fields.get("prompt", "")
    prompts = [(prompt, max(1, count_tokens(prompt)))]
    generation = generate(engine, request, model, prompts, sampling)
    # The text ends with the recording, and not because of its limit.
    choices = tuple(attrs.evolve(choice, finish_reason="stop") for choice in generation.choices)
    generation = attrs.evolve(generation, choices=choices)
    if stream:
        return _stream(generation, include_usage=include_usage)
    text = generation.choices[0].text
    if format_name == "verbose_json":
        value: dict[str, object] = {
            "duration": seconds,
            "language": upload.fields.get("language", "en"),
            "text": text,
            "segments": [],
            "words": None,
        }
    else:
        value = {"text": text, "usage": {"type": "duration", "seconds": math.ceil(seconds)}}
    return json_response(value, work=generation.work)


def read_upload(body: bytes, content_type: str) -> Upload:
    """Read a ``multipart/form-data`` body.

    Raises:
        ApiError: it is not one, or is malformed.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get("boundary")
    if kind != "multipart/form-data" or not boundary:
        raise ValidationError([("missing", "body.file", "Field required", "None")])
    fields: dict[str, str] = {}
    audio: bytes | None = None
    parser = MultipartParser(
        BytesIO(body),
        boundary,
        content_length=len(body),
        memory_limit=_MAX_UPLOAD_BYTES + _MAX_FIELD_BYTES,
        spool_limit=_MAX_UPLOAD_BYTES,
    )
    try:
        for part in parser:
            if part.name == "file" and part.filename is not None:
                audio = part.raw
            else:
                fields[part.name] = part.value
            part.close()
    except MultipartError as error:
        raise ApiError(f"There was an error parsing the body: {error}") from error
    except UnicodeDecodeError as error:
        raise ApiError("There was an error parsing the body: a field is not UTF-8 text") from error
    return Upload(fields, audio)


def duration(audio: bytes) -> float:
    """Return a recording's length in seconds: that of a WAV file, or an estimate by its size."""
    try:
        with wave.open(BytesIO(audio), "rb") as file:
            return float(file.getnframes() / file.getframerate())
    except (wave.Error, EOFError, ZeroDivisionError):
        return len(audio) / _COMPRESSED_BYTES_PER_SECOND


def _stream(generation: Generation, *, include_usage: bool) -> EventStream:
    head = {
        "id": f"trsc-{generation.number}",
        "object": "transcription.chunk",
        "created": generation.created,
        "model": generation.model,
    }

    def events() -> Iterator[bytes]:
        for step in generation.steps():
            for _, token, reason in step:
                ending = {} if reason is None else {"finish_reason": reason, "stop_reason": None}
                yield data_event(head | {"choices": [{"delta": {"content": token}, **ending}]})

    closing = DONE
    if include_usage:
        usage = usage_of(generation.prompt_tokens, generation.completion_tokens)
        closing = data_event(head | {"choices": [], "usage": usage}) + DONE
    return EventStream(b"", events(), closing, generation.work)


def asks_for_websocket(request: Request) -> bool:
    """Return whether a request is a WebSocket's handshake at `REALTIME_PATH`."""
    upgrades = request.requestHeaders.getRawHeaders("upgrade", [])
    return (
        request.method == b"GET"
        and request.uri.partition(b"?")[0] == REALTIME_PATH.encode("ascii")
        and any(value.strip().lower() == "websocket" for value in upgrades)
    )


class RealtimeSessions:
    """Makes the realtime sessions of a server.

    Args:
        engine: counts the work.
        clock: tells the time and schedules calls.
    """

    def __init__(self, engine: Engine, clock: IReactorTime) -> None:
        self._engine = engine
        self._clock = clock
        self.resource = WebSocketResource(self)

    def buildProtocol(self, request: Request) -> RealtimeSession:
        """Make the session of one connection."""
        return RealtimeSession(self._engine, self._clock)


class RealtimeSession:
    """One WebSocket.

    Args:
        engine: counts the work.
        clock: tells the time and schedules calls.
    """

    _transport: WebSocketTransport

    def __init__(self, engine: Engine, clock: IReactorTime) -> None:
        self._engine = engine
        self._clock = clock
        self._model: str | None = None
        self._audio = 0
        self._work: Work | None = None
        self._words: deque[str] = deque()
        self._text = ""
        self._timer: IDelayedCall | None = None

    # Twisted's WebSocketProtocol

    def negotiationStarted(self, transport: WebSocketTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def negotiationFinished(self) -> None:
        """Send ``session.created``."""
        self._send("session.created", id=f"sess-{self._engine.new_id()}", created=self._engine.now())

    def pongReceived(self, payload: bytes) -> None:
        """Ignore it: the session sends no pings."""

    def bytesMessageReceived(self, data: bytes | bytearray) -> None:
        """Refuse it: events are text."""
        self._fail("Invalid JSON", "invalid_json")

    def textMessageReceived(self, message: str) -> None:
        """Handle an event."""
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
        """Abort the work."""
        if self._timer is not None:
            self._timer.cancel()
        work, self._work = self._work, None
        if work is not None:
            self._engine.abort(work, work.steps - len(self._words))

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
        words = max(1, math.ceil(audio / _PCM_BYTES_PER_SECOND * _WORDS_PER_SECOND))
        self._words = deque(compose("", words, ignore_eos=True).tokens)
        self._text = ""
        # vLLM counts about one token for 80 ms of audio.
        self._work = Work(model, max(1, audio * 12 // _PCM_BYTES_PER_SECOND), words, words)
        self._engine.begin(self._work)
        self._later(self._engine.settings.first_token)

    def _later(self, seconds: float) -> None:
        self._timer = self._clock.callLater(seconds, self._send_word)

    def _send_word(self) -> None:
        self._timer = None
        work = self._work
        if work is None:
            return
        word = self._words.popleft()
        self._text += word
        self._send("transcription.delta", delta=word)
        if self._words:
            self._later(self._engine.settings.token_interval)
            return
        self._work = None
        self._engine.finish(work)
        usage = usage_of(work.prompt_tokens, work.completion_tokens)
        self._send("transcription.done", text=self._text, usage=usage)
