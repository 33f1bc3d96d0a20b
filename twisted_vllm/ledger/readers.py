"""Which reader tells what an answer used: by the route, the status and the answer's headers.

A reader looks on: it takes the bytes that pass, keeps little of them, delays none, and never fails.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TypeVar

import msgspec

from twisted_vllm.ledger import counts, streams, typed_streams
from twisted_vllm.ledger.document import MAX_WHOLE, Document, Shape
from twisted_vllm.ledger.usage_reader import GzipReader, UsageReader
from twisted_vllm.ledger.values import Usage

T = TypeVar("T")


class _JsonKind:
    """How one kind of JSON answer is read.

    Attributes:
        read: reads it.
        shape: what is looked for in a large one.
        by_size: whether the request's size tells about how many tokens a model was given.
    """

    __slots__ = ("by_size", "read", "shape")

    def __init__(self, read: Callable[[bytes], Usage | None], *keys: bytes, by_size: bool = True) -> None:
        self.read = read
        self.shape = Shape(keys)
        self.by_size = by_size


class JsonReader:
    """Reads an answer that is one JSON object."""

    __slots__ = ("_document", "_kind", "_only")
    stream = False

    def __init__(self, kind: _JsonKind) -> None:
        """Begin with an answer."""
        self._kind = kind
        # most answers come in one piece
        self._only = b""
        self._document: Document | None = None

    def feed(self, data: bytes) -> None:
        """Take what comes next."""
        document = self._document
        if document is None:
            if not self._only and len(data) <= MAX_WHOLE:
                self._only = data
                return
            document = self._document = Document(self._kind.shape)
            document.feed(self._only)
            self._only = b""
        document.feed(data)

    def usage(self) -> Usage | None:
        """Return what the server said that it used, or None where it did not."""
        try:
            return self._kind.read(self._only if self._document is None else self._document.read())
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def estimate(self, prompt_tokens: int, answers: int = 1) -> Usage:
        """Return what it probably used: the prompt, as nothing is seen of an answer before its end."""
        prompt = prompt_tokens if self._kind.by_size else 0
        return Usage(prompt_tokens=prompt, total_tokens=prompt, estimated=True)


def _kind(structure: type[T], read: Callable[[T], Usage | None], *keys: bytes, by_size: bool = True) -> _JsonKind:
    decode = msgspec.json.Decoder(structure).decode
    return _JsonKind(lambda data: read(decode(data)), *keys, by_size=by_size)


_USAGE = _kind(counts.Answer, counts.of_answer, b"usage")
_AUDIO = _kind(counts.AudioAnswer, counts.of_audio, b"usage", b"duration", by_size=False)
_TOKENIZE = _kind(counts.TokenizeAnswer, counts.of_tokenize, b"count", by_size=False)
_COUNT = _kind(counts.CountAnswer, counts.of_count, b"input_tokens", by_size=False)
_COHERE_EMBED = _kind(counts.CohereEmbedAnswer, counts.of_cohere_embed, b"meta")

_Maker = Callable[[], UsageReader]

#: routes whose stream the gateway may ask for its usage, as they have ``stream_options``; whether it is chat
INJECTABLE = {
    "/v1/chat/completions": True,
    "/v1/completions": False,
    "/inference/v1/generate": False,
    # either of the first two
    "/invocations": False,
}

#: how each route's JSON and its stream are read; a response that is fetched again was counted when it was made
ROUTES: dict[str, tuple[_JsonKind, _Maker]] = {
    "/v1/chat/completions": (_USAGE, streams.ChatStream),
    "/v1/chat/completions/batch": (_USAGE, streams.ChatStream),
    "/v1/completions": (_USAGE, streams.CompletionStream),
    "/v1/responses": (_USAGE, typed_streams.ResponseStream),
    "/v1/messages": (_USAGE, typed_streams.MessageStream),
    "/v1/messages/count_tokens": (_COUNT, streams.CompletionStream),
    "/cohere/v2/chat": (_USAGE, typed_streams.CohereStream),
    "/v2/embed": (_COHERE_EMBED, streams.CompletionStream),
    "/v1/audio/transcriptions": (_AUDIO, streams.AudioStream),
    "/v1/audio/translations": (_AUDIO, streams.AudioStream),
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
    route: str, content_type: bytes, status: int, *, content_encoding: bytes = b"", metadata: bytes = b""
) -> UsageReader | None:
    """Return what reads an answer, or None where it uses nothing.

    Args:
        route: the path that the server saw, decoded, without its query.
        content_type: the answer's ``Content-Type``.
        status: its status.
        content_encoding: its ``Content-Encoding``.
        metadata: its header ``metadata``, in which vLLM puts the usage of embeddings that are sent as bytes; with
            ``encoding_format: bytes_only`` it sends none.
    """
    if not 200 <= status < 300:
        return None
    make = _maker(route, content_type, content_encoding)
    return None if make is None else make(metadata)


@lru_cache(maxsize=256)
def _maker(route: str, content_type: bytes, content_encoding: bytes) -> Callable[[bytes], UsageReader] | None:
    """Return what makes the reader, given the metadata; a server says the same few things over and over."""
    kinds = ROUTES.get(route)
    if kinds is None:
        return None
    json, stream = kinds
    media_type = content_type.partition(b";")[0].strip().lower()
    make: _Maker
    if media_type == b"text/event-stream":
        make = stream
    elif media_type == b"application/json" or media_type.endswith(b"+json"):
        make = partial(JsonReader, json)
    elif media_type == b"application/octet-stream":
        return partial(HeadReader, json)
    else:
        return None
    coding = content_encoding.strip().lower()
    if coding in _IDENTITY:
        return lambda _: make()
    if coding in _GZIP:
        return lambda _: GzipReader(make())
    return lambda _: HeadReader(json, b"", stream=media_type == b"text/event-stream")


class HeadReader:
    """An answer whose head alone is read: embeddings as bytes (``bytes_only`` tell nothing), or an unknown coding."""

    __slots__ = ("_reader", "stream")

    def __init__(self, kind: _JsonKind, metadata: bytes, *, stream: bool = False) -> None:
        """Begin with the answer's header ``metadata``; empty where it has none."""
        self.stream = stream
        self._reader = JsonReader(kind)
        self._reader.feed(metadata)

    def feed(self, data: bytes) -> None:
        """Take bytes that say nothing."""

    def usage(self) -> Usage | None:
        """Return what the head said."""
        return self._reader.usage()

    def estimate(self, prompt_tokens: int, answers: int = 1) -> Usage:
        """Return what it probably used, where the head did not say."""
        return self._reader.estimate(prompt_tokens, answers)
