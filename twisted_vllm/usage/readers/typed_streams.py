"""What a stream of typed events used: Responses, Anthropic's messages and Cohere's chat.

Facts of vLLM 0.32 (entrypoints/): Responses name usage in ``response.completed``, Anthropic's messages in
``message_start`` (of the prompt, before it is known what came from the cache) and ``message_delta``, Cohere's chat in
``message-end``; all of them unasked.
"""

from __future__ import annotations

import msgspec

from twisted_vllm.usage.readers.counts import Counts, to_usage
from twisted_vllm.usage.readers.document import Shape
from twisted_vllm.usage.readers.sse import is_lone_event
from twisted_vllm.usage.readers.streams import StreamReader
from twisted_vllm.usage.records import Usage


class _Holder(msgspec.Struct, gc=False):
    usage: Counts | None = None


class _CohereEvent(msgspec.Struct, gc=False):
    type: str = ""
    delta: _Holder | None = None


class _Event(msgspec.Struct, gc=False):
    usage: Counts | None = None
    message: _Holder | None = None
    response: _Holder | None = None


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_cohere_event = msgspec.json.Decoder(_CohereEvent).decode


class NamedStream(StreamReader):
    """A stream whose events have names, most of them one that brings content."""

    #: what the names of events with content end with
    content = b""

    def feed(self, data: bytes) -> None:
        """Take what comes next."""
        if data[:7] == b"event: " and self._parser.between and data.find(b"\r") < 0:
            line = data.find(b"\n")
            if data.endswith(self.content, 7, line) and is_lone_event(data[line + 1 :]):
                self.chunks += 1
                return
        self._parser.feed(data)


class ResponseStream(NamedStream):
    """Responses: the last event holds the whole response."""

    shape = Shape((b"usage",), outer=b"response")
    content = b".delta"

    def __init__(self) -> None:
        super().__init__()
        self._final: Usage | None = None

    def event(self, name: bytes, data: bytes) -> None:
        """Take one event."""
        if name.endswith(self.content):
            self.chunks += 1
        elif name in (b"response.completed", b"response.incomplete", b"response.failed"):
            holder = _event(data).response
            if holder is not None and holder.usage is not None:
                self._final = to_usage(holder.usage)

    def usage(self) -> Usage | None:
        """Return what the server said that it used, or None where it did not."""
        return self._final


class MessageStream(NamedStream):
    """Anthropic's messages: the prompt at the start, the rest at the end."""

    content = b"content_block_delta"

    def __init__(self) -> None:
        super().__init__()
        self._prompt: Usage | None = None
        self._final: Usage | None = None

    def event(self, name: bytes, data: bytes) -> None:
        """Take one event."""
        if name == self.content:
            self.chunks += 1
        elif name == b"message_start":
            message = _event(data).message
            if message is not None and message.usage is not None:
                self._prompt = to_usage(message.usage)
        elif name == b"message_delta":
            counts = _event(data).usage
            if counts is not None:
                self._final = to_usage(counts)
                if counts.input_tokens is None and self._prompt is not None:
                    self._final = _together(self._prompt, self._final)

    def usage(self) -> Usage | None:
        """Return what the server said that it used, or None where it did not."""
        return self._final

    def estimate(self, prompt_tokens: int, answers: int = 1) -> Usage:
        """Return what it probably used; the prompt is vLLM's own count once the stream began."""
        estimated = super().estimate(prompt_tokens if self._prompt is None else self._prompt.prompt_tokens, answers)
        if self._prompt is None:
            return estimated
        return msgspec.structs.replace(estimated, cached_tokens=self._prompt.cached_tokens)


class CohereStream(StreamReader):
    """Cohere's chat: usage in the last event."""

    shape = Shape((b"usage",), outer=b"delta")

    def __init__(self) -> None:
        super().__init__()
        self._final: Usage | None = None

    def event(self, name: bytes, data: bytes) -> None:
        """Take one event."""
        if not data.startswith(b"{"):
            return
        try:
            event = _decode_cohere_event(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        if event.delta is not None and event.delta.usage is not None:
            self._final = to_usage(event.delta.usage)
        elif event.type.endswith("-delta"):
            self.chunks += 1

    def usage(self) -> Usage | None:
        """Return what the server said that it used, or None where it did not."""
        return self._final


def _event(data: bytes) -> _Event:
    try:
        return _decode_event(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Event()


def _together(prompt: Usage, rest: Usage) -> Usage:
    return Usage(
        prompt.prompt_tokens,
        prompt.cached_tokens,
        rest.completion_tokens,
        rest.reasoning_tokens,
        prompt.prompt_tokens + rest.completion_tokens,
    )
