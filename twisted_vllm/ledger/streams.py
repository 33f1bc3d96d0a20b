"""What a stream of events used: counted from what passes.

Facts of vLLM 0.32 (entrypoints/): chat and completions name usage in a last event with ``"choices":[]`` where the
client asked with ``stream_options.include_usage``; with ``continuous_usage_stats`` too, or on a server started with
``--enable-force-include-usage``, every event has the usage so far of its own choice. Responses name it in
``response.completed``, Anthropic's messages in ``message_start`` and ``message_delta``, Cohere's in ``message-end``.
An event without usage carries about one token.
"""

from __future__ import annotations

import msgspec

from twisted_vllm.ledger.counts import Counts, to_usage
from twisted_vllm.ledger.document import Shape
from twisted_vllm.ledger.sse import EventParser, is_lone_event
from twisted_vllm.ledger.values import Usage

USAGE = b'"usage"'
_ERROR = b'{"error"'


class Choice(msgspec.Struct, gc=False):
    """One of the answers in an event."""

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
    delta: _Holder | None = None


decode_chunk = msgspec.json.Decoder(Chunk).decode
_decode_event = msgspec.json.Decoder(_Event).decode


class StreamReader:
    """Reads the usage of a stream; what is common to all kinds.

    Attributes:
        stream: that it reads a stream.
        chunks: events that carried content and no usage.
    """

    stream = True
    #: events of each answer that come before its first token
    lead_in = 0
    shape = Shape((b"usage",))

    def __init__(self) -> None:
        self.chunks = 0
        self._parser = EventParser(self, self.shape)

    def feed(self, data: bytes) -> None:
        """Take what comes next."""
        self._parser.feed(data)

    def event(self, name: bytes, data: bytes) -> None:
        """Take one event."""
        raise NotImplementedError

    def usage(self) -> Usage | None:
        """Return what the server said that it used, or None where it did not."""
        raise NotImplementedError

    def estimate(self, prompt_tokens: int, answers: int = 1) -> Usage:
        """Return what it probably used, for a stream without usage or one that ended early.

        Args:
            prompt_tokens: what the prompt was estimated at.
            answers: how many answers were asked for.
        """
        completion = max(0, self.chunks - self.lead_in * answers)
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion,
            total_tokens=prompt_tokens + completion,
            estimated=True,
        )


class CompletionStream(StreamReader):
    """Completions, audio, and what has their shape."""

    shape = Shape((b"usage", b"choices"))

    def __init__(self) -> None:
        super().__init__()
        self._final: Usage | None = None
        self._so_far: dict[int, Usage] = {}

    def take(self, data: bytes) -> bool:
        """Take what comes next; return whether it was one whole event without usage."""
        # for what is seldom there in something short, rfind takes half as long as find and `in`
        if self._parser.between and data.rfind(USAGE) < 0 and is_lone_event(data):
            if data[6:14] != _ERROR:
                self.chunks += 1
            return True
        self._parser.feed(data)
        return False

    def feed(self, data: bytes) -> None:
        """Take what comes next."""
        self.take(data)

    def event(self, name: bytes, data: bytes) -> None:
        """Take one event."""
        if not data.startswith(b"{") or data.startswith(_ERROR):
            return
        chunk = _chunk(data) if USAGE in data else None
        if chunk is None or chunk.usage is None:
            self.chunks += 1
        elif chunk.choices == []:
            self._final = to_usage(chunk.usage)
        else:
            self.chunks += 1
            self._so_far[chunk.choices[0].index if chunk.choices else 0] = to_usage(chunk.usage)

    def usage(self) -> Usage | None:
        """Return what the server said that it used, or None where it did not."""
        if self._final is not None or not self._so_far:
            return self._final
        # each choice counts its own tokens; several prompts are only seen in part
        each = list(self._so_far.values())
        prompt = max(usage.prompt_tokens for usage in each)
        completion = sum(usage.completion_tokens for usage in each)
        return Usage(
            prompt,
            max(usage.cached_tokens for usage in each),
            completion,
            sum(usage.reasoning_tokens for usage in each),
            prompt + completion,
            estimated=len(each) > 1 and self.lead_in == 0,
        )


class ChatStream(CompletionStream):
    """Chat: the first event of each answer says the role alone."""

    lead_in = 1


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
        delta = _event(data).delta if USAGE in data else None
        if delta is not None and delta.usage is not None:
            self._final = to_usage(delta.usage)
        else:
            self.chunks += 1

    def usage(self) -> Usage | None:
        """Return what the server said that it used, or None where it did not."""
        return self._final


def _chunk(data: bytes) -> Chunk | None:
    try:
        return decode_chunk(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


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
