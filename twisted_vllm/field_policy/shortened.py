"""Texts and lists of a large body, of which only the beginning is kept. What a policy looks at is still there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

#: bytes of a text, as it is spelled, that are kept. A text with escapes may keep `MOST_KEPT`, so that the kept part has
#: more characters than any value that a rule names (64)
KEPT = 128
MOST_KEPT = 1_024
#: bytes of a text at the top level that are kept
KEPT_AT_TOP = 4_096

#: numbers at the beginning of a list that are kept
KEPT_NUMBERS = 64

_decode = json.JSONDecoder(strict=False).raw_decode
_COMPLETE = re.compile(rb'[^"\\]*+(?:\\(?:[^u]|u[0-9a-fA-F]{4})[^"\\]*+)*+')


class ShortenedText(str):
    """The beginning of a longer text.

    Attributes:
        size: the bytes of the whole text in UTF-8.
    """

    __slots__ = ("_end", "_read", "_start", "size")
    size: int
    _start: int
    _end: int
    _read: Callable[[int, int], bytes]

    @classmethod
    def of(cls, head: str, size: int, span: tuple[int, int], read: Callable[[int, int], bytes]) -> ShortenedText:
        """Make one.

        Args:
            head: its beginning.
            size: the bytes of the whole text in UTF-8.
            span: where it is spelled in the body, without its quotes.
            read: returns the bytes of the body between two offsets.
        """
        text = cls(head)
        text.size = size
        text._start, text._end = span
        text._read = read
        return text

    @property
    def spelled(self) -> int:
        """The bytes of the whole text as it is spelled in the body."""
        return self._end - self._start

    def beginning(self, most: int) -> str:
        """Return the text, cut after `most` bytes of its spelling."""
        return decoded(self._read(self._start, min(self._end, self._start + most)))


class ShortenedList(list[Any]):
    """A list of many numbers without most of them.

    Attributes:
        size: the items of the whole list.
    """

    __slots__ = ("size",)
    size: int


def decoded(spelled: bytes) -> str:
    """Return the text that a JSON string spells, without its quotes; a last character that was cut is dropped."""
    whole = _COMPLETE.match(spelled)
    text = (spelled if whole is None else whole[0]).decode("utf-8", "ignore")
    return unescaped(text)


def unescaped(spelled: str) -> str:
    """Return the text that a JSON string spells, without its quotes; control characters may stand in it."""
    found: str = _decode(f'"{spelled}"')[0]
    return found


def beginning_of(text: str) -> str:
    """Return a text, or the beginning of one that was shortened."""
    return text.beginning(KEPT_AT_TOP) if isinstance(text, ShortenedText) else text


def bytes_of(text: str) -> int:
    """Return the bytes of a text in UTF-8, half a pair of surrogates as three."""
    return text.size if isinstance(text, ShortenedText) else len(text.encode("utf-8", "surrogatepass"))


def size_of(items: list[Any] | dict[str, Any]) -> int:
    """Return how many items or members a list or an object has."""
    return items.size if isinstance(items, ShortenedList) else len(items)
