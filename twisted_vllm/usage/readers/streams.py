"""What a stream of events used: counted from what passes.

Facts of vLLM 0.32 (entrypoints/): chat and completions name usage in a last event with ``"choices":[]`` where the
client asked with ``stream_options.include_usage``; with ``continuous_usage_stats`` too, or on a server started with
``--enable-force-include-usage``, every event has the usage so far of its own choice. Audio does the same, asked with
the form's ``stream_include_usage``. An event without usage carries about one token.
"""

from __future__ import annotations

import msgspec

from twisted_vllm.usage.readers.counts import Counts, to_usage
from twisted_vllm.usage.readers.document import Shape
from twisted_vllm.usage.readers.sse import EventParser, is_lone_event
from twisted_vllm.usage.records import Usage

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


decode_chunk = msgspec.json.Decoder(Chunk).decode


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
    """Completions, and what has their shape."""

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


class AudioStream(CompletionStream):
    """Transcriptions and translations.

    What vLLM calls their prompt's tokens is the decoder's prompt and the frames of the audio (Whisper: 100 a second).
    """

    def estimate(self, prompt_tokens: int, answers: int = 1) -> Usage:
        """Return what it probably used; the size of an upload tells nothing of a prompt."""
        return super().estimate(0, answers)


class ChatStream(CompletionStream):
    """Chat: the first event of each answer says the role alone."""

    lead_in = 1


def _chunk(data: bytes) -> Chunk | None:
    try:
        return decode_chunk(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
