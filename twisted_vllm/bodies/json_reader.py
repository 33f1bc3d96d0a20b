"""Reads a large JSON body piece by piece, in bounded steps, and keeps only what decisions need.

It reads as ``json.loads`` does, which vLLM uses; what it refuses as malformed, that refuses too. Objects, lists and
short values are built; of a long text and of a list of numbers only the beginning is kept. A text is skipped at the
speed of C, so that only the number of values costs time, and that is limited.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from typing import Any

from twisted_vllm.bodies.long_text import ESCAPE_SIZE, LongText, check_escapes, end_of_part, is_whole
from twisted_vllm.bodies.members import MAX_MEMBERS, Member
from twisted_vllm.errors import BodyTooComplex
from twisted_vllm.field_policy.media import Repeated
from twisted_vllm.field_policy.shortened import (
    KEPT,
    KEPT_AT_TOP,
    KEPT_NUMBERS,
    MOST_KEPT,
    ShortenedList,
    decoded,
)

#: objects, lists, texts and other values of a large body; numbers of a list in a row are one. The largest real requests
#: have a tenth
MAX_VALUES = 100_000
#: levels of its objects and lists. vLLM's own parser stops at about 1,000
MAX_DEPTH = 200
#: bytes of one key, and of all keys together
MAX_KEY = 1_024
MAX_KEYS = 4_194_304
#: bytes of one number
MAX_NUMBER_SIZE = 4_300

#: values in one step, which takes at most some 3 ms
STEP = 500
#: bytes that are looked at together
_WINDOW = 65_536
#: bytes of a list of numbers that are looked at together
_NUMBERS = 16_384
#: digits, and kept numbers, that cost as much as one value
_DIGITS_PER_VALUE = 32
_NUMBERS_PER_VALUE = 4
_WS = rb"[ \t\n\r]*+"
_INTEGER = rb"-?(?:0|[1-9][0-9]{0,17}+)(?=[ \t\n\r,}\]])"
_SIMPLE = rb'(?:"(?P<text>[^"\\]{0,%d}+)"|(?P<literal>%b|true|false|null)|(?P<bracket>[\[{]))%b(?P<after>[,}\]]?)' % (
    KEPT,
    _INTEGER,
    _WS,
)
_quick_member = re.compile(rb'"([^"\\]{0,64}+)"%b:%b%b' % (_WS, _WS, _SIMPLE)).match
_quick_value = re.compile(_SIMPLE).match
# up to the beginning of a text that is not short
_long_member = re.compile(rb'"([^"\\]{0,64}+)"%b:%b"' % (_WS, _WS)).match
_whitespace = re.compile(_WS).match
_key = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"', re.DOTALL).match
_numbers = re.compile(rb"(?:-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][-+]?+[0-9]++)?+%b,%b)++" % (_WS, _WS)).match
_literal = re.compile(rb"[-+.0-9A-Za-z]*+").match
_scalar = re.compile(
    rb"(-?(?:0|[1-9][0-9]*+))((?:\.[0-9]++)?+(?:[eE][-+]?+[0-9]++)?+)|(true|false|null|NaN|-?Infinity)"
).fullmatch
_LITERALS = {
    b"true": True,
    b"false": False,
    b"null": None,
    b"NaN": float("nan"),
    b"Infinity": float("inf"),
    b"-Infinity": -float("inf"),
}

# what may come next
_START, _FIRST_KEY, _KEY, _COLON, _FIRST_ITEM, _VALUE, _AFTER, _END, _TEXT = range(9)
_QUOTE, _COMMA, _COLON_BYTE, _CLOSE_LIST, _OPEN, _CLOSE, _MINUS, _ZERO, _NINE, _SPACE = b'",:]{}-09 '
_WAIT = -1


class MalformedJson(ValueError):
    """The body is not one JSON object.

    Attributes:
        certain: whether ``json.loads`` is certain to refuse it, or to return no object.
    """

    def __init__(self, reason: str, *, certain: bool) -> None:
        super().__init__(reason)
        self.certain = certain


class JsonReader:
    """Reads one body.

    Attributes:
        members: the members at its top level, in order, repeated ones included; their offsets are in bytes. A key that
            an inner object repeats has the value `Repeated`.
        opened: the offset just after the brace that begins it.
        depth: the levels of its objects and lists.
        has_half: whether a text holds half a pair of surrogates.
        commas: all its commas.
        media: the media in it: long texts in base64.
        media_size: their size in bytes.
    """

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        """Make a reader.

        Args:
            read: returns the bytes of the body between two offsets, for what is looked at again.
        """
        self.members: list[Member] = []
        self.opened = self.depth = self.commas = self.media = self.media_size = 0
        self.has_half = False
        self._read = read
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._is_cut = False
        self._begin = b""
        # the bytes that are not read yet, the offset of the first, and how many of them were read
        self._window = b""
        self._base = self._at = 0
        self._state = _START
        self._values = self._keys_size = 0
        # The open objects and lists, and the key of each object's member. The outermost object is not built.
        self._stack: list[Any] = []
        self._keys: list[str] = []
        self._key = ""
        self._value_start = 0
        self._text = LongText(0, 0, 0)
        self._room = 0

    def feed(self, data: bytes) -> Iterator[None]:
        """Read a piece; yields after each bounded step.

        Raises:
            MalformedJson: the body is not one JSON object.
            BodyTooComplex: it has too many values, or is nested too deeply.
        """
        for offset in range(0, len(data), _WINDOW):
            self._take(data[offset : offset + _WINDOW])
            while self._advance():
                yield
            if offset + _WINDOW < len(data):
                yield

    def finish(self) -> None:
        """End the body.

        Raises:
            MalformedJson: it is not complete.
        """
        if self._is_cut:
            raise MalformedJson("it is not valid UTF-8", certain=False)
        if self._state != _END:
            raise self._malformed()

    # pieces

    def _take(self, data: bytes) -> None:
        if len(self._begin) < 4:
            self._begin += data[:4]
        if self._is_cut or not data.isascii():
            try:
                self._decoder.decode(data)
            except UnicodeDecodeError:
                raise MalformedJson("it is not valid UTF-8", certain=False) from None
            self._is_cut = bool(self._decoder.getstate()[0])
        self.commas += data.count(b",")
        self._base += self._at
        self._window = self._window[self._at :] + data if self._at < len(self._window) else data
        self._at = 0

    def _malformed(self) -> MalformedJson:
        # other encodings begin with a mark, or with a NUL among the first four bytes (RFC 4627 §3)
        begin = self._begin[:4]
        certain = b"\0" not in begin and begin[:1] not in (b"\xef", b"\xff", b"\xfe")
        return MalformedJson("the body is not one valid JSON object", certain=certain)

    def _advance(self) -> bool:
        """Take one step; return whether more can be done before the next piece."""
        window = self._window
        at, end = self._at, len(window)
        self._room = STEP
        while at < end:
            if self._room <= 0:
                self._at = at
                return True
            self._room -= 1
            if self._state != _TEXT and window[at] <= _SPACE:
                found = _whitespace(window, at)
                at = at if found is None else found.end()
                if at == end:
                    break
            following = _READERS[self._state](self, window, at)
            if following < 0:
                # the rest is the beginning of something
                break
            at = following
        self._at = at
        return False

    # Each of these reads what begins at an offset of the window, and returns the offset after it, or `_WAIT`.

    def _read_start(self, window: bytes, at: int) -> int:
        if window[at] != _OPEN:
            raise self._malformed()
        self.opened = self._base + at + 1
        self._stack.append(None)
        self.depth = 1
        self._state = _FIRST_KEY
        return at + 1

    def _read_key(self, window: bytes, at: int) -> int:
        found = _quick_member(window, at)
        if found is not None:
            key = found[1]
            self._set_key(str(key, "utf-8"), len(key))
            return self._take_quick(found)
        found = _long_member(window, at)
        if found is not None:
            key = found[1]
            self._set_key(str(key, "utf-8"), len(key))
            return self._begin_text(found.end())
        if window[at] == _CLOSE and self._state == _FIRST_KEY:
            return self._close(at)
        found = _key(window, at)
        if found is None:
            if window[at] != _QUOTE:
                raise self._malformed()
            if len(window) - at > MAX_KEY:
                raise _too_long_key()
            return _WAIT
        self._set_key(self._short_text(found[1]), len(found[1]))
        self._state = _COLON
        return found.end()

    def _read_colon(self, window: bytes, at: int) -> int:
        if window[at] != _COLON_BYTE:
            raise self._malformed()
        self._state = _VALUE
        return at + 1

    def _read_value(self, window: bytes, at: int) -> int:
        byte = window[at]
        if byte == _CLOSE_LIST and self._state == _FIRST_ITEM:
            return self._close(at)
        if (byte == _MINUS or _ZERO <= byte <= _NINE) and isinstance(self._stack[-1], list):
            found = _numbers(window, at, at + _NUMBERS)
            if found is not None:
                self._take_numbers(found[0])
                self._state = _VALUE
                return found.end()
        found = _quick_value(window, at)
        if found is not None:
            return self._take_quick(found)
        if byte == _QUOTE:
            return self._begin_text(at + 1)
        found = _literal(window, at)
        stop = at if found is None else found.end()
        if stop - at > MAX_NUMBER_SIZE:
            raise BodyTooComplex(f"The body has a number of more than {MAX_NUMBER_SIZE:,} characters.")
        if stop == len(window):
            return _WAIT
        self._add(self._scalar(window[at:stop]), self._base + at, self._base + stop)
        self._state = _AFTER
        return stop

    def _read_after(self, window: bytes, at: int) -> int:
        byte = window[at]
        if byte != _COMMA:
            return self._close(at)
        self._state = _VALUE if isinstance(self._stack[-1], list) else _KEY
        return at + 1

    def _read_end(self, window: bytes, at: int) -> int:
        raise self._malformed()

    def _begin_text(self, at: int) -> int:
        if len(self._stack) == 1:
            self._text = LongText(self._base + at, KEPT_AT_TOP, KEPT_AT_TOP)
        else:
            self._text = LongText(self._base + at, KEPT, MOST_KEPT)
        self._state = _TEXT
        return at

    def _read_text(self, window: bytes, at: int) -> int:
        text = self._text
        stop = end_of_part(window, at)
        try:
            self._room -= text.extend(window, at, stop)
        except ValueError:
            raise self._malformed() from None
        if window[stop : stop + 1] == b'"':
            value = text.finish(self._read)
            self.media += text.media
            self.media_size += text.media_size
            self.has_half = self.has_half or text.has_half
            self._add(value, text.start - 1, self._base + stop + 1)
            self._state = _AFTER
            return stop + 1
        if stop == at and len(window) - stop >= ESCAPE_SIZE:
            # no escape
            raise self._malformed()
        return stop if stop > at else _WAIT

    # values

    def _take_quick(self, found: re.Match[bytes]) -> int:
        """Take a value in the usual spelling, and what follows it."""
        text, literal, bracket, after = found.group("text", "literal", "bracket", "after")
        if bracket is not None:
            return self._open(bracket, found.start("bracket"))
        if text is not None:
            value: Any = str(text, "utf-8")
            start, end = found.start("text") - 1, found.end("text") + 1
        else:
            value = _LITERALS[literal] if literal in _LITERALS else int(literal)
            start, end = found.span("literal")
        self._add(value, self._base + start, self._base + end)
        if not after:
            self._state = _AFTER
            return found.end()
        return self._read_after(found.string, found.end() - 1)

    def _open(self, bracket: bytes, at: int) -> int:
        """Begin an object or a list."""
        stack = self._stack
        if len(stack) >= MAX_DEPTH:
            raise BodyTooComplex(f"The body is nested too deeply: at most {MAX_DEPTH} levels.")
        self._count()
        if len(stack) == 1:
            self._value_start = self._base + at
        self._keys.append(self._key)
        if bracket == b"{":
            stack.append({})
            self._state = _FIRST_KEY
        else:
            stack.append([])
            self._state = _FIRST_ITEM
        if len(stack) > self.depth:
            self.depth = len(stack)
        return at + 1

    def _close(self, at: int) -> int:
        """End an object or a list."""
        stack = self._stack
        value = stack[-1]
        if self._window[at] != (_CLOSE_LIST if isinstance(value, list) else _CLOSE):
            raise self._malformed()
        stack.pop()
        if not stack:
            self._state = _END
            return at + 1
        self._key = self._keys.pop()
        self._put(value, self._value_start, self._base + at + 1)
        self._state = _AFTER
        return at + 1

    def _count(self) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise BodyTooComplex(
                f"The body has more than {MAX_VALUES:,} values in its objects and lists. Send several requests."
            )

    def _add(self, value: Any, start: int, end: int) -> None:
        self._count()
        self._put(value, start, end)

    def _put(self, value: Any, start: int, end: int) -> None:
        """Put a value into the object or list around it."""
        top = self._stack[-1]
        if top is None:
            if len(self.members) >= MAX_MEMBERS:
                raise BodyTooComplex(f"The body has more than {MAX_MEMBERS:,} members. Send fewer.")
            self.members.append(Member(self._key, value, start, end))
        elif isinstance(top, list):
            top.append(value)
            if isinstance(top, ShortenedList):
                top.size += 1
        else:
            key = self._key
            if key in top:
                before = top[key]
                if isinstance(before, Repeated):
                    before.append(value)
                    return
                value = Repeated((before, value))
            top[key] = value

    def _set_key(self, key: str, size: int) -> None:
        if size > MAX_KEY:
            raise _too_long_key()
        self._keys_size += size
        if self._keys_size > MAX_KEYS:
            raise BodyTooComplex(f"The keys of the body have more than {MAX_KEYS:,} bytes in all.")
        self._key = key

    def _take_numbers(self, run: bytes) -> None:
        """Take numbers of a list, each with its comma."""
        self._count()
        stack = self._stack
        top = stack[-1]
        number = run.count(b",")
        size = top.size if isinstance(top, ShortenedList) else len(top)
        room = KEPT_NUMBERS - len(top)
        if room > 0:
            kept = run.split(b",", room)[:-1]
            self._room -= len(kept) // _NUMBERS_PER_VALUE
            top += map(_number, kept)
        if size + number > len(top):
            if not isinstance(top, ShortenedList):
                stack[-1] = top = ShortenedList(top)
            top.size = size + number
        self._room -= len(run) // _DIGITS_PER_VALUE

    def _scalar(self, spelled: bytes) -> Any:
        found = _scalar(spelled)
        if found is None:
            raise self._malformed()
        if found[3] is not None:
            return _LITERALS[found[3]]
        return float(spelled) if found[2] else int(spelled)

    def _short_text(self, spelled: bytes) -> str:
        """Decode a text, and look whether it has half a pair of surrogates."""
        if b"\\" in spelled:
            try:
                check_escapes(spelled)
            except ValueError:
                raise self._malformed() from None
        text = decoded(spelled)
        self.has_half = self.has_half or not is_whole(text)
        return text


#: by what may come next
_READERS: tuple[Callable[[JsonReader, bytes, int], int], ...] = (
    *(JsonReader._read_start, JsonReader._read_key, JsonReader._read_key, JsonReader._read_colon),
    *(JsonReader._read_value, JsonReader._read_value, JsonReader._read_after, JsonReader._read_end),
    JsonReader._read_text,
)


def _number(spelled: bytes) -> int | float:
    try:
        return int(spelled)
    except ValueError:
        return float(spelled)


def _too_long_key() -> BodyTooComplex:
    return BodyTooComplex(f"The body has a key of more than {MAX_KEY:,} bytes.")
