"""Which model a multipart form names (audio transcription and translation), and the same form with another name.

vLLM reads forms with Starlette over python-multipart, which is lenient: it skips what is before the first boundary,
pads boundaries, unquotes in its own way and takes the last of two equal fields. Other parsers differ. So this reads
only the strict form of RFC 7578 that clients write, which all of them read alike and in which offsets are plain, and
refuses the rest. The ``multipart`` package reports no offsets; the tests hold both to the same answer.

A form in memory and one that streams are read by the same code: `FormWalker` walks over a buffer, and `FormScan` fills
the buffer piece by piece.
"""

from __future__ import annotations

import re
from typing import NoReturn, Protocol

from twisted_vllm.bodies.json_body import ModelField
from twisted_vllm.errors import ModelUndetermined

#: parts in a form; Starlette takes at most 1,000 fields and 1,000 files
MAX_PARTS = 2000
#: bytes of a part's headers together; python-multipart takes 4,224 in a line
MAX_PART_HEAD = 8192
#: bytes of a model's name that are kept until its end comes
MAX_NAME = 4096

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# a token, or a quoted string in which nothing is escaped
_PARAMETER = re.compile(rb";[ \t]*(" + _TOKEN + rb")=(?:(" + _TOKEN + rb')|"([^"\\]*)")[ \t]*')
_HEADER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
# RFC 2046 §5.1.1, without the space
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=?-]{1,70}")

# what comes next in a form; numbers, as with an enum a small form takes 17 µs in place of 13
_OPENING, _AFTER_DELIMITER, _HEAD, _CONTENT, _MODEL, _EPILOGUE = range(6)


def find_model_in_form(body: bytes, content_type: bytes) -> ModelField | None:
    """Return where the form names its model (the offsets of the field's content), or None if it has no such field.

    Args:
        body: the whole form.
        content_type: the request's ``Content-Type``, which holds the boundary.

    Raises:
        ModelUndetermined: the form is not in the strict form of RFC 7578, or its ``model`` is there twice, is a file or
            is not UTF-8.
    """
    walker = FormWalker(content_type)
    walker.walk(body, 0)
    if walker.model is not None:
        walker.walk(body, walker.model.end)
    walker.finish()
    return walker.model


def rename_in_form(body: bytes, field: ModelField, new: str) -> bytes:
    """Return `body` with `new` as its model; every other byte stays, even a ``Content-Length`` of the field's own.

    RFC 7578 §4.8 has receivers ignore that header, and python-multipart does.

    Raises:
        ModelUndetermined: `new` holds a line break, so that it could end the field.
    """
    return body[: field.start] + content_for(new) + body[field.end :]


def content_for(name: str) -> bytes:
    """Return the content of a field "model" with this name.

    Raises:
        ModelUndetermined: it holds a line break, so that it could end the field.
    """
    if "\r" in name or "\n" in name:
        refuse("the server's name for the model holds a line break")
    return name.encode("utf-8")


def refuse(reason: str) -> NoReturn:
    """Raise `ModelUndetermined`."""
    raise ModelUndetermined(
        f"The gateway cannot tell which model this form is for: {reason}. "
        'Send multipart/form-data as RFC 7578 has it, with one field "model".',
        param="model",
    )


class FormObserver(Protocol):
    """Observes the parts of a form."""

    def part(self, name: bytes) -> None:
        """The part that is the field with this name begins."""

    def content(self, data: bytes, start: int, end: int) -> None:
        """A piece of its content came: `data` from `start` to `end`. Not called for the field "model"."""


class FormWalker:
    """Walks over a form in a buffer, which may not hold all of it yet.

    Attributes:
        model: the field "model", with its offsets in the buffer in which it ended; None before it.
    """

    __slots__ = ("_delimiter", "_epilogue", "_model_headers", "_observer", "_parts", "_state", "model")

    def __init__(self, content_type: bytes, observer: FormObserver | None = None) -> None:
        """Begin.

        Args:
            content_type: the request's ``Content-Type``.
            observer: is told of the parts.

        Raises:
            ModelUndetermined: it does not name a boundary as RFC 2046 has it.
        """
        self.model: ModelField | None = None
        self._observer = observer
        self._delimiter = b"\r\n--" + _boundary(content_type)
        self._state = _OPENING
        self._model_headers: dict[bytes, bytes] = {}
        self._parts = 0
        self._epilogue = b""

    def walk(self, data: bytes, at: int) -> int:
        """Judge `data` from `at` on, and return up to where: to the beginning of what must come whole.

        It stops at the content of the field "model" once that is whole; `model` then tells where to continue.

        Raises:
            ModelUndetermined: the form can be read in more than one way.
        """
        delimiter = self._delimiter
        while True:
            state = self._state
            if state == _CONTENT:
                end = data.find(delimiter, at)
                # all but what may be the beginning of a delimiter
                safe = len(data) - len(delimiter) + 1 if end < 0 else end
                if safe > at:
                    if self._observer is not None:
                        self._observer.content(data, at, safe)
                    at = safe
                if end < 0:
                    return at
                self._state = _AFTER_DELIMITER
                at = end + len(delimiter)
            elif state == _HEAD:
                end = data.find(b"\r\n\r\n", at, at + MAX_PART_HEAD)
                if end < 0:
                    if len(data) - at >= MAX_PART_HEAD:
                        refuse("a part has too long a head")
                    return at
                self._begin_part(data[at:end])
                at = end + 4
            elif state == _AFTER_DELIMITER:
                if len(data) - at < 2:
                    return at
                self._judge_delimiter(data[at : at + 2])
                at += 2
            elif state == _MODEL:
                end = data.find(delimiter, at)
                if end >= 0:
                    self.model = ModelField(_model_name(self._model_headers, data[at:end]), at, end)
                    self._state = _CONTENT
                elif len(data) - at > MAX_NAME + len(delimiter):
                    refuse("the model's name is too long")
                return at
            elif state == _OPENING:
                opening = delimiter[2:]
                if not opening.startswith(data[: len(opening)]):
                    refuse("it does not begin with its boundary")
                if len(data) < len(opening):
                    return at
                self._state = _AFTER_DELIMITER
                at = len(opening)
            else:
                self._epilogue += data[at : at + 3]
                if not b"\r\n".startswith(self._epilogue):
                    refuse("something follows its last boundary")
                return len(data)

    def finish(self) -> None:
        """Check that the form has ended.

        Raises:
            ModelUndetermined: it has no end.
        """
        if self._state != _EPILOGUE or self._epilogue == b"\r":
            refuse("a part has no end")

    def _judge_delimiter(self, mark: bytes) -> None:
        if mark == b"--":
            self._state = _EPILOGUE
        elif mark == b"\r\n":
            self._parts += 1
            if self._parts > MAX_PARTS:
                refuse("it has too many parts")
            self._state = _HEAD
        else:
            refuse("a line begins with its boundary and goes on")

    def _begin_part(self, head: bytes) -> None:
        headers = _headers(head)
        disposition = _disposition(headers)
        if self._observer is not None:
            self._observer.part(disposition[b"name"])
        if disposition[b"name"] != b"model":
            self._state = _CONTENT
        elif disposition.keys() != {b"name"}:
            refuse('"model" is a file')
        elif self.model is not None:
            refuse('"model" is there more than once')
        else:
            self._state = _MODEL
            self._model_headers = headers


class FormScan:
    """Reads a form that comes in pieces; lets nothing of it go before it was judged.

    So a part that would give the form a second model is never passed on.

    Attributes:
        model: the name in the field "model", once that came whole.
    """

    def __init__(self, content_type: bytes, observer: FormObserver | None = None) -> None:
        """Begin.

        Args:
            content_type: the request's ``Content-Type``.
            observer: is told of the parts.

        Raises:
            ModelUndetermined: it does not name a boundary as RFC 2046 has it.
        """
        self.model: str | None = None
        self._walker = FormWalker(content_type, observer)
        self._unjudged = b""

    def feed(self, data: bytes) -> bytes:
        """Take the next piece, and return what was judged since the last call.

        The content of the field "model" is not in it. If a call sets `model`, what that returns ends just before that
        content, and what follows the content is returned from the next call on.

        Raises:
            ModelUndetermined: the form can be read in more than one way. What was not returned is `unscanned`.
        """
        data = self._unjudged = self._unjudged + data if self._unjudged else data
        walker = self._walker
        judged = walker.walk(data, 0)
        if self.model is None and walker.model is not None:
            self.model = walker.model.name
            self._unjudged = data[walker.model.end :]
        else:
            self._unjudged = data[judged:]
        return data[:judged]

    @property
    def unscanned(self) -> bytes:
        """What was fed and not returned, except the content of the field "model"."""
        return self._unjudged

    def finish(self) -> None:
        """Check that the form has ended.

        Raises:
            ModelUndetermined: it has no end.
        """
        self._walker.finish()


def _boundary(content_type: bytes) -> bytes:
    kind, parameters = _value_and_parameters(content_type)
    boundary = parameters.pop(b"boundary", b"")
    charset = parameters.pop(b"charset", b"utf-8").lower()
    if kind != b"multipart/form-data" or parameters or charset not in (b"utf-8", b"utf8"):
        refuse("Content-Type is not plain multipart/form-data")
    if not _BOUNDARY.fullmatch(boundary):
        refuse("Content-Type has no boundary, or one that RFC 2046 does not allow")
    return boundary


def _value_and_parameters(header: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Split ``value; name=x; name="y"``; refuse whatever is not that, and a parameter that is there twice."""
    value = header.partition(b";")[0]
    parameters: dict[bytes, bytes] = {}
    at = len(value)
    while at < len(header):
        found = _PARAMETER.match(header, at)
        if found is None or (name := found[1].lower()) in parameters:
            refuse("a header's parameters can be read in more than one way")
        parameters[name] = found[2] if found[2] is not None else found[3]
        at = found.end()
    return value.strip(b" \t").lower(), parameters


def _headers(head: bytes) -> dict[bytes, bytes]:
    """Return the headers of a part by lower-case name."""
    headers: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n"):
        found = _HEADER.fullmatch(line)
        if found is None or (name := found[1].lower()) in headers:
            refuse("a part's headers are malformed, or one is there twice")
        headers[name] = found[2]
    return headers


def _disposition(headers: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the parameters of a part's ``Content-Disposition``, which has a name."""
    disposition = headers.get(b"content-disposition")
    if disposition is None:
        refuse("a part has no Content-Disposition")
    kind, parameters = _value_and_parameters(disposition)
    name = parameters.get(b"name")
    if kind != b"form-data" or name is None:
        refuse("a part's Content-Disposition is not form-data with a name")
    if b"%" in name or b"name*" in parameters or name == b"_charset_":
        refuse("a part's name can be read in more than one way")
    return parameters


def _model_name(headers: dict[bytes, bytes], content: bytes) -> str:
    """Return the content of the field "model" as text; refuse headers by which a reader might decode it otherwise.

    Starlette reads none of them.
    """
    for name, value in headers.items():
        if name == b"content-type":
            kind, parameters = _value_and_parameters(value)
            charset = parameters.pop(b"charset", b"utf-8").lower()
            plain = kind == b"text/plain" and not parameters and charset in (b"utf-8", b"utf8", b"us-ascii")
        elif name == b"content-length":
            plain = value == b"%d" % len(content)
        else:
            plain = name == b"content-disposition"
        if not plain:
            refuse('"model" is not plain text in UTF-8')
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        refuse('"model" is not valid UTF-8')
