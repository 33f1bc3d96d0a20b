"""Finding the value of one key in JSON that passes by, without keeping the JSON.

An answer may be of any size (embeddings, log probabilities): what is kept here is a few hundred bytes of it, and the
value that is looked for. The search is for the key as it is spelt, with its quotes: inside a JSON string its first
quote would have a backslash in front. So what is found is a string by itself; the depth tells whether it is the key
that was meant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: bytes of a value that is captured; vLLM's ``usage`` has some hundred
MAX_VALUE = 16_384
#: bytes of whitespace between a key and its colon
_MAX_GAP = 64

# all there is before a string that does not end
_WHOLE = re.compile(rb'(?:[^"]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)
_COLON = re.compile(rb"[ \t\r\n]*:")
_GAP = re.compile(rb"[ \t\r\n]*\Z")
_PIECE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
_SCALAR = re.compile(rb'[^\s\[\]{}",]++(?=[\s,}\]])')
_SPACE = re.compile(rb"[ \t\r\n]*")


class ValueScanner:
    """Looks for keys at one depth; the last value of each counts.

    Attributes:
        found: the values that were found, as they are spelt, by key.
    """

    def __init__(self, keys: Sequence[bytes], depth: int = 1) -> None:
        """Look for `keys` in objects at `depth`; 1 is the outermost object."""
        self.found: dict[bytes, bytes] = {}
        self._names = [(b'"' + key + b'"', key) for key in keys]
        self._longest = max(map(len, keys)) + 2
        self._target = depth
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._carry = b""
        self._capturing: bytes | None = None

    def feed(self, data: bytes) -> None:
        """Take what comes next."""
        if self._carry:
            data = self._carry + data
            self._carry = b""
        at = 0
        while at < len(data):
            at = self._look(data, at) if self._capturing is None else self._capture(data, at)

    def _look(self, data: bytes, at: int) -> int:
        """Go on to the next key that might be meant; return where to go on."""
        place, name, key = self._candidate(data, at)
        if place < 0:
            self._pass_rest(data[at:])
            return len(data)
        self._pass(data[at:place])
        end = place + len(name)
        if self._in_string:
            # what is no JSON may be anything
            self._pass(data[place:end])
            return end
        if self._depth != self._target:
            return end
        colon = _COLON.match(data, end)
        if colon is not None:
            self._capturing = key
            return colon.end()
        if _GAP.match(data, end) is not None and len(data) - end < _MAX_GAP:
            self._carry = data[place:]
            return len(data)
        return end

    def _candidate(self, data: bytes, at: int) -> tuple[int, bytes, bytes]:
        """Return the place of the next string that spells a key, with that key; -1 where there is none."""
        nearest = (-1, b"", b"")
        # a quote at the very beginning ends the string that went before, if there is one
        first = at + 1 if self._in_string else at
        for name, key in self._names:
            place = data.find(name, first)
            while place > at and data[place - 1] == 0x5C:
                place = data.find(name, place + 1)
            if place >= 0 and (nearest[0] < 0 or place < nearest[0]):
                nearest = (place, name, key)
        return nearest

    def _pass_rest(self, part: bytes) -> None:
        """Pass all that is there, but for the beginning of a string that may become a key."""
        last = part.rfind(b'"', max(0, len(part) - self._longest))
        if last >= 0 and b"\\" not in part[max(0, last - 1) :]:
            self._pass(part[:last])
            if not self._in_string:
                self._carry = part[last:]
                return
            part = part[last:]
        self._pass(part)

    def _pass(self, part: bytes) -> None:
        """Pass what holds no key: keep account of strings and depth."""
        if not part:
            return
        if self._escaped:
            self._escaped = False
            part = part[1:]
        ends_escaped = False
        if b"\\" in part:
            ends_escaped = (len(part) - len(part.rstrip(b"\\"))) % 2 == 1
            part = part.replace(b"\\\\", b"").replace(b'\\"', b"")
        # what stands between the quotes is by turns outside and inside of strings
        pieces = part.split(b'"')
        outside = pieces[1::2] if self._in_string else pieces[::2]
        if len(pieces) % 2 == 0:
            self._in_string = not self._in_string
        self._escaped = ends_escaped and self._in_string
        if outside:
            count = b"".join(outside).count
            self._depth += count(b"{") + count(b"[") - count(b"}") - count(b"]")

    def _capture(self, data: bytes, at: int) -> int:
        end = _value_end(data, at)
        key, self._capturing = self._capturing, None
        if end >= 0 and key is not None:
            self.found[key] = data[at:end].strip()
            return end
        if len(data) - at < MAX_VALUE:
            self._carry = data[at:]
            self._capturing = key
            return len(data)
        return at


def _value_end(data: bytes, at: int) -> int:
    """Return where the value ends that begins at `at`, or -1 where that is not to be seen yet."""
    space = _SPACE.match(data, at)
    start = at if space is None else space.end()
    if start == len(data):
        return -1
    if data[start : start + 1] in (b"{", b"[", b'"'):
        depth = 0
        whole = _WHOLE.match(data, start)
        for piece in _PIECE.finditer(data, start, start if whole is None else whole.end()):
            first = data[piece.start()]
            if first in b"{[":
                depth += 1
            elif first in b"}]":
                depth -= 1
            if depth == 0:
                return piece.end()
        return -1
    scalar = _SCALAR.match(data, start)
    return -1 if scalar is None else scalar.end()
