"""Chooses the usage reader of a response by route, ``Content-Type`` and ``Content-Encoding``.

A reader observes the relayed bytes: it keeps few of them, delays none and never fails.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Protocol, TypeAlias, TypeVar

import msgspec

from twisted_vllm.api_routes import UsageFormat
from twisted_vllm.usage.readers import counts, streams
from twisted_vllm.usage.readers.document import Document, Shape
from twisted_vllm.usage.records import Usage

#: cached readings per `UsageFormat`, by ``Content-Type`` and ``Content-Encoding``
MAX_READINGS = 16
#: the maximum decompressed size of one piece in bytes, which takes up to 5 ms; beyond it, the response is not read any
#: more
MAX_INFLATED = 1_048_576

#: the values of ``Content-Encoding``, in lower case, of a body that is not encoded
IDENTITY = (b"", b"identity")
_GZIP = (b"gzip", b"x-gzip", b"deflate")

T = TypeVar("T")


class UsageReader(Protocol):
    """Reads the usage of one response.

    Attributes:
        stream: whether the response is a stream of events.
        failed: whether it is a stream in which the server reported an error.
        reported: the tokens of the answer that the server counted so far; None if it counted none, or all of them.
    """

    @property
    def stream(self) -> bool: ...

    @property
    def failed(self) -> bool: ...

    @property
    def reported(self) -> int | None: ...

    def feed(self, data: bytes) -> None:
        """Take the next piece."""

    def usage(self) -> Usage | None:
        """Return the usage that the server reported, or None if it reported none."""

    def estimate(self, prompt_tokens: int, choices: int = 1) -> Usage:
        """Return the estimated usage of a response that reported none.

        Args:
            prompt_tokens: the estimated tokens of the prompt.
            choices: the number of requested choices.
        """


class JsonFormat(msgspec.Struct, frozen=True):
    """The reader of one kind of JSON response.

    Attributes:
        decode: decodes the needed members.
        read: returns the usage in them.
        shape: the values to keep of a response that is too large to be kept whole.
        estimates_prompt: whether the prompt's tokens can be estimated from the request's size.
        has_usage: whether the usage is in the member ``usage``.
    """

    decode: Callable[[bytes], Any]
    read: Callable[[Any], Usage | None]
    shape: Shape
    estimates_prompt: bool = True
    has_usage: bool = False

    def usage(self, data: bytes) -> Usage | None:
        """Return the usage that a response reports, or None if it reports none."""
        if self.has_usage and (found := counts.plain_usage_at_end(data)) is not None:
            return found
        try:
            return self.read(self.decode(data))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def estimate(self, prompt_tokens: int) -> Usage:
        """Return the estimated usage of a response: the prompt's, as the rest is unknown before the end."""
        prompt = prompt_tokens if self.estimates_prompt else 0
        return Usage(prompt_tokens=prompt, total_tokens=prompt, estimated=True)


class JsonReader:
    """Reads a JSON response that arrives in pieces."""

    __slots__ = ("_document", "_format")
    failed = False
    reported: int | None = None

    def __init__(self, json_format: JsonFormat) -> None:
        """Start to read a response of this format."""
        self._format = json_format
        self._document = Document(json_format.shape)

    @property
    def stream(self) -> bool:
        """Whether the response is a stream of events: it is not."""
        return False

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        self._document.feed(data)

    def usage(self) -> Usage | None:
        """Return the usage that the server reported, or None if it reported none."""
        return self._format.usage(self._document.read())

    @property
    def answer_id(self) -> str:
        """The id of a response; empty if it cannot be told."""
        return counts.response_id_in(self._document.read())

    def estimate(self, prompt_tokens: int, choices: int = 1) -> Usage:
        """Return the estimated usage."""
        return self._format.estimate(prompt_tokens)


class HeadReader:
    """Reads only the head of a response: embeddings as bytes, or a body in an unknown coding.

    vLLM reports the usage of embeddings that are sent as bytes in the header ``metadata``; with
    ``encoding_format: bytes_only`` it does not send it.
    """

    __slots__ = ("_reader", "stream")
    failed = False
    reported: int | None = None

    def __init__(self, json_format: JsonFormat, metadata: bytes, *, stream: bool = False) -> None:
        """Start with the response's header ``metadata``; empty if it has none."""
        self.stream = stream
        self._reader = JsonReader(json_format)
        self._reader.feed(metadata)

    def feed(self, data: bytes) -> None:
        """Take the next piece, which reports nothing."""

    def usage(self) -> Usage | None:
        """Return the usage that the head reported, or None if it reported none."""
        return self._reader.usage()

    def estimate(self, prompt_tokens: int, choices: int = 1) -> Usage:
        """Return the estimated usage."""
        return self._reader.estimate(prompt_tokens, choices)


class GzipReader:
    """Reads a response that a proxy in front of the server compressed; ignores what cannot be decompressed."""

    __slots__ = ("_inflate", "_reader")

    def __init__(self, reader: UsageReader) -> None:
        """Feed the decompressed bytes to `reader`."""
        self._reader = reader
        # gzip or zlib, by its first bytes
        self._inflate: zlib._Decompress | None = zlib.decompressobj(wbits=47)

    @property
    def stream(self) -> bool:
        """Whether the response is a stream of events."""
        return self._reader.stream

    @property
    def failed(self) -> bool:
        """Whether it is a stream in which the server reported an error."""
        return self._reader.failed

    @property
    def reported(self) -> int | None:
        """The tokens of the answer that the server counted so far, as in `UsageReader`."""
        return self._reader.reported

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        if self._inflate is None:
            return
        try:
            piece = self._inflate.decompress(data, MAX_INFLATED)
        except zlib.error:
            self._inflate = None
            return
        if len(piece) == MAX_INFLATED:
            # zlib may hold more
            self._inflate = None
        # as one piece, because the readers bound the time of each
        self._reader.feed(piece)

    def usage(self) -> Usage | None:
        """Return the usage that the server reported, or None if it reported none."""
        return self._reader.usage()

    def estimate(self, prompt_tokens: int, choices: int = 1) -> Usage:
        """Return the estimated usage."""
        return self._reader.estimate(prompt_tokens, choices)


#: makes the reader of a response from its header ``metadata``
ReaderFactory: TypeAlias = Callable[[bytes], UsageReader]
#: how a response is read: as JSON, without a reader if it arrives in one piece; by a reader; or not at all
Reading: TypeAlias = JsonFormat | ReaderFactory | None


class ResponseReaders:
    """The readers of the successful responses of one `UsageFormat`.

    Attributes:
        reading: returns how a response is read, by its ``Content-Type`` and ``Content-Encoding``.
    """

    def __init__(self, json_format: JsonFormat, stream: Callable[[], UsageReader]) -> None:
        """Bind the readers.

        Args:
            json_format: reads a JSON response.
            stream: makes the reader of a stream.
        """
        self._json = json_format
        self._stream = stream
        # most responses of a route have the same two headers: 0.07 µs instead of 0.2 µs
        self.reading = lru_cache(maxsize=MAX_READINGS)(self._reading)

    def _reading(self, content_type: bytes, content_encoding: bytes = b"") -> Reading:
        """Return how a response with these headers is read."""
        media_type = content_type.partition(b";")[0].strip().lower()
        if media_type == b"application/octet-stream":
            return partial(HeadReader, self._json)
        is_stream = media_type == b"text/event-stream"
        if not (is_stream or media_type == b"application/json" or media_type.endswith(b"+json")):
            return None
        coding = content_encoding.strip().lower()
        if coding in _GZIP:
            return lambda _: GzipReader(self._stream() if is_stream else JsonReader(self._json))
        if coding not in IDENTITY:
            return lambda _: HeadReader(self._json, b"", stream=is_stream)
        return (lambda _: self._stream()) if is_stream else self._json


def _json_format(
    structure: type[T],
    read: Callable[[T], Usage | None],
    *keys: bytes,
    estimates_prompt: bool = True,
    has_usage: bool = False,
) -> JsonFormat:
    return JsonFormat(msgspec.json.Decoder(structure).decode, read, Shape(keys), estimates_prompt, has_usage)


_USAGE = _json_format(counts.UsageResponse, counts.read_usage, b"usage", has_usage=True)
_RESPONSE = _json_format(counts.UsageResponse, counts.read_usage, b"usage", b"id", has_usage=True)
_AUDIO = _json_format(counts.AudioResponse, counts.read_audio, b"usage", b"duration", estimates_prompt=False)
_TOKENIZE = _json_format(counts.TokenizeResponse, counts.read_tokenize, b"count", estimates_prompt=False)
_TOKEN_COUNT = _json_format(counts.TokenCountResponse, counts.read_token_count, b"input_tokens", estimates_prompt=False)
_COHERE_EMBED = _json_format(counts.CohereEmbedResponse, counts.read_cohere_embed, b"meta")

#: the readers of each format; None reports no usage
READERS: dict[UsageFormat, ResponseReaders | None] = {
    UsageFormat.NONE: None,
    UsageFormat.COMPLETIONS: ResponseReaders(_USAGE, streams.ChunkStream),
    UsageFormat.CHAT: ResponseReaders(_USAGE, partial(streams.ChunkStream, chat=True)),
    UsageFormat.RESPONSES: ResponseReaders(_RESPONSE, streams.ResponseStream),
    UsageFormat.MESSAGES: ResponseReaders(_USAGE, streams.MessageStream),
    UsageFormat.COHERE_CHAT: ResponseReaders(_USAGE, streams.CohereStream),
    UsageFormat.COHERE_EMBED: ResponseReaders(_COHERE_EMBED, streams.ChunkStream),
    UsageFormat.TRANSCRIPTION: ResponseReaders(_AUDIO, partial(streams.ChunkStream, estimates_prompt=False)),
    UsageFormat.TOKENIZE: ResponseReaders(_TOKENIZE, streams.ChunkStream),
    UsageFormat.TOKEN_COUNT: ResponseReaders(_TOKEN_COUNT, streams.ChunkStream),
}
