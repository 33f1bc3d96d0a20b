"""Reads the usage of streams of server-sent events as they are relayed.

Facts of vLLM 0.32 (entrypoints/):

- Chat and completions report usage in a last chunk with ``"choices":[]`` if the client requests it with
  ``stream_options.include_usage``. With ``continuous_usage_stats`` too, or on a server started with
  ``--enable-force-include-usage``, every chunk has the usage so far of its own choice. Audio does the same with the
  form's ``stream_include_usage``. A chunk without usage carries about one token.
- Without a request for it, Responses report usage in ``response.completed``; Anthropic's messages in ``message_start``
  (the prompt's, before the cached tokens are known) and ``message_delta``; Cohere's chat in ``message-end``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from twisted_vllm.usage.readers.counts import Counts, to_usage
from twisted_vllm.usage.readers.document import Shape
from twisted_vllm.usage.readers.sse import EventParser, is_lone_event
from twisted_vllm.usage.records import Usage

USAGE = b'"usage"'
_ERROR = b'{"error"'
_USAGE_SHAPE = Shape((b"usage",))

_S = TypeVar("_S", bound=msgspec.Struct)


class Choice(msgspec.Struct, gc=False):
    """One of the choices in a chunk."""

    index: int = 0


class Chunk(msgspec.Struct, gc=False):
    """An event of chat or completions."""

    usage: Counts | None = None
    choices: list[Choice] | None = None
    system_fingerprint: str | None = None


class _Holder(msgspec.Struct, gc=False):
    usage: Counts | None = None


class _Event(msgspec.Struct, gc=False):
    usage: Counts | None = None
    message: _Holder | None = None
    response: _Holder | None = None


class _CohereEvent(msgspec.Struct, gc=False):
    type: str = ""
    delta: _Holder | None = None


_chunk_decoder = msgspec.json.Decoder(Chunk)
_event_decoder = msgspec.json.Decoder(_Event)
_cohere_decoder = msgspec.json.Decoder(_CohereEvent)


def decode_chunk(data: bytes) -> Chunk | None:
    """Decode a chunk; return None if `data` is not one."""
    return _decoded(_chunk_decoder, data)


class ChunkStream:
    """Reads a stream of chunks: chat, completions or a transcription.

    Attributes:
        stream: always True.
        chunks: the number of chunks with content.
    """

    stream = True

    def __init__(self, *, chat: bool = False, estimates_prompt: bool = True) -> None:
        """Start to read.

        Args:
            chat: whether it is a chat: the first chunk of each choice then contains only its role, and all choices
                share one prompt.
            estimates_prompt: whether the prompt can be estimated from the request's size; not so for an upload.
        """
        self.chunks = 0
        self._chat = chat
        self._estimates_prompt = estimates_prompt
        self._parser = EventParser(_USAGE_SHAPE)
        self._final: Usage | None = None
        self._so_far: dict[int, Usage] = {}

    def take(self, data: bytes) -> bool:
        """Take the next piece; return whether it was one whole chunk without usage."""
        # without a match, rfind takes half the time of find and `in`
        if self._parser.between and data.rfind(USAGE) < 0 and is_lone_event(data):
            if data[6:14] != _ERROR:
                self.chunks += 1
            return True
        for _, event in self._parser.feed(data):
            self._event(event)
        return False

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        self.take(data)

    def _event(self, data: bytes) -> None:
        if not data.startswith(b"{") or data.startswith(_ERROR):
            return
        chunk = decode_chunk(data) if USAGE in data else None
        if chunk is None or chunk.usage is None:
            self.chunks += 1
        elif chunk.choices == []:
            self._final = to_usage(chunk.usage)
        else:
            self.chunks += 1
            self._so_far[chunk.choices[0].index if chunk.choices else 0] = to_usage(chunk.usage)

    def usage(self) -> Usage | None:
        """Return the usage that the server reported, or None if it reported none."""
        if self._final is not None or not self._so_far:
            return self._final
        # each choice counts its own tokens; with several prompts, each chunk counts one of them
        each = list(self._so_far.values())
        prompt = max(usage.prompt_tokens for usage in each)
        completion = sum(usage.completion_tokens for usage in each)
        return Usage(
            prompt,
            max(usage.cached_tokens for usage in each),
            completion,
            sum(usage.reasoning_tokens for usage in each),
            prompt + completion,
            estimated=len(each) > 1 and not self._chat,
        )

    def estimate(self, prompt_tokens: int, choices: int = 1) -> Usage:
        """Return the estimated usage of a stream that reported none, or that ended early."""
        tokens = max(0, self.chunks - choices) if self._chat else self.chunks
        return _estimated(prompt_tokens if self._estimates_prompt else 0, tokens)


class _NamedEvents:
    """Splits a stream of named events, and counts those with content, which are most of them."""

    def __init__(self, content: bytes, shape: Shape = _USAGE_SHAPE) -> None:
        """Start to read.

        Args:
            content: the suffix of the names of events with content.
            shape: the values to keep of large data.
        """
        self.chunks = 0
        self._content = content
        self._parser = EventParser(shape)

    def feed(self, data: bytes) -> Sequence[tuple[bytes, bytes]]:
        """Take the next piece; return the name and the data of each other event that it ends."""
        if data[:7] == b"event: " and self._parser.between and data.find(b"\r") < 0:
            line = data.find(b"\n")
            if data.endswith(self._content, 7, line) and is_lone_event(data[line + 1 :]):
                self.chunks += 1
                return ()
        events = self._parser.feed(data)
        others = [event for event in events if not event[0].endswith(self._content)]
        self.chunks += len(events) - len(others)
        return others


class ResponseStream:
    """Reads a stream of Responses: its last event holds the whole response.

    Attributes:
        stream: always True.
    """

    stream = True

    def __init__(self) -> None:
        self._events = _NamedEvents(b".delta", Shape((b"usage",), outer=b"response"))
        self._final: Usage | None = None

    @property
    def chunks(self) -> int:
        """The number of events with content."""
        return self._events.chunks

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        for name, event in self._events.feed(data):
            if name in (b"response.completed", b"response.incomplete", b"response.failed"):
                decoded = _decoded(_event_decoder, event)
                if decoded is not None and decoded.response is not None and decoded.response.usage is not None:
                    self._final = to_usage(decoded.response.usage)

    def usage(self) -> Usage | None:
        """Return the usage that the server reported, or None if it reported none."""
        return self._final

    def estimate(self, prompt_tokens: int, choices: int = 1) -> Usage:
        """Return the estimated usage of a stream that ended early."""
        return _estimated(prompt_tokens, self.chunks)


class MessageStream:
    """Reads a stream of Anthropic's messages: the prompt's usage is at its start, the rest at its end.

    Attributes:
        stream: always True.
    """

    stream = True

    def __init__(self) -> None:
        self._events = _NamedEvents(b"content_block_delta")
        self._prompt: Usage | None = None
        self._final: Usage | None = None

    @property
    def chunks(self) -> int:
        """The number of events with content."""
        return self._events.chunks

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        for name, event in self._events.feed(data):
            if name == b"message_start":
                decoded = _decoded(_event_decoder, event)
                if decoded is not None and decoded.message is not None and decoded.message.usage is not None:
                    self._prompt = to_usage(decoded.message.usage)
            elif name == b"message_delta":
                decoded = _decoded(_event_decoder, event)
                if decoded is not None and decoded.usage is not None:
                    self._final = self._with_prompt(decoded.usage)

    def _with_prompt(self, counts: Counts) -> Usage:
        """Return the usage at the end of a message, with the prompt of its start if the end does not count it."""
        usage, prompt = to_usage(counts), self._prompt
        if counts.input_tokens is not None or prompt is None:
            return usage
        return Usage(
            prompt.prompt_tokens,
            prompt.cached_tokens,
            usage.completion_tokens,
            usage.reasoning_tokens,
            prompt.prompt_tokens + usage.completion_tokens,
        )

    def usage(self) -> Usage | None:
        """Return the usage that the server reported, or None if it reported none."""
        return self._final

    def estimate(self, prompt_tokens: int, choices: int = 1) -> Usage:
        """Return the estimated usage of a stream that ended early, with vLLM's prompt count if the stream has begun."""
        prompt = self._prompt
        if prompt is None:
            return _estimated(prompt_tokens, self.chunks)
        return _estimated(prompt.prompt_tokens, self.chunks, prompt.cached_tokens)


class CohereStream:
    """Reads a stream of Cohere's chat: usage is in its last event.

    Attributes:
        stream: always True.
        chunks: the number of events with content.
    """

    stream = True

    def __init__(self) -> None:
        self.chunks = 0
        self._parser = EventParser(Shape((b"usage",), outer=b"delta"))
        self._final: Usage | None = None

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        for _, event in self._parser.feed(data):
            decoded = _decoded(_cohere_decoder, event) if event.startswith(b"{") else None
            if decoded is None:
                continue
            if decoded.delta is not None and decoded.delta.usage is not None:
                self._final = to_usage(decoded.delta.usage)
            elif decoded.type.endswith("-delta"):
                self.chunks += 1

    def usage(self) -> Usage | None:
        """Return the usage that the server reported, or None if it reported none."""
        return self._final

    def estimate(self, prompt_tokens: int, choices: int = 1) -> Usage:
        """Return the estimated usage of a stream that ended early."""
        return _estimated(prompt_tokens, self.chunks)


def _estimated(prompt: int, completion: int, cached: int = 0) -> Usage:
    return Usage(prompt, cached, completion, total_tokens=prompt + completion, estimated=True)


def _decoded(decoder: msgspec.json.Decoder[_S], data: bytes) -> _S | None:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
