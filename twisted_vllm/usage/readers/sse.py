"""Parses server-sent events (WHATWG HTML §9.2.6) as they are relayed, with bounded memory.

JSON contains no raw line break, so a user's text can neither end an event nor begin or name one.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from twisted_vllm.usage.readers.document import Document, Shape

#: the maximum length of an event's name in bytes; vLLM's have up to about fifty
MAX_NAME = 200
#: bytes of a line to keep until its field is known
MAX_LINE = 65_536
#: line ends in one piece that is read line by line, which takes up to 12 ms. vLLM's shortest events, of 120 bytes with
#: three lines, have half as many in the 64 KiB that are read from a connection at once, even if each line ends in CRLF.
MAX_LINE_ENDS = 4_096

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


#: what begins with ``data: {`` lies between these two; the comparison takes half the time of one with a slice
LONE_FROM, LONE_TO = b"data: {", b"data: |"


def is_lone_event(data: bytes) -> bool:
    """Return whether `data` is one whole event of one line with a JSON object, as vLLM sends them."""
    return LONE_FROM < data < LONE_TO and data.find(b"\n") == len(data) - 2 and data[-1] == 10 and data.find(b"\r") < 0


#: where a block ends in the fed piece; the event's name (empty if it has none); its data (None if it has none); whether
#: the data is whole, and not only the values that the `Shape` names
Block: TypeAlias = tuple[int, bytes, bytes | None, bool]


class EventParser:
    """Splits a stream into blocks: the lines up to and including a blank line.

    A block with data is an event. Others, such as comments, are none. What follows the last blank line is none either.
    A line ends with LF, CRLF or CR; an LF in the next piece still belongs to the CR before it.

    Attributes:
        between: whether the stream is between two blocks.
        gave_up: whether a piece had more than `MAX_LINE_ENDS`. From then on the stream is not read.
        begun: whether a line has passed. Set it if other code read the first event: only the first line may have a
            byte-order mark.
    """

    begun = False
    gave_up = False
    _inside = False

    def __init__(self, shape: Shape) -> None:
        """Start; `shape` names the values to keep of an event with large data."""
        self.between = True
        self._shape = shape
        self._line = bytearray()
        self._long = False
        self._long_data = False
        self._after_cr = False
        self._name = b""
        self._document: Document | None = None

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Take the next piece; return the name and the data of each event that it ends."""
        return [(name, event) for _, name, event, _ in self.blocks(data) if event is not None]

    def blocks(self, data: bytes) -> list[Block]:
        """Take the next piece; return the blocks that it ends."""
        if self.gave_up:
            return []
        if len(data) > MAX_LINE_ENDS and data.count(b"\n") + data.count(b"\r") > MAX_LINE_ENDS:
            self._give_up()
            return []
        offset = 0
        if self._after_cr and data:
            self._after_cr = False
            if data[0] == 10:
                offset = 1
        blocks: list[Block] = []
        for found in _LINE_END.finditer(data, offset):
            self._end_line(data[offset : found.start()], found.end(), blocks)
            offset = found.end()
        if offset < len(data):
            self._part_of_line(data[offset:])
        elif data and data[-1] == 13:
            self._after_cr = True
        self.between = not (self._inside or self._line or self._long or self._after_cr)
        return blocks

    def _give_up(self) -> None:
        self.gave_up = True
        self.between = False
        self._line = bytearray()
        self._document = None

    def _part_of_line(self, part: bytes) -> None:
        if self._long:
            if self._long_data and self._document is not None:
                self._document.feed(part)
            return
        self._line += part
        if len(self._line) > MAX_LINE:
            field, value = _split(self._take_line())
            self._long = True
            self._long_data = field == b"data"
            if self._long_data:
                self._data(value)

    def _end_line(self, rest: bytes, end: int, blocks: list[Block]) -> None:
        if self._long:
            self._part_of_line(rest)
            self._long = False
            self._inside = True
            return
        if self._line:
            self._line += rest
            line = self._take_line()
        else:
            line = rest if self.begun else self._without_mark(rest)
        if not line:
            self._end_block(end, blocks)
            return
        self._inside = True
        field, value = _split(line)
        if field == b"data":
            self._data(value)
        elif field == b"event":
            self._name = value[:MAX_NAME]

    def _take_line(self) -> bytes:
        line = bytes(self._line)
        self._line.clear()
        return line if self.begun else self._without_mark(line)

    def _without_mark(self, line: bytes) -> bytes:
        self.begun = True
        return line.removeprefix(_BYTE_ORDER_MARK)

    def _data(self, value: bytes) -> None:
        if self._document is None:
            self._document = Document(self._shape)
        else:
            self._document.feed(b"\n")
        self._document.feed(value)

    def _end_block(self, end: int, blocks: list[Block]) -> None:
        name, self._name = self._name, b""
        document, self._document = self._document, None
        self._inside = False
        if document is None:
            blocks.append((end, name, None, True))
        else:
            blocks.append((end, name, document.read(), document.is_whole))


def _split(line: bytes) -> tuple[bytes, bytes]:
    """Return a line's field and value."""
    field, _, value = line.partition(b":")
    return field, value.removeprefix(b" ")
