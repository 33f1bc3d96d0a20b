"""Which reader tells what an answer used: by the route, the status and the answer's headers.

A reader looks on: it takes the bytes that pass, keeps little of them, delays none, and never fails.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Protocol, TypeVar

import msgspec

from twisted_vllm.ledger import counts, streams
from twisted_vllm.ledger.document import MAX_WHOLE, Document, Shape
from twisted_vllm.ledger.values import Usage

T = TypeVar("T")

#: bytes that are decompressed at a time
_STEP = 65_536
#: bytes that one piece may decompress to; beyond, the answer is not read any more
MAX_INFLATED = 4_194_304


class UsageReader(Protocol):
    """Looks on at one answer.

    Attributes:
        stream: whether the answer is a stream of events.
    """

    @property
    def stream(self) -> bool: ...

    def feed(self, data: bytes) -> None:
        """Take what comes next."""

    def usage(self) -> Usage | None:
        """Return what the server said that it used, or None where it did not."""

    def estimate(self, prompt_tokens: int, answers: int = 1) -> Usage:
        """Return what it probably used, where the server did not say."""


class _JsonKind(msgspec.Struct, frozen=True):
    """How one kind of JSON answer is read: decoded, and what was decoded."""

    decode: Callable[[bytes], Any]
    read: Callable[[Any], Usage | None]
    shape: Shape


class JsonReader(msgspec.Struct):
    """Reads an answer that is one JSON object.

    Attributes:
        kind: how.
        only: all of it so far, while it came in one piece: most do.
        document: what it is gathered in, where it came in several.
    """

    kind: _JsonKind
    only: bytes = b""
    document: Document | None = None

    @property
    def stream(self) -> bool:
        """Whether the answer is a stream of events: it is none."""
        return False

    def feed(self, data: bytes) -> None:
        """Take what comes next."""
        document = self.document
        if document is None:
            if not self.only and len(data) <= MAX_WHOLE:
                self.only = data
                return
            document = self.document = Document(self.kind.shape)
            document.feed(self.only)
            self.only = b""
        document.feed(data)

    def usage(self) -> Usage | None:
        """Return what the server said that it used, or None where it did not."""
        kind = self.kind
        try:
            return kind.read(kind.decode(self.only if self.document is None else self.document.read()))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def estimate(self, prompt_tokens: int, answers: int = 1) -> Usage:
        """Return what it probably used: the prompt, as nothing is seen of an answer before its end."""
        return Usage(prompt_tokens=prompt_tokens, total_tokens=prompt_tokens, estimated=True)


class GzipReader:
    """Reads an answer that a server in between compressed; what does not decompress is not read."""

    __slots__ = ("_inflate", "_reader")

    def __init__(self, reader: UsageReader) -> None:
        """Give what is decompressed to `reader`."""
        self._reader = reader
        # gzip or zlib, whichever its first bytes say
        self._inflate: zlib._Decompress | None = zlib.decompressobj(wbits=47)

    @property
    def stream(self) -> bool:
        """Whether the answer is a stream of events."""
        return self._reader.stream

    def feed(self, data: bytes) -> None:
        """Take what comes next."""
        inflate = self._inflate
        left = MAX_INFLATED
        more = bool(data)
        while inflate is not None and more:
            try:
                piece = inflate.decompress(data, _STEP)
            except zlib.error:
                self._inflate = None
                return
            left -= len(piece)
            if left < 0:
                self._inflate = None
                return
            self._reader.feed(piece)
            data = inflate.unconsumed_tail
            # a full step may have left something inside
            more = bool(data) or len(piece) == _STEP

    def usage(self) -> Usage | None:
        """Return what the server said that it used, or None where it did not."""
        return self._reader.usage()

    def estimate(self, prompt_tokens: int, answers: int = 1) -> Usage:
        """Return what it probably used, where the server did not say."""
        return self._reader.estimate(prompt_tokens, answers)


def _kind(structure: type[T], read: Callable[[T], Usage | None], *keys: bytes) -> _JsonKind:
    return _JsonKind(msgspec.json.Decoder(structure).decode, read, Shape(keys))


_USAGE = _kind(counts.Answer, counts.of_answer, b"usage")
_AUDIO = _kind(counts.AudioAnswer, counts.of_audio, b"usage", b"duration")
_TOKENIZE = _kind(counts.TokenizeAnswer, counts.of_tokenize, b"count")
_COUNT = _kind(counts.CountAnswer, counts.of_count, b"input_tokens")
_COHERE_EMBED = _kind(counts.CohereEmbedAnswer, counts.of_cohere_embed, b"meta")

_Maker = Callable[[], UsageReader]

#: routes whose stream the gateway may ask for its usage; whether it is chat
INJECTABLE = {"/v1/chat/completions": True, "/v1/completions": False}

#: how each route's JSON and its stream are read; a response that is fetched again was counted when it was made
ROUTES: dict[str, tuple[_JsonKind, _Maker]] = {
    "/v1/chat/completions": (_USAGE, streams.ChatStream),
    "/v1/chat/completions/batch": (_USAGE, streams.ChatStream),
    "/v1/completions": (_USAGE, streams.CompletionStream),
    "/v1/responses": (_USAGE, streams.ResponseStream),
    "/v1/messages": (_USAGE, streams.MessageStream),
    "/v1/messages/count_tokens": (_COUNT, streams.CompletionStream),
    "/cohere/v2/chat": (_USAGE, streams.CohereStream),
    "/v2/embed": (_COHERE_EMBED, streams.CompletionStream),
    "/v1/audio/transcriptions": (_AUDIO, streams.CompletionStream),
    "/v1/audio/translations": (_AUDIO, streams.CompletionStream),
    "/tokenize": (_TOKENIZE, streams.CompletionStream),
    **dict.fromkeys(
        (
            *("/v1/embeddings", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank", "/classify", "/pooling"),
            *("/generative_scoring", "/v1/systemone", "/inference/v1/generate", "/invocations"),
        ),
        (_USAGE, streams.CompletionStream),
    ),
}

_IDENTITY = (b"", b"identity")
_GZIP = (b"gzip", b"x-gzip", b"deflate")


def reader_for(
    route: str, content_type: bytes, status: int, content_encoding: bytes = b"", metadata: bytes = b""
) -> UsageReader | None:
    """Return what reads an answer, or None where it uses nothing or cannot say what it used.

    Args:
        route: the path that the server saw, decoded, without its query.
        content_type: the answer's ``Content-Type``.
        status: its status.
        content_encoding: its ``Content-Encoding``.
        metadata: its header ``metadata``, in which vLLM puts the usage of embeddings that are sent as bytes.
    """
    if not 200 <= status < 300:
        return None
    make = _maker(route, content_type, content_encoding)
    if make is not None:
        return make()
    if metadata and route in ROUTES:
        return _Told(metadata)
    return None


@lru_cache(maxsize=256)
def _maker(route: str, content_type: bytes, content_encoding: bytes) -> _Maker | None:
    """Return what makes the reader; a server says the same few things over and over."""
    kinds = ROUTES.get(route)
    if kinds is None:
        return None
    media_type = content_type.partition(b";")[0].strip().lower()
    make: _Maker
    if media_type == b"text/event-stream":
        make = kinds[1]
    elif media_type == b"application/json" or media_type.endswith(b"+json"):
        make = partial(JsonReader, kinds[0])
    else:
        return None
    coding = content_encoding.strip().lower()
    if coding in _IDENTITY:
        return make
    return (lambda: GzipReader(make())) if coding in _GZIP else None


class _Told:
    """An answer whose head told all."""

    __slots__ = ("_reader",)
    stream = False

    def __init__(self, metadata: bytes) -> None:
        self._reader = JsonReader(_USAGE)
        self._reader.feed(metadata)

    def feed(self, data: bytes) -> None:
        """Take bytes that say nothing."""

    def usage(self) -> Usage | None:
        """Return what the head said."""
        return self._reader.usage()

    def estimate(self, prompt_tokens: int, answers: int = 1) -> Usage:
        """Return what it probably used, where the head did not say."""
        return self._reader.estimate(prompt_tokens, answers)
