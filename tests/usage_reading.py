"""How an answer is read that comes in pieces, as the gateway reads it."""

from __future__ import annotations

from twisted_vllm.usage.readers.interfaces import UsageReader
from twisted_vllm.usage.readers.registry import JsonKind, json_reader, reading


def reader_for(
    route: str, content_type: bytes, content_encoding: bytes = b"", metadata: bytes = b""
) -> UsageReader | None:
    """Return what reads a successful answer, or None where that uses nothing.

    Args:
        route: the path that the server saw, decoded, without its query.
        content_type: the answer's ``Content-Type``.
        content_encoding: its ``Content-Encoding``.
        metadata: its header ``metadata``.
    """
    found = reading(route, content_type, content_encoding)
    if found is None:
        return None
    return json_reader(found) if isinstance(found, JsonKind) else found(metadata)
