"""Reads an answer as it arrives: whether it is complete, and how many events of a stream came.

Only the last bytes of a body are kept.
"""

from __future__ import annotations

_MAX_HEAD_BYTES = 65_536
_MAX_LINE_BYTES = 4_096
_LAST_EVENT = b"data: [DONE]\n\n"
_ERROR_BYTES = 200


class BadAnswer(Exception):
    """An answer that is not HTTP, not 200, or incomplete; the text says which."""


class EventCounter:
    """Counts the events of a stream in vLLM's form: each ends with an empty line, the last one is ``[DONE]``."""

    __slots__ = ("_count", "_half", "_tail")

    def __init__(self) -> None:
        self._count = 0
        #: whether the last byte was a line end that closed no event yet
        self._half = False
        self._tail = b""

    @property
    def count(self) -> int:
        """The events so far, without the closing ``[DONE]``."""
        return self._count - self.ended

    @property
    def ended(self) -> bool:
        """Whether the last bytes were ``[DONE]``."""
        return self._tail == _LAST_EVENT

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the body."""
        if not piece:
            return
        self._tail = (self._tail + piece[-len(_LAST_EVENT) :])[-len(_LAST_EVENT) :]
        if self._half and piece.startswith(b"\n"):
            self._count += 1
            piece = piece[1:]
        self._count += piece.count(b"\n\n")
        self._half = (len(piece) - len(piece.rstrip(b"\n"))) % 2 == 1


class AnswerReader:
    """Reads one HTTP/1.1 answer that has a length or is chunked.

    Attributes:
        status: the status, 0 until the head was read.
        body_bytes: the bytes of the body so far, without the framing.
        events: counts the events of a stream.
        complete: whether the answer is whole.
        closes: whether the server closes the connection after it.
        beginning: the first bytes of the body, to say what an error was.
    """

    __slots__ = (
        "_chunked",
        "_held",
        "_left",
        "_trailers",
        "beginning",
        "body_bytes",
        "closes",
        "complete",
        "events",
        "status",
    )

    def __init__(self) -> None:
        self.status = 0
        self.body_bytes = 0
        self.events = EventCounter()
        self.complete = False
        self.closes = False
        self.beginning = b""
        self._held = b""
        self._left = 0
        self._chunked = False
        self._trailers = False

    def feed(self, data: bytes) -> None:
        """Take what arrived.

        Raises:
            BadAnswer: it cannot be read, or goes on after the end of the answer.
        """
        if self._held:
            data, self._held = self._held + data, b""
        at = 0
        if not self.status:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._hold(data, _MAX_HEAD_BYTES)
                return
            self._read_head(data[:end])
            at = end + 4
        at = self._read_chunks(data, at) if self._chunked else self._read_plain(data, at)
        if self.complete and at < len(data):
            raise BadAnswer("bytes after the end of the answer")

    def _hold(self, data: bytes, most: int) -> None:
        if len(data) > most:
            raise BadAnswer("a line without an end")
        self._held = data

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        if not first.startswith(b"HTTP/1.") or not first[9:12].isdigit():
            raise BadAnswer("not an HTTP/1.1 answer")
        self.status = int(first[9:12])
        length = None
        for line in lines:
            name, _, value = line.partition(b":")
            match name.lower():
                case b"content-length":
                    length = int(value)
                case b"transfer-encoding":
                    self._chunked = b"chunked" in value.lower()
                case b"connection":
                    self.closes = b"close" in value.lower()
        if not self._chunked:
            if length is None:
                raise BadAnswer("an answer without a length")
            self._left = length

    def _read_plain(self, data: bytes, at: int) -> int:
        taken = min(self._left, len(data) - at)
        self._take(data[at : at + taken] if at or taken < len(data) else data)
        self._left -= taken
        self.complete = not self._left
        return at + taken

    def _read_chunks(self, data: bytes, at: int) -> int:
        """Read on; `_left` is what remains of a chunk, its line end included."""
        size = len(data)
        while at < size and not self.complete:
            if self._left:
                taken = min(self._left, size - at)
                # the last two bytes of a chunk are its line end
                body = min(taken, max(self._left - 2, 0))
                self._take(data[at : at + body])
                self._left -= taken
                at += taken
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                self._hold(data[at:], _MAX_LINE_BYTES)
                return size
            self._read_line(data[at:end])
            at = end + 2
        return at

    def _read_line(self, line: bytes) -> None:
        if self._trailers:
            self.complete = not line
            return
        try:
            length = int(line.partition(b";")[0], 16)
        except ValueError:
            raise BadAnswer("a chunk without a length") from None
        if length:
            self._left = length + 2
        else:
            self._trailers = True

    def _take(self, piece: bytes) -> None:
        if not piece:
            return
        if len(self.beginning) < _ERROR_BYTES:
            self.beginning += piece[: _ERROR_BYTES - len(self.beginning)]
        self.body_bytes += len(piece)
        self.events.feed(piece)
