"""Which reader tells what an answer used: by the route, the status and the answer's headers.

A reader looks on: it takes the bytes that pass, keeps little of them, delays none, and never fails.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec

from twisted_vllm.usage.readers import counts, streams, typed_streams
from twisted_vllm.usage.readers.document import Document, Shape
from twisted_vllm.usage.readers.interfaces import GzipReader, UsageReader
from twisted_vllm.usage.records import Usage

T = TypeVar("T")


class JsonKind(msgspec.Struct, frozen=True):
    """How one kind of JSON answer is read.

    Attributes:
        decode: what of it is decoded.
        read: what that says.
        shape: what is looked for in one that is not kept.
        by_size: whether the request's size tells about how many tokens a model was given.
        has_usage: whether what is decoded is the member ``usage``.
    """

    decode: Callable[[bytes], Any]
    read: Callable[[Any], Usage | None]
    shape: Shape
    by_size: bool = True
    has_usage: bool = False

    def usage(self, data: bytes) -> Usage | None:
        """Return what an answer says that it used, or None where it does not."""
        if self.has_usage and (found := counts.plain_usage_at_end(data)) is not None:
            return found
        try:
            return self.read(self.decode(data))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def estimate(self, prompt_tokens: int) -> Usage:
        """Return what an answer probably used that did not say: the prompt, as nothing is seen of it before its end."""
        prompt = prompt_tokens if self.by_size else 0
        return Usage(prompt_tokens=prompt, total_tokens=prompt, estimated=True)


class JsonReader(msgspec.Struct):
    """Reads an answer that is one JSON object.

    Attributes:
        kind: how.
        document: what it is gathered in.
    """

    kind: JsonKind
    document: Document

    @property
    def stream(self) -> bool:
        """Whether the answer is a stream of events: it is none."""
        return False

    def feed(self, data: bytes) -> None:
        """Take what comes next."""
        self.document.feed(data)

    def usage(self) -> Usage | None:
        """Return what the server said that it used, or None where it did not."""
        return self.kind.usage(self.document.read())

    def estimate(self, prompt_tokens: int, answers: int = 1) -> Usage:
        """Return what it probably used."""
        return self.kind.estimate(prompt_tokens)


def _kind(
    structure: type[T], read: Callable[[T], Usage | None], *keys: bytes, by_size: bool = True, has_usage: bool = False
) -> JsonKind:
    return JsonKind(msgspec.json.Decoder(structure).decode, read, Shape(keys), by_size, has_usage)


_USAGE = _kind(counts.Answer, counts.of_answer, b"usage", has_usage=True)
_AUDIO = _kind(counts.AudioAnswer, counts.of_audio, b"usage", b"duration", by_size=False)
_TOKENIZE = _kind(counts.TokenizeAnswer, counts.of_tokenize, b"count", by_size=False)
_COUNT = _kind(counts.CountAnswer, counts.of_count, b"input_tokens", by_size=False)
_COHERE_EMBED = _kind(counts.CohereEmbedAnswer, counts.of_cohere_embed, b"meta")

# given the header `metadata`, in which vLLM puts the usage of embeddings that are sent as bytes; with
# ``encoding_format: bytes_only`` it sends none
_Maker = Callable[[bytes], UsageReader]
#: how an answer is read: its kind of JSON, or what makes its reader; None where it is not
Reading = JsonKind | _Maker | None

#: routes whose stream the gateway may ask for its usage, as they have ``stream_options``; whether it is chat
INJECTABLE = {
    "/v1/chat/completions": True,
    "/v1/completions": False,
    "/inference/v1/generate": False,
    # either of the first two
    "/invocations": False,
}

#: how each route's JSON and its stream are read; a response that is fetched again was counted when it was made
ROUTES: dict[str, tuple[JsonKind, Callable[[], UsageReader]]] = {
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


def json_reader(kind: JsonKind) -> JsonReader:
    """Return what reads a JSON answer that comes in pieces."""
    return JsonReader(kind, Document(kind.shape))


def reading(route: str, content_type: bytes, content_encoding: bytes = b"") -> Reading:
    """Return how a successful answer is read.

    Args:
        route: the path that the server saw, decoded, without its query.
        content_type: the answer's ``Content-Type``.
        content_encoding: its ``Content-Encoding``.
    """
    kinds = ROUTES.get(route)
    if kinds is None:
        return None
    kind, stream = kinds
    media_type = content_type.partition(b";")[0].strip().lower()
    if media_type == b"application/octet-stream":
        return partial(HeadReader, kind)
    is_stream = media_type == b"text/event-stream"
    if not (is_stream or media_type == b"application/json" or media_type.endswith(b"+json")):
        return None
    coding = content_encoding.strip().lower()
    if coding in _GZIP:
        return lambda _: GzipReader(stream() if is_stream else json_reader(kind))
    if coding not in _IDENTITY:
        return lambda _: HeadReader(kind, b"", stream=is_stream)
    return (lambda _: stream()) if is_stream else kind


class HeadReader:
    """An answer whose head alone is read: embeddings as bytes (``bytes_only`` tell nothing), or an unknown coding."""

    __slots__ = ("_reader", "stream")

    def __init__(self, kind: JsonKind, metadata: bytes, *, stream: bool = False) -> None:
        """Begin with the answer's header ``metadata``; empty where it has none."""
        self.stream = stream
        self._reader = json_reader(kind)
        self._reader.feed(metadata)

    def feed(self, data: bytes) -> None:
        """Take bytes that say nothing."""

    def usage(self) -> Usage | None:
        """Return what the head said."""
        return self._reader.usage()

    def estimate(self, prompt_tokens: int, answers: int = 1) -> Usage:
        """Return what it probably used, where the head did not say."""
        return self._reader.estimate(prompt_tokens, answers)
