"""The model of a form that is read as it passes: what `find_model_in_form` says of the whole, said piece by piece."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from twisted_vllm.bodies.multipart import (
    MAX_PART_HEAD,
    MAX_PARTS,
    TWICE,
    delimiter_of,
    headers_of_model,
    name_in,
    refuse,
)

#: bytes of a model's name
MAX_NAME = 4096


class _At(Enum):
    OPENING = auto()
    AFTER_DELIMITER = auto()
    HEAD = auto()
    CONTENT = auto()
    MODEL = auto()
    EPILOGUE = auto()


class PartSink(Protocol):
    """Looks on at the parts of a form."""

    def part(self, head: bytes) -> None:
        """A part begins; this is its head."""

    def content(self, data: bytes, start: int, end: int) -> None:
        """A piece of its content has come: `data` from `start` to `end`. That of the field "model" does not come."""


class FormScan:
    """Reads a form; nothing of it is let go before it has been judged.

    So a part that would give the form a second model is never passed on.

    Attributes:
        model: the name in the field "model", once that has been read whole.
    """

    def __init__(self, content_type: bytes, sink: PartSink | None = None) -> None:
        """Begin.

        Args:
            content_type: the request's ``Content-Type``.
            sink: looks on at the parts.

        Raises:
            ModelUndetermined: it does not name a boundary as RFC 2046 has it.
        """
        self.model: str | None = None
        self._sink = sink
        self._delimiter = delimiter_of(content_type)
        self._at = _At.OPENING
        self._unjudged = b""
        self._model_headers: dict[bytes, bytes] = {}
        self._parts = 0
        self._epilogue = b""

    def feed(self, data: bytes) -> bytes:
        """Take a piece, and return what was judged since the last call.

        The content of the field "model" is not among it. Where `model` is set by a call, what that returns ends just
        before that content, and what follows the content is returned from the next call on.

        Raises:
            ModelUndetermined: the form can be read in more than one way. What was not returned is `unjudged`.
        """
        data = self._unjudged = self._unjudged + data if self._unjudged else data
        judged = 0
        while True:
            if self._at is _At.MODEL:
                if self._read_model(data, judged):
                    return data[:judged]
                break
            following = self._step(data, judged)
            if following < 0:
                break
            judged = following
        self._unjudged = data[judged:]
        return data[:judged]

    @property
    def unjudged(self) -> bytes:
        """What was fed and not returned, the content of the field "model" apart."""
        return self._unjudged

    def finish(self) -> None:
        """Take note that the form has ended.

        Raises:
            ModelUndetermined: it has no end.
        """
        if self._at is not _At.EPILOGUE or self._epilogue == b"\r":
            refuse("a part has no end")

    def _step(self, data: bytes, at: int) -> int:
        """Judge what follows `at`, and return up to where; -1 where more must be seen for that."""
        if self._at is _At.CONTENT:
            end = data.find(self._delimiter, at)
            # all but what may be the beginning of a delimiter
            safe = len(data) - len(self._delimiter) + 1 if end < 0 else end
            if self._sink is not None and safe > at:
                self._sink.content(data, at, safe)
            if end < 0:
                return safe if safe > at else -1
            self._at = _At.AFTER_DELIMITER
            return end + len(self._delimiter)
        if self._at is _At.HEAD:
            return self._judge_head(data, at)
        if self._at is _At.AFTER_DELIMITER:
            return self._judge_delimiter(data[at : at + 2], at)
        if self._at is _At.OPENING:
            opening = self._delimiter[2:]
            if not opening.startswith(data[: len(opening)]):
                refuse("it does not begin with its boundary")
            if len(data) < len(opening):
                return -1
            self._at = _At.AFTER_DELIMITER
            return len(opening)
        if self._at is _At.EPILOGUE and len(data) > at:
            self._epilogue += data[at : at + 3]
            if not b"\r\n".startswith(self._epilogue):
                refuse("something follows its last boundary")
            return len(data)
        return -1

    def _judge_delimiter(self, mark: bytes, at: int) -> int:
        if len(mark) < 2:
            return -1
        if mark == b"--":
            self._at = _At.EPILOGUE
        elif mark == b"\r\n":
            self._parts += 1
            if self._parts > MAX_PARTS:
                refuse("it has too many parts")
            self._at = _At.HEAD
        else:
            refuse("a line begins with its boundary and goes on")
        return at + 2

    def _judge_head(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n\r\n", at, at + MAX_PART_HEAD)
        if end < 0:
            if len(data) - at >= MAX_PART_HEAD:
                refuse("a part has too long a head")
            return -1
        part = data[at:end]
        headers = headers_of_model(part)
        if self._sink is not None:
            self._sink.part(part)
        if headers is None:
            self._at = _At.CONTENT
        elif self.model is not None:
            refuse(TWICE)
        else:
            self._at = _At.MODEL
            self._model_headers = headers
        return end + 4

    def _read_model(self, data: bytes, at: int) -> bool:
        """Read the field's content if it is all there."""
        end = data.find(self._delimiter, at)
        if end < 0:
            if len(data) - at > MAX_NAME + len(self._delimiter):
                refuse("the model's name is too long")
            return False
        self.model = name_in(self._model_headers, data[at:end])
        self._at = _At.CONTENT
        self._unjudged = data[end:]
        return True
