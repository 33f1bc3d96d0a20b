"""Decodes what the readers of streams need of single events.

How vLLM 0.32 (entrypoints/) says, after a 200, that a request failed:

- chat, completions, transcriptions, ``/inference/v1/generate``: ``data: {"error": {"message": …}}``, then ``[DONE]``;
- Anthropic's messages: ``event: error`` with ``{"type":"error","error":{…}}``, and nothing after it;
- Cohere's chat: ``{"type":"message-end","delta":{"error":"…","finish_reason":"ERROR"}}``, then ``[DONE]``; before its
  first event, ``[DONE]`` alone;
- Responses: nothing; it cuts the connection. OpenAI sends ``event: error`` or ``response.failed``.

Only members at their own depth count, so no text of a model can imitate them.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, TypeVar

import msgspec

from twisted_vllm.usage.readers.counts import Counts

#: an event without these bytes has no usage
USAGE = b'"usage"'
#: an event without these bytes, and without the name ``error``, is no error
ERROR = b'"error"'
#: vLLM's first chunk of a choice has these bytes; inside a string, the quotes would have backslashes before them
ROLE = b'"delta":{"role":"assistant","content":""}'

# values of ``error`` that mean none
_NOTHING = frozenset((b"", b"null", b"false", b"0", b'""', b"{}", b"[]"))
# the members that a chunk with usage and without content may have
_ENVELOPE = frozenset(
    ("id", "object", "created", "model", "usage", "system_fingerprint", "service_tier", "request_id", "metrics")
)

# bytes of an event around its JSON
_FRAME = len(b"data: \n\n")

_T = TypeVar("_T")


class Carries(Enum):
    """What a block of a stream of chunks carries."""

    USAGE = "the stream's usage, and no content"
    USAGE_AND_CONTENT = "content, with the usage so far"
    OTHER = "anything else"


class Choice(msgspec.Struct, gc=False):
    """One of the choices in a chunk."""

    index: int = 0


class Chunk(msgspec.Struct, gc=False):
    """An event of chat, completions or a transcription."""

    usage: Counts | None = None
    choices: list[Choice] | None = None
    system_fingerprint: str | None = None


class Holder(msgspec.Struct, gc=False):
    """The message or the response in an event."""

    usage: Counts | None = None
    id: str | None = None


class Event(msgspec.Struct, gc=False):
    """An event of Responses or of Anthropic's messages."""

    usage: Counts | None = None
    message: Holder | None = None
    response: Holder | None = None


class CohereDelta(msgspec.Struct, gc=False):
    """What an event of Cohere's chat adds."""

    usage: Counts | None = None
    error: msgspec.Raw = msgspec.Raw()
    finish_reason: msgspec.Raw = msgspec.Raw()


class CohereEvent(msgspec.Struct, gc=False):
    """An event of Cohere's chat."""

    type: str = ""
    delta: CohereDelta | None = None


class _Failure(msgspec.Struct, gc=False):
    error: msgspec.Raw = msgspec.Raw()
    type: msgspec.Raw = msgspec.Raw()


class _Typed(msgspec.Struct, gc=False):
    type: str = ""


class _Delta(msgspec.Struct, gc=False):
    delta: dict[str, Any] = {}


class _TextChoice(msgspec.Struct, gc=False):
    text: msgspec.Raw = msgspec.Raw()
    delta: dict[str, msgspec.Raw] = {}
    logprobs: msgspec.Raw = msgspec.Raw()


class _TextChunk(msgspec.Struct, gc=False):
    choices: list[_TextChoice] = []


class _Deltas(msgspec.Struct, gc=False):
    choices: list[_Delta] = []


_chunk = msgspec.json.Decoder(Chunk)
_event = msgspec.json.Decoder(Event)
_cohere = msgspec.json.Decoder(CohereEvent)
_failure = msgspec.json.Decoder(_Failure)
_typed = msgspec.json.Decoder(_Typed)
_deltas = msgspec.json.Decoder(_Deltas)
_texts = msgspec.json.Decoder(_TextChunk)
_members = msgspec.json.Decoder(dict[str, Any])


def decode_chunk(data: bytes) -> Chunk | None:
    """Decode a chunk; return None if `data` is not one."""
    return _decoded(_chunk, data)


def decode_event(data: bytes) -> Event | None:
    """Decode an event of Responses or of Anthropic's messages; return None if `data` is not one."""
    return _decoded(_event, data)


def decode_cohere(data: bytes) -> CohereEvent | None:
    """Decode an event of Cohere's chat; return None if `data` is not one."""
    return _decoded(_cohere, data)


def is_object(data: bytes) -> bool:
    """Return whether data looks like a JSON object."""
    return data[:1] == b"{" or data.lstrip()[:1] == b"{"


def is_error(name: bytes, data: bytes) -> bool:
    """Return whether an event, with this name and data, says that the request failed."""
    if name == b"error":
        return True
    if ERROR not in data:
        return False
    failure = _decoded(_failure, data)
    return failure is not None and (says_something(failure.error) or bytes(failure.type) == ERROR)


def says_something(value: msgspec.Raw) -> bool:
    """Return whether a member is there and not empty."""
    return bytes(value) not in _NOTHING


def type_of(data: bytes) -> bytes:
    """Return the member ``type`` of an event; empty if it has none."""
    event = _decoded(_typed, data) if is_object(data) else None
    return b"" if event is None else event.type.encode("utf-8", "replace")


def has_content(data: bytes) -> bool:
    """Return whether a chunk without choices has more than usage: any member that chunks do not have may be content."""
    members = _decoded(_members, data)
    return members is None or any(value for name, value in members.items() if name not in _ENVELOPE)


def has_only_role(data: bytes) -> bool:
    """Return whether no choice of a chunk has anything but a role; `data` may be framed as vLLM does."""
    if data.rfind(b'"role"') < 0:
        return False
    chunk = _decoded(_deltas, data.removeprefix(b"data: "))
    if chunk is None or not chunk.choices:
        return False
    return all(choice.delta.pop("role", None) and not any(choice.delta.values()) for choice in chunk.choices)


def size_without_text(data: bytes) -> int | None:
    """Return how many bytes a chunk has besides its text; None if that differs from chunk to chunk (``logprobs``).

    Args:
        data: the chunk, which may be framed as vLLM does.
    """
    body = data.removeprefix(b"data: ").rstrip(b"\r\n")
    chunk = _decoded(_texts, body)
    if chunk is None or any(says_something(choice.logprobs) for choice in chunk.choices):
        return None
    texts = (bytes(value) for choice in chunk.choices for value in (choice.text, *choice.delta.values()))
    return _FRAME + len(body) - sum(len(text) - 2 for text in texts if text.startswith(b'"'))


def _decoded(decoder: msgspec.json.Decoder[_T], data: bytes) -> _T | None:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
