"""Which model a JSON body names, and the same body with another name.

vLLM 0.32 reads a body with Starlette's ``Request.json``, which is Python's ``json.loads``: the last of two equal keys
wins, keys may be spelt with escapes, and UTF-16 is understood. A permission must not depend on which of two readings
the server takes, so a body that is not one JSON object in UTF-8 with at most one ``model``, a string, is refused.
"""

from __future__ import annotations

import json
import re
from typing import NoReturn

import msgspec

from twisted_vllm.errors import ModelUndetermined


class ModelField(msgspec.Struct, frozen=True):
    """Where a body names its model.

    Attributes:
        name: the model's name, decoded.
        start: the offset in bytes of what spells the name (in JSON the opening quote).
        end: the offset in bytes just after it.
    """

    name: str
    start: int
    end: int


class _Body(msgspec.Struct):
    model: str | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Body).decode
_KEY = b'"model"'
# every way to spell the key with escapes has this in it: \u006d \u006f \u0064 \u0065 \u006c
_ESCAPED_LETTER = b"\\u006"
_PLAIN_FIELD = re.compile(rb'"model"[ \t\n\r]*:[ \t\n\r]*("[^"\\]*")')

_scan_value = json.JSONDecoder().raw_decode
_WHITESPACE = re.compile(r"[ \t\n\r]*")


def find_model(body: bytes) -> ModelField | None:
    """Return where `body` names its model, or None where it is a JSON object without ``model``.

    Raises:
        ModelUndetermined: it is not one JSON object in UTF-8 without a byte order mark, or its ``model`` is there twice
            or is not a string.
    """
    first = body.find(_KEY)
    if first >= 0 and body.find(_KEY, first + 1) >= 0:
        return _find_by_scanning(body)
    # most bodies have no backslash at all, which is a quicker search than the whole escape
    if b"\\" in body and _ESCAPED_LETTER in body:
        return _find_by_scanning(body)
    try:
        model = _decode(body).model
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # Python's parser has the last word: it takes NaN and lone surrogates, and says what is wrong
        return _find_by_scanning(body)
    _check_utf8(body)
    if model is msgspec.UNSET:
        return None
    # the key is there and spelt plainly, and what spells it is there once: so this is where
    found = _PLAIN_FIELD.match(body, first)
    if found is None:
        return _find_by_scanning(body)
    return ModelField(model, found.start(1), found.end(1))


def rename(body: bytes, field: ModelField, new: str) -> bytes:
    """Return `body` with `new` as its model; every other byte stays."""
    return body[: field.start] + msgspec.json.encode(new) + body[field.end :]


def _check_utf8(body: bytes) -> None:
    if not body.isascii():
        _decode_utf8(body)


def _decode_utf8(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        _refuse("it is not valid UTF-8")


def _refuse(reason: str) -> NoReturn:
    raise ModelUndetermined(
        f"The gateway cannot tell which model this request is for: {reason}. "
        'Send one JSON object in UTF-8 with one "model", a string.',
        param="model",
    )


def _find_by_scanning(body: bytes) -> ModelField | None:
    """Walk the top level with the parser of ``json.loads`` itself, so that both see the same."""
    text = _decode_utf8(body)
    try:
        found = _scan_object(text)
    except ValueError:
        _refuse("the body is not valid JSON")
    except RecursionError:
        _refuse("the body is nested too deeply")
    if found is None:
        return None
    name, start, end = found
    if not body.isascii():
        start, end = len(text[:start].encode()), len(text[:end].encode())
    return ModelField(name, start, end)


def _scan_object(text: str) -> tuple[str, int, int] | None:
    at = _after_whitespace(text, 0)
    if text[at : at + 1] != "{":
        _refuse("the body is not a JSON object")
    at = _after_whitespace(text, at + 1)
    found = None
    if text[at : at + 1] == "}":
        at += 1
    else:
        while True:
            if text[at : at + 1] != '"':
                raise ValueError("no key")
            key, at = _scan_value(text, at)
            at = _after_whitespace(text, at)
            if text[at : at + 1] != ":":
                raise ValueError("no colon")
            start = _after_whitespace(text, at + 1)
            value, at = _scan_value(text, start)
            if key == "model":
                if found is not None:
                    _refuse('"model" is there more than once')
                found = (_checked_name(value), start, at)
            at = _after_whitespace(text, at)
            if text[at : at + 1] == "}":
                at += 1
                break
            if text[at : at + 1] != ",":
                raise ValueError("no comma")
            at = _after_whitespace(text, at + 1)
    if _after_whitespace(text, at) != len(text):
        raise ValueError("more after the object")
    return found


def _checked_name(value: object) -> str:
    if not isinstance(value, str):
        _refuse('"model" is not a string')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        _refuse('"model" holds half a character')
    return value


def _after_whitespace(text: str, at: int) -> int:
    found = _WHITESPACE.match(text, at)
    return at if found is None else found.end()
