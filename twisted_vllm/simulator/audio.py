"""``/v1/audio/transcriptions``: the upload is read and measured, the text is simulated."""

from __future__ import annotations

import math
import wave
from collections.abc import Iterator
from io import BytesIO

import attrs
from multipart import MultipartError, MultipartParser, parse_options_header

from twisted_vllm.simulator.engine import Engine
from twisted_vllm.simulator.fields import Fields
from twisted_vllm.simulator.generation import Generation, Sampling, generate, served_model, usage_of
from twisted_vllm.simulator.refusals import Refusal, ValidationFailed, bad_parameter
from twisted_vllm.simulator.replies import DONE, Call, EventStream, Reply, data_event, json_answer
from twisted_vllm.simulator.text import count_tokens

#: what stands for the length of a recording that is not WAV: 32 kbit/s
_BYTES_PER_SECOND = 4_000

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
        audio: the file's bytes; ``None`` where it was not sent.
    """

    fields: dict[str, str]
    audio: bytes | None


def transcriptions(call: Call, engine: Engine) -> Reply:
    """Answer ``POST /v1/audio/transcriptions``; raises ``Refusal``."""
    upload = read_upload(call.body, call.header("content-type"))
    if upload.audio is None:
        shown = f"<dict of {len(upload.fields)} items>"
        raise ValidationFailed([("missing", "body.file", "Field required", shown)])
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
        raise Refusal("Invalid or unsupported audio file.")
    seconds = duration(upload.audio)
    words = max(1, math.ceil(seconds * _WORDS_PER_SECOND))
    sampling = Sampling(limit=min(words, _MAX_WORDS), ignore_eos=True)
    prompt = upload.fields.get("prompt", "")
    prompts = [(prompt, max(1, count_tokens(prompt)))]
    generation = generate(engine, call, model, prompts, sampling)
    # a transcription ends where the recording does: that is no cut
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
    return json_answer(value, work=generation.work)


def read_upload(body: bytes, content_type: str) -> Upload:
    """Read a ``multipart/form-data`` body.

    Raises:
        Refusal: it is not one, or it is broken.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get("boundary")
    if kind != "multipart/form-data" or not boundary:
        raise ValidationFailed([("missing", "body.file", "Field required", "None")])
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
        raise Refusal(f"There was an error parsing the body: {error}") from error
    except UnicodeDecodeError as error:
        raise Refusal("There was an error parsing the body: a field is not UTF-8 text") from error
    return Upload(fields, audio)


def duration(audio: bytes) -> float:
    """Return a recording's length in seconds: a WAV file's own, else a guess from its size."""
    try:
        with wave.open(BytesIO(audio), "rb") as file:
            return float(file.getnframes() / file.getframerate())
    except (wave.Error, EOFError, ZeroDivisionError):
        return len(audio) / _BYTES_PER_SECOND


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
