"""What a client says of its request for the ledger: tags, and metadata, by LiteLLM's names.

Both may stand in a header and in the body, below ``metadata`` or ``litellm_metadata``. Whatever cannot be read is left
out: it is no reason to refuse a request that vLLM accepts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import msgspec

#: the headers, and the members of ``metadata`` that mean the same
TAGS_HEADER, METADATA_HEADER = b"x-litellm-tags", b"x-litellm-spend-logs-metadata"
TAGS, METADATA = "tags", "spend_logs_metadata"

#: tags of a request; further ones are left out
MAX_TAGS = 16
#: characters of a tag; the rest is cut
MAX_TAG = 128
#: bytes of metadata as JSON; more is left out
MAX_METADATA = 2_048
#: bytes of a list of tags, and of ``metadata`` in an odd or large body, that are read
_MAX_LIST, MAX_SAID = 16_384, 32_768
#: header values that are remembered, because clients repeat them
_MAX_VALUES = 256
_LONGEST_VALUE = 1_024


class Said(msgspec.Struct, frozen=True, gc=False):
    """What a request says of itself.

    Attributes:
        tags: its tags.
        metadata: a JSON object as text; empty without one.
    """

    tags: tuple[str, ...] = ()
    metadata: str = ""


NOTHING_SAID = Said()

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def said_in_headers(first: Mapping[bytes, bytes]) -> Said:
    """Return what headers say.

    Args:
        first: the first value of each header, by lower-case name.
    """
    tags: tuple[str, ...] = ()
    value = first.get(TAGS_HEADER)
    if value:
        tags = _tags_in(value) if len(value) <= _LONGEST_VALUE else _split(value)
    text = first.get(METADATA_HEADER)
    return Said(tags, metadata_of(text) if text else "")


def _split(value: bytes) -> tuple[str, ...]:
    return tags_of(value[:_MAX_LIST].decode("utf-8", "replace").split(","))


_tags_in = lru_cache(maxsize=_MAX_VALUES)(_split)


def tags_of(values: Iterable[object]) -> tuple[str, ...]:
    """Return the tags among some values: printable texts, without spaces around them, each once, cut and bounded."""
    found: dict[str, None] = {}
    for value in values:
        if isinstance(value, str) and (tag := value.strip()[:MAX_TAG]) and tag.isprintable():
            found[tag] = None
            if len(found) == MAX_TAGS:
                break
    return tuple(found)


def tags_of_list(raw: bytes) -> tuple[str, ...]:
    """Return the tags in a JSON list."""
    if len(raw) > _MAX_LIST:
        return ()
    values = _value_of(raw)
    return tags_of(values) if isinstance(values, list) else ()


def metadata_of(raw: bytes) -> str:
    """Return metadata as compact JSON; empty if it is not a JSON object, or too long."""
    if len(raw) > MAX_METADATA:
        return ""
    value = _value_of(raw)
    return _encode(value).decode() if isinstance(value, dict) and value else ""


def said_in(metadata: Mapping[str, Any]) -> Said:
    """Return what ``metadata`` says, which was decoded by Python's own parser."""
    values = metadata.get(TAGS)
    tags = tags_of(values[: 4 * MAX_TAGS]) if isinstance(values, list) else ()
    text, found = "", metadata.get(METADATA)
    if isinstance(found, dict) and found:
        try:
            text = metadata_of(_encode(found))
        except (msgspec.MsgspecError, UnicodeEncodeError, TypeError, ValueError, RecursionError):
            text = ""
    return Said(tags, text) if tags or text else NOTHING_SAID


def together(one: Said, other: Said) -> Said:
    """Return what two places say; of metadata, the first counts."""
    if other is NOTHING_SAID:
        return one
    if one is NOTHING_SAID:
        return other
    return Said(tags_of((*one.tags, *other.tags)), one.metadata or other.metadata)


def _value_of(raw: bytes) -> Any:
    try:
        return _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
