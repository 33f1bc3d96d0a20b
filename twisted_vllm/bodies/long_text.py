"""A long text of a JSON body, of which each part is looked at as it arrives and only the beginning is kept."""

from __future__ import annotations

import re
from collections.abc import Callable

from twisted_vllm.field_policy.shortened import KEPT, ShortenedText, decoded, unescaped

#: bytes with escapes that are looked at together
_ESCAPED = 8_192
#: what looking costs, in values of a body: so many bytes, and so many escapes, cost as much as one value
_BYTES_PER_VALUE = 512
_ESCAPES_PER_VALUE = 4
#: base64 longer than this, in bytes, is a medium
_LONG_BASE64 = 1_024
_BASE64 = b";base64,"

# Half a pair of surrogates waits for what follows it: both are one character.
_content = re.compile(
    rb'[^"\\]*+(?:\\(?:["\\/bfnrt]|u(?:(?![dD][89abAB])[0-9a-fA-F]{4}'
    rb'|[dD][89abAB][0-9a-fA-F]{2}(?=[^\\]|\\[^u]|\\u[0-9a-fA-F]{4})))[^"\\]*+)*+'
).match
_escapes = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\[^u]", re.DOTALL
).findall
#: escapes other than those of a backslash and of a code, the frequent ones first
_SIMPLE_ESCAPES = (b"\\n", b'\\"', b"\\t", b"\\r", b"\\/", b"\\b", b"\\f")
#: the longest escape: a pair of surrogates
ESCAPE_SIZE = 12
#: escaped quotes that are passed one by one; more are left to the pattern, which takes longer to begin
_FEW_QUOTES = 16
_BACKSLASH = 92


class LongText:
    """A text whose end has not arrived.

    Attributes:
        start: its offset in the body, after its quote.
        spelled: the bytes that have arrived.
        has_half: whether it holds half a pair of surrogates.
        media: the media in it: long base64.
        media_size: their size in bytes.
    """

    __slots__ = (
        "_base64",
        "_head",
        "_kept",
        "_most",
        "_size",
        "_tail",
        "has_half",
        "media",
        "media_size",
        "spelled",
        "start",
    )

    def __init__(self, start: int, kept: int, most: int) -> None:
        """Begin a text.

        Args:
            start: its offset in the body, after its quote.
            kept: up to so many bytes it is kept whole.
            most: the most bytes that are kept of a longer one.
        """
        self.start = start
        self.spelled = self.media = self.media_size = 0
        self.has_half = False
        self._kept = kept
        self._most = most
        self._size = 0
        self._head = self._tail = b""
        # the offset in it where base64 begins
        self._base64 = -1

    def extend(self, window: bytes, at: int, stop: int) -> int:
        """Take a part, which `end_of_part` found; return what that cost, in values.

        Raises:
            ValueError: an escape is none.
        """
        size = stop - at
        if len(self._head) < self._most:
            self._head += window[at : min(stop, at + self._most - len(self._head))]
        self._find_media(window, at, stop)
        self.spelled += size
        self._size += size
        cost = size // _BYTES_PER_VALUE
        if window.find(b"\\", at, stop) >= 0:
            cost += self._take_escapes(window[at:stop])
        return cost

    def finish(self, read: Callable[[int, int], bytes]) -> str:
        """Return the text, shortened if it is long.

        Args:
            read: returns the bytes of the body between two offsets.
        """
        if self._base64 >= 0:
            self._end_medium(self.spelled)
        if self.spelled <= self._kept:
            return decoded(self._head)
        head = self._head[:KEPT]
        begin = decoded(self._head) if b"\\" in head else str(head, "utf-8", "ignore")
        return ShortenedText.of(begin, self._size, (self.start, self.start + self.spelled), read)

    def _find_media(self, window: bytes, at: int, stop: int) -> None:
        """Look for base64 in a part; it ends with the text, or before a quote."""
        position = at
        if self._base64 < 0 and self._tail:
            found = (self._tail + window[at : min(at + len(_BASE64) - 1, stop)]).find(_BASE64)
            if found >= 0:
                self._base64 = self.spelled - len(self._tail) + found
        while True:
            if self._base64 < 0:
                found = window.find(_BASE64, position, stop)
                if found < 0:
                    break
                self._base64 = self.spelled + found - at
                position = found
            found = window.find(b'"', position, stop)
            if found < 0:
                break
            self._end_medium(self.spelled + found - at)
            position = found
        self._tail = (self._tail + window[max(at, stop - len(_BASE64) + 1) : stop])[1 - len(_BASE64) :]

    def _end_medium(self, end: int) -> None:
        size = end - self._base64
        if size > _LONG_BASE64:
            self.media += 1
            self.media_size += size
        self._base64 = -1

    def _take_escapes(self, part: bytes) -> int:
        """Subtract by how much a part is shorter than it is spelled; return what that cost."""
        backslashes = part.count(b"\\\\")
        rest = part.replace(b"\\\\", b"") if backslashes else part
        others = rest.count(b"\\")
        if b"\\u" not in rest:
            unknown = others
            for escape in _SIMPLE_ESCAPES:
                unknown -= rest.count(escape)
                if not unknown:
                    break
            if unknown:
                raise ValueError("no escape")
            self._size -= backslashes + others
            return (backslashes + others) // _ESCAPES_PER_VALUE
        check_escapes(part)
        escapes = _escapes(part)
        # apart, so that two halves that are apart stay so
        apart = b" ".join(escapes)
        shown = unescaped(apart.decode("ascii"))
        self.has_half = self.has_half or not is_whole(shown)
        self._size -= len(apart) - len(shown.encode("utf-8", "surrogatepass"))
        return len(escapes) // _ESCAPES_PER_VALUE


def end_of_part(window: bytes, at: int) -> int:
    """Return the offset of the quote that ends a text; without one, where a part of it ends: not within an escape."""
    quote = window.find(b'"', at)
    stop = quote if quote >= 0 else len(window)
    if window.find(b"\\", at, stop) < 0:
        return stop
    limit = min(at + _ESCAPED, len(window))
    quote = window.find(b'"', at, limit)
    for _ in range(_FEW_QUOTES):
        if quote < 0:
            break
        if (quote - _run_of_backslashes(window, at, quote)) % 2 == 0:
            return quote
        quote = window.find(b'"', quote + 1, limit)
    if quote < 0:
        last = window.rfind(b"\\", max(at, limit - ESCAPE_SIZE), limit)
        if last < 0:
            return limit
        # a backslash that none precedes begins an escape
        start = _run_of_backslashes(window, at, last)
        if start > at and window[start - 6 : start - 4] != b"\\u":
            return start
    found = _content(window, at, limit)
    return at if found is None else found.end()


def _run_of_backslashes(window: bytes, at: int, end: int) -> int:
    """Return where the backslashes before `end` begin."""
    while end > at and window[end - 1] == _BACKSLASH:
        end -= 1
    return end


def check_escapes(spelled: bytes) -> None:
    """Check the escapes of a text, or of a part of one.

    Raises:
        ValueError: one is none.
    """
    found = _content(spelled + b'"')
    if found is None or found[0] != spelled:
        raise ValueError("no escape")


def is_whole(text: str) -> bool:
    """Return whether a text has no half of a pair of surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
