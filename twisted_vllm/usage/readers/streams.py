"""Reads the usage of streams of server-sent events as they are relayed.

Facts of vLLM 0.32 (entrypoints/):

- Chat and completions report usage in a last chunk with ``"choices":[]`` if the client requests it with
  ``stream_options.include_usage``. With ``continuous_usage_stats`` too, or on a server started with
  ``--enable-force-include-usage``, every chunk has the usage so far of its own choice. Audio does the same with the
  form's ``stream_include_usage``. A chunk without usage carries about one token; the first of each choice of a chat
  carries only the role.
- Without a request for it, Responses report usage in ``response.completed``; Anthropic's messages in ``message_start``
  (the prompt's, before the cached tokens are known) and ``message_delta``; Cohere's chat in ``message-end``.
- Deltas of text, reasoning and tool calls have the same kind of name: ``response.….delta``, ``content_block_delta``,
  and Cohere's types that end in ``-delta``.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted_vllm.usage.readers.counts import Counts, plain_id, to_usage
from twisted_vllm.usage.readers.document import Shape
from twisted_vllm.usage.readers.sse import LONE_FROM, LONE_TO, EventParser, is_lone_event
from twisted_vllm.usage.readers.stream_events import (
    ERROR,
    ROLE,
    USAGE,
    Carries,
    decode_chunk,
    decode_cohere,
    decode_event,
    has_content,
    has_only_role,
    is_error,
    is_object,
    says_something,
    size_without_text,
    type_of,
)
from twisted_vllm.usage.records import Usage

_USAGE_SHAPE = Shape((b"usage", b"error"))

#: the choices of a stream whose usage is counted for each, if each chunk has the usage of its own: twice as many as
#: vLLM runs at a time (`--max-num-seqs`)
MAX_CHOICES = 2_048
#: the largest first chunk that is kept, in bytes, to tell the text in all chunks from their size
MAX_FIRST = 8_192


class ChunkStream:
    """Reads a stream of chunks: chat, completions or a transcription.

    Attributes:
        stream: always True.
        failed: whether the server reported an error.
        chunks: the number of chunks that may carry a token.
        fingerprint: the ``system_fingerprint`` beside the stream's usage.
    """

    stream = True
    failed = False
    fingerprint: str | None = None
    _roles = 0
    # the bytes of the chunks that carry only a role, and the first chunk after them
    _role_size = 0
    _first = b""

    def __init__(self, *, chat: bool = False, estimates_prompt: bool = True) -> None:
        """Start to read.

        Args:
            chat: whether it is a chat, all of whose choices share one prompt.
            estimates_prompt: whether the prompt can be estimated from the request's size; not so for an upload.
        """
        self.chunks = 0
        # only a chat has such chunks; of any other stream this keeps the first chunk
        self._may_be_role = True
        self._chat = chat
        self._estimates_prompt = estimates_prompt
        self._parser = EventParser(_USAGE_SHAPE)
        self._between = True
        self._final: Usage | None = None
        self._so_far: dict[int, Usage] = {}

    @property
    def gave_up(self) -> bool:
        """Whether the stream is not read any more, because it has too many lines."""
        return self._parser.gave_up

    def take(self, data: bytes) -> Sequence[tuple[int, Carries]] | None:
        """Take the next piece.

        Returns:
            None, if it was one whole chunk without usage, spelled as vLLM does; else where each block that it ends
            ends in it, and what the block carries.
        """
        if (
            self._between
            # without a match, rfind takes half the time of find and `in`
            and data.rfind(USAGE) < 0
            and data.rfind(ERROR) < 0
            # as `is_lone_event`, without the call
            and LONE_FROM < data < LONE_TO
            and data.find(b"\n") == len(data) - 2
            and data[-1] == 10
            and data.find(b"\r") < 0
        ):
            self.chunks += 1
            if self._may_be_role:
                self._look_for_role(data)
            return None
        parser = self._parser
        if self.chunks:
            parser.begun = True
        blocks = [
            (end, Carries.OTHER if event is None else self._event(name, event, whole))
            for end, name, event, whole in parser.blocks(data)
        ]
        self._between = parser.between
        return blocks

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        self.take(data)

    def _event(self, name: bytes, data: bytes, whole: bool) -> Carries:
        if is_error(name, data):
            self.failed = True
            return Carries.OTHER
        if not is_object(data):
            return Carries.OTHER
        chunk = decode_chunk(data) if USAGE in data else None
        if chunk is None or chunk.usage is None:
            self.chunks += 1
            if self._may_be_role:
                self._look_for_role(data)
            return Carries.OTHER
        choices = chunk.choices
        if choices == [] or (choices is None and whole and not has_content(data)):
            self._final = to_usage(chunk.usage)
            self.fingerprint = chunk.system_fingerprint
            return Carries.USAGE
        self.chunks += 1
        index = choices[0].index if choices else 0
        if index in self._so_far or len(self._so_far) < MAX_CHOICES:
            self._so_far[index] = to_usage(chunk.usage)
        return Carries.USAGE_AND_CONTENT

    def _look_for_role(self, data: bytes) -> None:
        """Count a chunk at the start of a chat that carries only a role; keep the first that is none."""
        if self._chat and (data.find(ROLE) >= 0 or has_only_role(data)):
            self._roles += 1
            self._role_size += len(data)
        else:
            self._may_be_role = False
            if len(data) <= MAX_FIRST:
                self._first = data

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

    @property
    def reported(self) -> int | None:
        """The tokens of the answer that the server counted so far; None if it counted none, or all of them."""
        if self._final is not None or not self._so_far:
            return None
        return sum(usage.completion_tokens for usage in self._so_far.values())

    def estimate(self, prompt_tokens: int, choices: int = 1) -> Usage:
        """Return the estimated usage of a stream that reported none, or that ended early."""
        prompt, cached = prompt_tokens if self._estimates_prompt else 0, 0
        if self._so_far:
            each = self._so_far.values()
            counted = max(usage.prompt_tokens for usage in each)
            # one of several choices may have one of several prompts
            prompt = counted if self._chat or choices == 1 else max(counted, prompt)
            cached = max(usage.cached_tokens for usage in each)
        return _estimated(prompt, self.chunks - self._roles, cached)

    def text_size(self, size: int) -> int:
        """Return the bytes of text in the chunks of a stream of `size` bytes; 0 if they cannot be told."""
        besides = size_without_text(self._first) if self._first and not self.failed else None
        if besides is None:
            return 0
        return max(0, size - self._role_size - besides * (self.chunks - self._roles))


class _NamedEvents:
    """Splits a stream of named events, and counts those with content, which are most of them.

    Attributes:
        chunks: the number of events with content.
        failed: whether an event reported an error.
    """

    def __init__(self, content: bytes, known: tuple[bytes, ...], shape: Shape = _USAGE_SHAPE) -> None:
        """Start to read.

        Args:
            content: the suffix of the names of events with content.
            known: the beginnings of the names of events whose data is no error.
            shape: the values to keep of large data.
        """
        self.chunks = 0
        self.failed = False
        self._content = content
        self._known = known
        self._parser = EventParser(shape)

    def feed(self, data: bytes) -> Sequence[tuple[bytes, bytes]]:
        """Take the next piece; return the name and the data of each event without content and error that it ends.

        An event without a name has that of its member ``type``, in case something on the way dropped the lines.
        """
        if data[:7] == b"event: " and self._parser.between and data.find(b"\r") < 0:
            line = data.find(b"\n")
            if data.endswith(self._content, 7, line) and is_lone_event(data[line + 1 :]):
                self.chunks += 1
                return ()
        if self.chunks:
            self._parser.begun = True
        others = []
        for name, event in self._parser.feed(data):
            kind = name or type_of(event)
            if kind.endswith(self._content):
                self.chunks += 1
            elif not kind.startswith(self._known) and is_error(kind, event):
                self.failed = True
            else:
                others.append((kind, event))
        return others


class ResponseStream:
    """Reads a stream of Responses: its last event holds the whole response.

    Attributes:
        stream: always True.
        answer_id: the id of the response; empty before it is known.
    """

    stream = True
    reported: int | None = None

    def __init__(self) -> None:
        self._events = _NamedEvents(b".delta", (b"response.",), Shape((b"usage", b"id"), outer=b"response"))
        self.answer_id = ""
        self._final: Usage | None = None
        self._failed = False

    @property
    def chunks(self) -> int:
        """The number of events with content."""
        return self._events.chunks

    @property
    def failed(self) -> bool:
        """Whether the server reported an error."""
        return self._failed or self._events.failed

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        for name, event in self._events.feed(data):
            if name in (b"response.completed", b"response.incomplete", b"response.failed"):
                self._failed = self._failed or name == b"response.failed"
                decoded = decode_event(event)
                if decoded is not None and decoded.response is not None and decoded.response.usage is not None:
                    self._final = to_usage(decoded.response.usage)
            elif name == b"response.created":
                decoded = decode_event(event)
                if decoded is not None and decoded.response is not None:
                    self.answer_id = plain_id(decoded.response.id)

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
    reported: int | None = None

    def __init__(self) -> None:
        self._events = _NamedEvents(b"content_block_delta", (b"message_", b"content_block_"))
        self._prompt: Usage | None = None
        self._final: Usage | None = None

    @property
    def chunks(self) -> int:
        """The number of events with content."""
        return self._events.chunks

    @property
    def failed(self) -> bool:
        """Whether the server reported an error."""
        return self._events.failed

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        for name, event in self._events.feed(data):
            if name == b"message_start":
                decoded = decode_event(event)
                if decoded is not None and decoded.message is not None and decoded.message.usage is not None:
                    self._prompt = to_usage(decoded.message.usage)
            elif name == b"message_delta":
                decoded = decode_event(event)
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
        failed: whether the server reported an error.
        chunks: the number of events with content.
    """

    stream = True
    reported: int | None = None

    def __init__(self) -> None:
        self.failed = False
        self.chunks = 0
        self._begun = False
        self._parser = EventParser(Shape((b"usage", b"error", b"finish_reason"), outer=b"delta"))
        self._final: Usage | None = None

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        for name, event in self._parser.feed(data):
            if is_error(name, event) or (event == b"[DONE]" and not self._begun):
                # vLLM ends a stream that failed before its first event with this alone
                self.failed = True
                continue
            decoded = decode_cohere(event) if is_object(event) else None
            if decoded is None:
                continue
            self._begun = True
            delta = decoded.delta
            if decoded.type.endswith("-delta"):
                self.chunks += 1
            elif delta is not None:
                if delta.usage is not None:
                    self._final = to_usage(delta.usage)
                if says_something(delta.error) or bytes(delta.finish_reason) == b'"ERROR"':
                    self.failed = True

    def usage(self) -> Usage | None:
        """Return the usage that the server reported, or None if it reported none."""
        return self._final

    def estimate(self, prompt_tokens: int, choices: int = 1) -> Usage:
        """Return the estimated usage of a stream that ended early."""
        return _estimated(prompt_tokens, self.chunks)


def _estimated(prompt: int, completion: int, cached: int = 0) -> Usage:
    return Usage(prompt, cached, completion, total_tokens=prompt + completion, estimated=True)
