"""Finds and replaces the model in a multipart form (audio transcription and translation).

vLLM reads forms with Starlette over python-multipart, which is lenient: it skips bytes before the first boundary, pads
boundaries, unquotes in its own way and takes the last of two equal fields. Other parsers differ. So this accepts only
the strict form of RFC 7578 that clients write, which all parsers read alike and in which offsets are unambiguous. The
``multipart`` package reports no offsets; the tests check that both find the same model.

Buffered and streaming forms share one parser: `FormWalker` parses a buffer, and `FormScan` fills the buffer piece by
piece.
"""

from __future__ import annotations

import re
from typing import NoReturn, Protocol

from twisted_vllm.bodies.json_body import ModelField
from twisted_vllm.errors import ModelUndetermined

#: the maximum number of parts; Starlette accepts at most 1,000 fields and 1,000 files
MAX_PARTS = 2000
#: the maximum size of a part's headers together, in bytes; python-multipart accepts 4,224 in a line
MAX_PART_HEAD = 8192
#: the maximum length of a model's name in bytes
MAX_NAME = 4096

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# a token, or a quoted string without escapes
_PARAMETER = re.compile(rb";[ \t]*(" + _TOKEN + rb")=(?:(" + _TOKEN + rb')|"([^"\\]*)")[ \t]*')
_HEADER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
# RFC 2046 §5.1.1, without the space
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=?-]{1,70}")

# what the parser expects next; integers, because an enum takes 17 µs instead of 13 for a small form
_OPENING, _AFTER_DELIMITER, _HEAD, _CONTENT, _MODEL, _EPILOGUE = range(6)


def find_model_in_form(body: bytes, content_type: bytes, observer: FormObserver | None = None) -> ModelField | None:
    """Return the form's model (with the offsets of the field's content), or None if it has no such field.

    Args:
        body: the whole form.
        content_type: the request's ``Content-Type``, which holds the boundary.
        observer: observes the parts.

    Raises:
        ModelUndetermined: the form is not strict RFC 7578, or its ``model`` is repeated, a file or not UTF-8.
    """
    walker = FormWalker(content_type, observer)
    walker.walk(body, 0)
    if walker.model is not None:
        walker.walk(body, walker.model.end)
    walker.finish()
    return walker.model


def rename_in_form(body: bytes, field: ModelField, new: str) -> bytes:
    """Return `body` with `new` as its model; every other byte stays, even the field's own ``Content-Length``.

    RFC 7578 §4.8 requires receivers to ignore that header, and python-multipart does.

    Raises:
        ModelUndetermined: `new` contains a line break, so that it could end the field.
    """
    return body[: field.start] + content_for(new) + body[field.end :]


def insert_in_form(body: bytes, content_type: bytes, name: str) -> tuple[bytes, ModelField]:
    """Return a form with a field "model" in front, and this field.

    Args:
        body: a strict form without the field.
        content_type: the request's ``Content-Type``.
        name: the model's name.

    Raises:
        ModelUndetermined: the name contains a line break, so that it could end the field.
    """
    part = part_for(content_type, name)
    end = len(part) - len(b"\r\n")
    return part + body, ModelField(name, end - len(content_for(name)), end)


def part_for(content_type: bytes, name: str) -> bytes:
    """Return a part with the field "model", to stand in front of a form.

    Raises:
        ModelUndetermined: the name contains a line break, or ``Content-Type`` has no valid boundary.
    """
    return b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n' % (
        _boundary(content_type),
        content_for(name),
    )


def content_for(name: str) -> bytes:
    """Return the content of a field "model" with this name.

    Raises:
        ModelUndetermined: it contains a line break, so that it could end the field.
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
        """A part with this field name begins."""

    def content(self, data: bytes, start: int, end: int) -> None:
        """A piece of its content arrived: `data` from `start` to `end`. Not called for the field "model"."""


class FormWalker:
    """Parses a form in a buffer, which may not contain all of it yet.

    Attributes:
        model: the field "model", with its offsets in the buffer that contained its end; None before.
    """

    __slots__ = ("_delimiter", "_epilogue", "_model_headers", "_observer", "_parts", "_state", "model")

    def __init__(self, content_type: bytes, observer: FormObserver | None = None) -> None:
        """Start to parse.

        Args:
            content_type: the request's ``Content-Type``.
            observer: observes the parts.

        Raises:
            ModelUndetermined: it has no valid boundary (RFC 2046).
        """
        self.model: ModelField | None = None
        self._observer = observer
        self._delimiter = b"\r\n--" + _boundary(content_type)
        self._state = _OPENING
        self._model_headers: dict[bytes, bytes] = {}
        self._parts = 0
        self._epilogue = b""

    def walk(self, data: bytes, offset: int) -> int:
        """Parse `data` from `offset`; return the offset of the first unparsed byte.

        It stops at the content of the field "model" once that is complete; continue at `model.end`.

        Raises:
            ModelUndetermined: the form is ambiguous.
        """
        delimiter = self._delimiter
        while True:
            state = self._state
            if state == _CONTENT:
                end = data.find(delimiter, offset)
                # exclude a possible beginning of a delimiter
                safe = len(data) - len(delimiter) + 1 if end < 0 else end
                if safe > offset:
                    if self._observer is not None:
                        self._observer.content(data, offset, safe)
                    offset = safe
                if end < 0:
                    return offset
                self._state = _AFTER_DELIMITER
                offset = end + len(delimiter)
            elif state == _HEAD:
                end = data.find(b"\r\n\r\n", offset, offset + MAX_PART_HEAD)
                if end < 0:
                    if len(data) - offset >= MAX_PART_HEAD:
                        refuse("a part has too long a head")
                    return offset
                self._begin_part(data[offset:end])
                offset = end + 4
            elif state == _AFTER_DELIMITER:
                if len(data) - offset < 2:
                    return offset
                self._take_delimiter(data[offset : offset + 2])
                offset += 2
            elif state == _MODEL:
                end = data.find(delimiter, offset)
                if end >= 0:
                    self.model = ModelField(_model_name(self._model_headers, data[offset:end]), offset, end)
                    self._state = _CONTENT
                elif len(data) - offset > MAX_NAME + len(delimiter):
                    refuse("the model's name is too long")
                return offset
            elif state == _OPENING:
                opening = delimiter[2:]
                if not opening.startswith(data[: len(opening)]):
                    refuse("it does not begin with its boundary")
                if len(data) < len(opening):
                    return offset
                self._state = _AFTER_DELIMITER
                offset = len(opening)
            else:
                self._epilogue += data[offset : offset + 3]
                if not b"\r\n".startswith(self._epilogue):
                    refuse("something follows its last boundary")
                return len(data)

    def finish(self) -> None:
        """Check that the form has ended.

        Raises:
            ModelUndetermined: it is incomplete.
        """
        if self._state != _EPILOGUE or self._epilogue == b"\r":
            refuse("a part has no end")

    def _take_delimiter(self, mark: bytes) -> None:
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
    """Parses a form that arrives in pieces, and releases only bytes that were parsed.

    So a part with a second model is never forwarded.

    Attributes:
        model: the content of the field "model", once it is complete.
    """

    def __init__(self, content_type: bytes, observer: FormObserver | None = None) -> None:
        """Start to parse.

        Args:
            content_type: the request's ``Content-Type``.
            observer: observes the parts.

        Raises:
            ModelUndetermined: it has no valid boundary (RFC 2046).
        """
        self.model: str | None = None
        self._walker = FormWalker(content_type, observer)
        self._unscanned = b""

    def feed(self, data: bytes) -> bytes:
        """Take the next piece, and return the bytes that were parsed since the last call.

        They exclude the content of the field "model". The call that sets `model` returns the bytes before that content;
        the next call continues after it.

        Raises:
            ModelUndetermined: the form is ambiguous. The bytes that were not returned are in `unscanned`.
        """
        data = self._unscanned = self._unscanned + data if self._unscanned else data
        walker = self._walker
        scanned = walker.walk(data, 0)
        if self.model is None and walker.model is not None:
            self.model = walker.model.name
            self._unscanned = data[walker.model.end :]
        else:
            self._unscanned = data[scanned:]
        return data[:scanned]

    @property
    def unscanned(self) -> bytes:
        """The bytes that were fed and not returned, without the content of the field "model"."""
        return self._unscanned

    def finish(self) -> None:
        """Check that the form has ended.

        Raises:
            ModelUndetermined: it is incomplete.
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
    """Split ``value; name=x; name="y"``; refuse anything else, and repeated parameters."""
    value = header.partition(b";")[0]
    parameters: dict[bytes, bytes] = {}
    offset = len(value)
    while offset < len(header):
        found = _PARAMETER.match(header, offset)
        if found is None or (name := found[1].lower()) in parameters:
            refuse("a header's parameters can be read in more than one way")
        parameters[name] = found[2] if found[2] is not None else found[3]
        offset = found.end()
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
    # older versions of python-multipart join ``name*0`` and ``name*1`` (RFC 2231)
    if b"%" in name or name == b"_charset_" or any(each.startswith(b"name*") for each in parameters):
        refuse("a part's name can be read in more than one way")
    return parameters


def _model_name(headers: dict[bytes, bytes], content: bytes) -> str:
    """Return the content of the field "model" as text; refuse headers that could change how it is decoded.

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
