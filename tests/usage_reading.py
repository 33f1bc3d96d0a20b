"""How the gateway reads the usage of an answer that comes in pieces."""

from __future__ import annotations

from twisted_vllm.api_routes import classify
from twisted_vllm.usage.readers.registry import READERS, JsonFormat, JsonReader, Reading, UsageReader


def reading_of(route: str, content_type: bytes, content_encoding: bytes = b"") -> Reading:
    """Return how a successful answer is read; None if it reports no usage.

    Args:
        route: the path that the server saw, decoded, without its query.
        content_type: the answer's ``Content-Type``.
        content_encoding: its ``Content-Encoding``.
    """
    readers = READERS[classify(b"POST", route.encode()).row.usage]
    return None if readers is None else readers.reading(content_type, content_encoding)


def reader_for(route: str, content_type: bytes, content_encoding: bytes = b"", metadata: bytes = b"") -> UsageReader:
    """Return the reader of a successful answer.

    Args:
        route: the path that the server saw, decoded, without its query.
        content_type: the answer's ``Content-Type``.
        content_encoding: its ``Content-Encoding``.
        metadata: its header ``metadata``.
    """
    found = reading_of(route, content_type, content_encoding)
    assert found is not None
    return JsonReader(found) if isinstance(found, JsonFormat) else found(metadata)
