"""What a JSON body asks for: the model, and the few facts that limits and the ledger need.

vLLM 0.32 reads a body with Starlette's ``Request.json``, which is Python's ``json.loads``: the last of two equal keys
wins, keys may be spelt with escapes, and UTF-16 is understood. A permission must not depend on which of two readings
the server takes, so a body that is not one JSON object in UTF-8 with at most one ``model``, a string, is refused.
The other facts are estimates, and follow ``json.loads``.
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
    """Where a body names its model.

    Attributes:
        name: the model's name, decoded.
        start: the offset in bytes of what spells the name (in JSON the opening quote).
        end: the offset in bytes just after it.
    """

    name: str
    start: int
    end: int


class BodyFacts(msgspec.Struct, frozen=True, gc=False):
    """What a body asks for.

    Attributes:
        model: where it names its model; None if it names none.
        stream: whether ``stream`` is ``true``; another spelling of it that vLLM would take does not count.
        include_usage: whether the client asked for the usage of its stream; None if that is not clear.
        options: whether it has ``stream_options``.
        max_tokens: the most tokens that each answer may have; None if the client named no number.
        answers: how many answers it asks for: ``n`` for each of its prompts.
        end_user: the end user that the client names: ``user``, ``safety_identifier``, or the ``user_id`` of
            ``metadata`` (Anthropic).
        salted: whether it has ``cache_salt``.
        plain: whether no key is spelt with escapes, so that keys can be searched for as they are.
    """

    model: ModelField | None = None
    stream: bool = False
    include_usage: bool | None = False
    options: bool = False
    max_tokens: int | None = None
    answers: int = 1
    end_user: str | None = None
    salted: bool = False
    plain: bool = False


#: what is assumed of a body that was not read
UNREAD = BodyFacts(include_usage=None)

#: a larger count is none
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
    """Decoders of a `_Body` with the members of an `output_limits`; the table of routes has few different ones."""

    def __missing__(self, output_limits: tuple[str, ...]) -> Callable[[bytes], Any]:
        fields = [(name, _Number, None) for name in output_limits]
        structure = msgspec.defstruct("_LimitedBody", fields, bases=(_Body,), gc=False)
        decode = self[output_limits] = msgspec.json.Decoder(structure).decode
        return decode


_DECODERS = _Decoders()
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_KEY = b'"model"'
# a letter of a key, or its underscore, spelt with an escape
_ESCAPED_LETTER = re.compile(rb"\\u00(?:[67]|5[fF])")
_PLAIN_FIELD = re.compile(rb'"model"[ \t\n\r]*:[ \t\n\r]*("[^"\\]*")')
# several prompts, or several conversations
_SEVERAL = re.compile(rb'\[[ \t\n\r]*["\[]')

# the parser of `json.loads` itself
_scan_value = json.JSONDecoder().raw_decode
_WHITESPACE = re.compile(r"[ \t\n\r]*")


def read_body(body: bytes, output_limits: tuple[str, ...] = OUTPUT_LIMITS) -> BodyFacts:
    """Return what a body asks for.

    Args:
        body: the body.
        output_limits: the members that limit the tokens of one answer, as in `VllmRoute.output_limits`.

    Raises:
        ModelUndetermined: it is not one JSON object in UTF-8 without a byte order mark, or its ``model`` is there twice
            or is not a string.
    """
    first = body.find(_KEY)
    if body.rfind(_KEY) != first:
        return _read_by_scanning(body, output_limits)
    # most bodies have no backslash, which is found out sooner than that they have no escape
    if b"\\" in body and _ESCAPED_LETTER.search(body) is not None:
        return _read_by_scanning(body, output_limits)
    try:
        found = _DECODERS[output_limits](body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # Python's parser has the last word: it takes NaN and lone surrogates, and tells what is wrong
        return _read_by_scanning(body, output_limits)
    if not body.isascii():
        _decode_utf8(body)
    field = None
    if found.model is not msgspec.UNSET:
        # the key is there, is spelt plainly and occurs once: so this is its place
        place = _PLAIN_FIELD.match(body, first)
        if place is None:
            return _read_by_scanning(body, output_limits)
        field = ModelField(found.model, place.start(1), place.end(1))
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
    """Return a count that vLLM would take as one: a whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < MAX_NUMBER:
        return None
    return int(value) if int(value) == value else None


def _count(several: msgspec.Raw) -> int:
    return len(_decode_list(several)) if _SEVERAL.match(several) is not None else 1


def _read_by_scanning(body: bytes, output_limits: tuple[str, ...]) -> BodyFacts:
    """Walk the top level with the parser of ``json.loads`` itself, so that both see the same."""
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
    asks: object = options.get("include_usage") if isinstance(options, dict) else options
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
        bool(asks) if asks is None or isinstance(asks, bool) else None,
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
        start: the offset of what spells the value, in characters.
        end: the offset just after it.
    """

    key: str
    value: object
    start: int
    end: int


def members_of(text: str, at: int = 0, *, whole: bool = True) -> list[Member]:
    """Return the members of the object that begins at `at`, in order, repeated ones included.

    They are read with the parser of ``json.loads``, which is vLLM's: where a change or a permission depends on a place
    in the body, both must see the same.

    Args:
        text: the JSON.
        at: the offset of the object, or of whitespace before it.
        whole: whether nothing may follow the object.

    Raises:
        ValueError: it is not a JSON object.
        RecursionError: it is nested too deeply.
    """
    at = _after_whitespace(text, at)
    if text[at : at + 1] != "{":
        raise ValueError("the body is not a JSON object")
    at = _after_whitespace(text, at + 1)
    found: list[Member] = []
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
            found.append(Member(key, value, start, at))
            at = _after_whitespace(text, at)
            if text[at : at + 1] == "}":
                at += 1
                break
            if text[at : at + 1] != ",":
                raise ValueError("no comma")
            at = _after_whitespace(text, at + 1)
    if whole and _after_whitespace(text, at) != len(text):
        raise ValueError("more after the object")
    return found


def only(found: list[Member], key: str) -> Member | None:
    """Return the member with a key, or None if there is none.

    Raises:
        LookupError: it is there more than once.
    """
    same = [member for member in found if member.key == key]
    if len(same) > 1:
        raise LookupError(key)
    return same[0] if same else None


def byte_offset(text: str, at: int) -> int:
    """Return the offset in the text's UTF-8, in bytes, of the character at `at`."""
    return at if text.isascii() else len(text[:at].encode())


def _after_whitespace(text: str, at: int) -> int:
    found = _WHITESPACE.match(text, at)
    return at if found is None else found.end()
