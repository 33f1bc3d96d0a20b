"""Parses server-sent events (WHATWG HTML §9.2.6) as they are relayed, with bounded memory.

JSON contains no raw line break, so a user's text can neither end an event nor begin or name one.
"""

from __future__ import annotations

import re

from twisted_vllm.usage.readers.document import Document, Shape

#: the maximum length of an event's name in bytes; vLLM's have up to about fifty
MAX_NAME = 200
#: bytes of a line to keep until its field is known
MAX_LINE = 65_536

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def is_lone_event(data: bytes) -> bool:
    """Return whether `data` is one whole event of one line with a JSON object, as vLLM sends them."""
    return data[:7] == b"data: {" and data.find(b"\n") == len(data) - 2 and data[-1] == 10 and data.find(b"\r") < 0


class EventParser:
    """Splits a stream into events.

    Attributes:
        between: whether the stream is between two events.
    """

    def __init__(self, shape: Shape) -> None:
        """Start; `shape` names the values to keep of an event with large data."""
        self.between = True
        self._shape = shape
        self._line: list[bytes] = []
        self._line_size = 0
        self._long = False
        self._long_data = False
        self._after_cr = False
        self._first = True
        self._name = b""
        self._document: Document | None = None

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Take the next piece; return the name (empty if it has none) and the data of each event that it ends."""
        if self._after_cr and data:
            self._after_cr = False
            if data[0] == 10:
                data = data[1:]
        events: list[tuple[bytes, bytes]] = []
        offset = 0
        for found in _LINE_END.finditer(data):
            self._end_line(data[offset : found.start()], events)
            offset = found.end()
        if offset < len(data):
            self._part_of_line(data[offset:])
        elif data and data[-1] == 13:
            self._after_cr = True
        self.between = not (self._line or self._long or self._name or self._document is not None or self._after_cr)
        return events

    def _part_of_line(self, part: bytes) -> None:
        if self._long:
            if self._long_data and self._document is not None:
                self._document.feed(part)
            return
        self._line.append(part)
        self._line_size += len(part)
        if self._line_size > MAX_LINE:
            field, value = _split(self._take_line())
            self._long = True
            self._long_data = field == b"data"
            if self._long_data:
                self._data(value)

    def _end_line(self, end: bytes, events: list[tuple[bytes, bytes]]) -> None:
        if self._long:
            self._part_of_line(end)
            self._long = False
            return
        if self._line:
            self._line.append(end)
            line = self._take_line()
        else:
            line = self._without_mark(end) if self._first else end
        if not line:
            self._end_event(events)
            return
        field, value = _split(line)
        if field == b"data":
            self._data(value)
        elif field == b"event":
            self._name = value[:MAX_NAME]

    def _take_line(self) -> bytes:
        line = b"".join(self._line)
        self._line = []
        self._line_size = 0
        return self._without_mark(line) if self._first else line

    def _without_mark(self, line: bytes) -> bytes:
        self._first = False
        return line.removeprefix(_BYTE_ORDER_MARK)

    def _data(self, value: bytes) -> None:
        if self._document is None:
            self._document = Document(self._shape)
        else:
            self._document.feed(b"\n")
        self._document.feed(value)

    def _end_event(self, events: list[tuple[bytes, bytes]]) -> None:
        name, self._name = self._name, b""
        document, self._document = self._document, None
        if document is not None:
            events.append((name, document.read()))


def _split(line: bytes) -> tuple[bytes, bytes]:
    """Return a line's field and value."""
    field, _, value = line.partition(b":")
    return field, value.removeprefix(b" ")
