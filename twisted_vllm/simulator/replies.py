"""The values between a route and the connection: what was asked, and what to answer at which pace."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import msgspec

Header = tuple[bytes, bytes]

JSON = b"application/json"
TEXT = b"text/plain; charset=utf-8"
EVENT_STREAM = b"text/event-stream; charset=utf-8"

#: what ends the streams of OpenAI's older routes
DONE = b"data: [DONE]\n\n"


@attrs.frozen
class Call:
    """One request.

    Attributes:
        method: its HTTP method.
        path: its path, percent-decoded.
        query: its query fields.
        header: looks up a header by its lower-case name; empty where it was not sent.
        body: its body, whole.
    """

    method: str
    path: str
    query: dict[str, list[str]]
    header: Callable[[str], str]
    body: bytes


@attrs.frozen
class Work:
    """What an answer costs the engine.

    Attributes:
        model: the model that does it.
        prompt_tokens: tokens read.
        completion_tokens: tokens written, of all choices.
        steps: how many times the engine steps: the tokens of the longest choice, 0 for a pooling route.
        finish_reason: ``stop`` or ``length``.
    """

    model: str
    prompt_tokens: int
    completion_tokens: int = 0
    steps: int = 0
    finish_reason: str = "stop"


@attrs.frozen
class Answer:
    """An answer that is sent whole.

    Attributes:
        body: its body.
        status: its HTTP status.
        content_type: its ``Content-Type``; ``None`` sends none.
        headers: its other headers.
        work: what it costs; ``None`` is answered at once.
    """

    body: bytes = b""
    status: int = 200
    content_type: bytes | None = JSON
    headers: tuple[Header, ...] = ()
    work: Work | None = None


#: the event of a failure inside vLLM's engine, on OpenAI's routes
FAILURE = (
    b'data: {"error":{"message":"Internal server error","type":"InternalServerError","param":null,"code":500}}\n\n'
)


@attrs.frozen
class EventStream:
    """An answer that is sent as server-sent events.

    Attributes:
        opening: the events that come with the first token.
        events: the events of each step of the engine, ``work.steps`` of them.
        closing: the events after the last token.
        work: what it costs.
        failure: the events that end it in place of ``closing`` when the engine fails.
    """

    opening: bytes
    events: Iterator[bytes]
    closing: bytes
    work: Work
    failure: bytes = FAILURE + DONE


Reply = Answer | EventStream


def json_answer(value: object, *, status: int = 200, work: Work | None = None) -> Answer:
    """Return an answer with a JSON body."""
    return Answer(msgspec.json.encode(value), status=status, work=work)


def data_event(value: object) -> bytes:
    """Return one server-sent event without a name."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def named_event(value: dict[str, object]) -> bytes:
    """Return one server-sent event that is named after its ``type``."""
    return b"event: " + str(value["type"]).encode("ascii") + b"\n" + data_event(value)
