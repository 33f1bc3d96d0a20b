"""Which model a multipart form names (audio transcription and translation), and the same form with another name.

vLLM reads forms with Starlette over python-multipart, which is lenient: it skips what stands before the first boundary,
pads boundaries, unquotes in its own way and takes the last of two equal fields. What other parsers make of such forms
differs. So this reads only the strict form of RFC 7578 that clients write, where all of them agree and where the
offsets are plain, and refuses the rest. The ``multipart`` package tells no offsets; the tests hold both to the same
answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NoReturn

from twisted_vllm.bodies.json_body import ModelField
from twisted_vllm.errors import ModelUndetermined

#: parts in a form; Starlette takes at most 1,000 fields and 1,000 files
MAX_PARTS = 2000
#: bytes of a part's headers together; python-multipart takes 4,224 in a line
MAX_PART_HEAD = 8192

TWICE = '"model" is there more than once'

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# a token, or a quoted string in which nothing is escaped
_PARAMETER = re.compile(rb";[ \t]*(" + _TOKEN + rb")=(?:(" + _TOKEN + rb')|"([^"\\]*)")[ \t]*')
_HEADER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
# RFC 2046 §5.1.1, less the space
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=?-]{1,70}")


def find_model_in_form(body: bytes, content_type: bytes) -> ModelField | None:
    """Return where the form names its model (the offsets of the field's content), or None where it has no such field.

    Args:
        body: the whole form.
        content_type: the request's ``Content-Type``, which holds the boundary.

    Raises:
        ModelUndetermined: the form is not in the strict form of RFC 7578, or its ``model`` is there twice, is a file or
            is not UTF-8.
    """
    found = None
    for head_start, start, end in _parts(body, delimiter_of(content_type)):
        headers = headers_of_model(body[head_start : start - 4])
        if headers is not None:
            if found is not None:
                refuse(TWICE)
            found = ModelField(name_in(headers, body[start:end]), start, end)
    return found


def rename_in_form(body: bytes, field: ModelField, new: str) -> bytes:
    """Return `body` with `new` as its model; every other byte stays, also a ``Content-Length`` of the field's own.

    RFC 7578 §4.8 has receivers ignore that header, and python-multipart does.

    Raises:
        ModelUndetermined: `new` holds a line break, so that it could end the field.
    """
    return body[: field.start] + written(new) + body[field.end :]


def written(name: str) -> bytes:
    """Return the content of a field "model" with this name.

    Raises:
        ModelUndetermined: it holds a line break, so that it could end the field.
    """
    if "\r" in name or "\n" in name:
        refuse("the server's name for the model holds a line break")
    return name.encode("utf-8")


def delimiter_of(content_type: bytes) -> bytes:
    """Return what ends each part of a form with this ``Content-Type``."""
    return b"\r\n--" + _boundary(content_type)


def headers_of_model(head: bytes) -> dict[bytes, bytes] | None:
    """Return the headers of a part, by lower-case name, if it is the field "model"; None if it is another.

    Args:
        head: the part's head, without the empty line that ends it.
    """
    headers = _headers(head)
    parameters = _parameters_of_part(headers)
    if parameters[b"name"] != b"model":
        return None
    if parameters.keys() != {b"name"}:
        refuse('"model" is a file')
    return headers


def field_name(head: bytes) -> bytes:
    """Return the name of the field that a part with this head is."""
    return _parameters_of_part(_headers(head))[b"name"]


def name_in(headers: dict[bytes, bytes], content: bytes) -> str:
    """Return the name that the field "model" with these headers has for its content."""
    _check_plain_text(headers, len(content))
    return _name(content)


def refuse(reason: str) -> NoReturn:
    """Say that the model of a form cannot be told."""
    raise ModelUndetermined(
        f"The gateway cannot tell which model this form is for: {reason}. "
        'Send multipart/form-data as RFC 7578 has it, with one field "model".',
        param="model",
    )


def _parameters_of_part(headers: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Return what a part's ``Content-Disposition`` says, a name among it."""
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
    """Split ``value; name=x; name="y"``; whatever is not that is refused, and so is a parameter that comes twice."""
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


def _parts(body: bytes, delimiter: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield for each part where its headers start and where its content starts and ends."""
    opening = delimiter[2:]
    if not body.startswith(opening):
        refuse("it does not begin with its boundary")
    at = len(opening)
    for _ in range(MAX_PARTS + 1):
        mark = body[at : at + 2]
        if mark == b"--":
            if body[at + 2 : at + 5] not in (b"", b"\r\n"):
                refuse("something follows its last boundary")
            return
        if mark != b"\r\n":
            refuse("a line begins with its boundary and goes on")
        head_start = at + 2
        head_end = body.find(b"\r\n\r\n", head_start, head_start + MAX_PART_HEAD)
        end = -1 if head_end < 0 else body.find(delimiter, head_end + 4)
        if end < 0:
            refuse("a part has no end, or too long a head")
        yield head_start, head_end + 4, end
        at = end + len(delimiter)
    refuse("it has too many parts")


def _headers(head: bytes) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n"):
        found = _HEADER.fullmatch(line)
        if found is None or (name := found[1].lower()) in headers:
            refuse("a part's headers are malformed, or one is there twice")
        headers[name] = found[2]
    return headers


def _check_plain_text(headers: dict[bytes, bytes], size: int) -> None:
    """Refuse headers of the field that some reader might decode it by; Starlette reads none of them."""
    for name, value in headers.items():
        if name == b"content-type":
            kind, parameters = _value_and_parameters(value)
            charset = parameters.pop(b"charset", b"utf-8").lower()
            plain = kind == b"text/plain" and not parameters and charset in (b"utf-8", b"utf8", b"us-ascii")
        elif name == b"content-length":
            plain = value == b"%d" % size
        else:
            plain = name == b"content-disposition"
        if not plain:
            refuse('"model" is not plain text in UTF-8')


def _name(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        refuse('"model" is not valid UTF-8')
