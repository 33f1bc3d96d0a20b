"""Reads a JSON body: the model, and the few facts that limits and the ledger need.

vLLM 0.32 reads a body with Starlette's ``Request.json``, which is Python's ``json.loads``: the last of two equal keys
wins, keys may contain escapes, and UTF-16 is accepted. A permission must not depend on an ambiguous body, so a body is
refused unless it is one JSON object in UTF-8 with at most one ``model``, a string. The other facts are estimates, and
follow ``json.loads``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias

import msgspec

from twisted_vllm.api_routes import OUTPUT_LIMITS
from twisted_vllm.errors import ModelUndetermined


class ModelField(msgspec.Struct, frozen=True, gc=False):
    """The model's name in a body, and its position.

    Attributes:
        name: the model's name, decoded.
        start: the byte offset of the name (in JSON, of its opening quote).
        end: the byte offset just after it.
    """

    name: str
    start: int
    end: int


class BodyFacts(msgspec.Struct, frozen=True, gc=False):
    """The facts read from a body.

    Attributes:
        model: its model; None if it names none.
        stream: whether ``stream`` is ``true``; other values that vLLM would accept as true do not count.
        include_usage: whether the client requests the usage of its stream; None if that is ambiguous.
        options: whether it has ``stream_options``.
        max_tokens: the limit of each choice in tokens; None if the client set none.
        choices: the number of requested choices: ``n`` for each prompt.
        end_user: the end user that the client names: ``user``, ``safety_identifier``, or the ``user_id`` of
            ``metadata`` (Anthropic).
        salted: whether it has ``cache_salt``.
        plain: whether no key contains escapes, so that keys can be searched for as bytes.
    """

    model: ModelField | None = None
    stream: bool = False
    include_usage: bool | None = False
    options: bool = False
    max_tokens: int | None = None
    choices: int = 1
    end_user: str | None = None
    salted: bool = False
    plain: bool = False


#: stands for a body that was not read
UNREAD = BodyFacts(include_usage=None)

#: larger counts are ignored
MAX_NUMBER = 2**53

_Number: TypeAlias = int | float | None
_NO_VALUE = msgspec.Raw()


class _Options(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class _Metadata(msgspec.Struct, gc=False):
    user_id: str | None = None


class _Body(msgspec.Struct, gc=False):
    model: str | msgspec.UnsetType = msgspec.UNSET
    stream: bool | None = None
    stream_options: _Options | msgspec.UnsetType | None = msgspec.UNSET
    n: _Number = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: _Metadata | None = None
    cache_salt: str | msgspec.UnsetType | None = msgspec.UNSET
    # a union of Raw and None would be decoded
    prompt: msgspec.Raw = _NO_VALUE
    messages: msgspec.Raw = _NO_VALUE


class _Decoders(dict[tuple[str, ...], Callable[[bytes], Any]]):
    """Decoders of a `_Body` with certain `output_limits`; the table of routes has few different ones."""

    def __missing__(self, output_limits: tuple[str, ...]) -> Callable[[bytes], Any]:
        fields = [(name, _Number, None) for name in output_limits]
        structure = msgspec.defstruct("_LimitedBody", fields, bases=(_Body,), gc=False)
        decode = self[output_limits] = msgspec.json.Decoder(structure).decode
        return decode


_DECODERS = _Decoders()
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_KEY = b'"model"'
# an escaped letter or underscore of a key
_ESCAPED_LETTER = re.compile(rb"\\u00(?:[67]|5[fF])")
_PLAIN_FIELD = re.compile(rb'"model"[ \t\n\r]*:[ \t\n\r]*("[^"\\]*")')
# several prompts, or several conversations
_SEVERAL = re.compile(rb'\[[ \t\n\r]*["\[]')

# the parser of `json.loads` itself
_scan_value = json.JSONDecoder().raw_decode
_WHITESPACE = re.compile(r"[ \t\n\r]*")


def read_body(body: bytes, output_limits: tuple[str, ...] = OUTPUT_LIMITS) -> BodyFacts:
    """Return the facts in a body.

    Args:
        body: the body.
        output_limits: the members that limit the tokens of one choice, as in `VllmRoute.output_limits`.

    Raises:
        ModelUndetermined: it is not one JSON object in UTF-8 without a byte order mark, or its ``model`` is repeated or
            not a string.
    """
    first = body.find(_KEY)
    if body.rfind(_KEY) != first:
        return _read_by_scanning(body, output_limits)
    # most bodies have no backslash, and that check is faster
    if b"\\" in body and _ESCAPED_LETTER.search(body) is not None:
        return _read_by_scanning(body, output_limits)
    try:
        found = _DECODERS[output_limits](body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # Python's parser decides: it accepts NaN and lone surrogates, and reports what is wrong
        return _read_by_scanning(body, output_limits)
    if not body.isascii():
        _decode_utf8(body)
    field = None
    if found.model is not msgspec.UNSET:
        # the key has no escapes and occurs once, so this is its position
        position = _PLAIN_FIELD.match(body, first)
        if position is None:
            return _read_by_scanning(body, output_limits)
        field = ModelField(found.model, position.start(1), position.end(1))
    options = found.stream_options
    several = found.prompt if found.messages is _NO_VALUE else found.messages
    return BodyFacts(
        field,
        found.stream is True,
        bool(options.include_usage) if isinstance(options, _Options) else False,
        options is not msgspec.UNSET,
        _limit(found, output_limits),
        (1 if found.n is None else _number(found.n) or 1) * (1 if several is _NO_VALUE else _count(several)),
        found.user or found.safety_identifier or (None if found.metadata is None else found.metadata.user_id) or None,
        found.cache_salt is not msgspec.UNSET,
        plain=True,
    )


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


def _limit(found: Any, output_limits: tuple[str, ...]) -> int | None:
    for name in output_limits:
        value = getattr(found, name)
        if type(value) is int and 0 < value < MAX_NUMBER:
            return value
        if value is not None and (number := _number(value)) is not None:
            return number
    return None


def _number(value: object) -> int | None:
    """Return a count that vLLM would accept, a whole number above 0; otherwise None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < MAX_NUMBER:
        return None
    return int(value) if int(value) == value else None


def _count(several: msgspec.Raw) -> int:
    return len(_decode_list(several)) if _SEVERAL.match(several) is not None else 1


def _read_by_scanning(body: bytes, output_limits: tuple[str, ...]) -> BodyFacts:
    """Read the top level with the parser of ``json.loads``, so that the gateway and vLLM agree."""
    text = _decode_utf8(body)
    try:
        found = members_of(text)
    except ValueError:
        _refuse("the body is not one valid JSON object")
    except RecursionError:
        _refuse("the body is nested too deeply")
    try:
        model = only(found, "model")
    except LookupError:
        _refuse('"model" is there more than once')
    field = None
    if model is not None:
        field = ModelField(_checked_name(model.value), byte_offset(text, model.start), byte_offset(text, model.end))
    return _facts({member.key: member.value for member in found}, field, output_limits)


def _facts(values: Mapping[str, Any], field: ModelField | None, output_limits: tuple[str, ...]) -> BodyFacts:
    options = values.get("stream_options")
    include_usage: object = options.get("include_usage") if isinstance(options, dict) else options
    metadata = values.get("metadata")
    users = (
        values.get("user"),
        values.get("safety_identifier"),
        metadata.get("user_id") if isinstance(metadata, dict) else None,
    )
    several = values.get("prompt") if values.get("messages") is None else values["messages"]
    prompts = len(several) if isinstance(several, list) and several and isinstance(several[0], (str, list)) else 1
    limits = (_number(values.get(name)) for name in output_limits)
    return BodyFacts(
        field,
        values.get("stream") is True,
        bool(include_usage) if include_usage is None or isinstance(include_usage, bool) else None,
        "stream_options" in values,
        next((limit for limit in limits if limit is not None), None),
        (_number(values.get("n")) or 1) * prompts,
        next((user for user in users if isinstance(user, str) and user), None),
        "cache_salt" in values,
    )


def _checked_name(value: object) -> str:
    if not isinstance(value, str):
        _refuse('"model" is not a string')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        _refuse('"model" holds half a character')
    return value


class Member(msgspec.Struct, frozen=True):
    """A member of a JSON object.

    Attributes:
        key: its name, decoded.
        value: its value, decoded.
        start: the offset of the value, in characters.
        end: the offset just after it.
    """

    key: str
    value: object
    start: int
    end: int


def members_of(text: str, offset: int = 0, *, whole: bool = True) -> list[Member]:
    """Return the members of the object at `offset`, in order, repeated ones included.

    They are read with the parser of ``json.loads``, which vLLM uses: edits and permissions depend on it, so the gateway
    and vLLM must agree.

    Args:
        text: the JSON.
        offset: the offset of the object, or of whitespace before it.
        whole: whether nothing may follow the object.

    Raises:
        ValueError: it is not a JSON object.
        RecursionError: it is nested too deeply.
    """
    offset = _after_whitespace(text, offset)
    if text[offset : offset + 1] != "{":
        raise ValueError("the body is not a JSON object")
    offset = _after_whitespace(text, offset + 1)
    found: list[Member] = []
    if text[offset : offset + 1] == "}":
        offset += 1
    else:
        while True:
            if text[offset : offset + 1] != '"':
                raise ValueError("no key")
            key, offset = _scan_value(text, offset)
            offset = _after_whitespace(text, offset)
            if text[offset : offset + 1] != ":":
                raise ValueError("no colon")
            start = _after_whitespace(text, offset + 1)
            value, offset = _scan_value(text, start)
            found.append(Member(key, value, start, offset))
            offset = _after_whitespace(text, offset)
            if text[offset : offset + 1] == "}":
                offset += 1
                break
            if text[offset : offset + 1] != ",":
                raise ValueError("no comma")
            offset = _after_whitespace(text, offset + 1)
    if whole and _after_whitespace(text, offset) != len(text):
        raise ValueError("more after the object")
    return found


def only(found: list[Member], key: str) -> Member | None:
    """Return the member with a key, or None if there is none.

    Raises:
        LookupError: the key is repeated.
    """
    same = [member for member in found if member.key == key]
    if len(same) > 1:
        raise LookupError(key)
    return same[0] if same else None


def byte_offset(text: str, offset: int) -> int:
    """Return the byte offset, in UTF-8, of the character at `offset`."""
    return offset if text.isascii() else len(text[:offset].encode())


def _after_whitespace(text: str, offset: int) -> int:
    found = _WHITESPACE.match(text, offset)
    return offset if found is None else found.end()
