"""What a JSON body asks for: the model, and the few facts that limits and the ledger need.

vLLM 0.32 reads a body with Starlette's ``Request.json``, which is Python's ``json.loads``: the last of two equal keys
wins, keys may be spelt with escapes, and UTF-16 is understood. A permission must not depend on which of two readings
the server takes, so a body that is not one JSON object in UTF-8 with at most one ``model``, a string, is refused.
The other facts only estimate, and follow ``json.loads``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias

import msgspec

from twisted_vllm.bodies.json_members import byte_offset, members_of, only
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


class BodyFacts(msgspec.Struct, frozen=True):
    """What a body asks for.

    Attributes:
        model: where it names its model; None where it names none.
        stream: whether ``stream`` is ``true``; another spelling of it that vLLM would take does not count.
        asks_usage: whether the client asked for the usage of its stream; None where that is not clear.
        options: whether ``stream_options`` is there at all.
        max_tokens: the most tokens that each answer may have; None where the client named no number.
        answers: how many answers it asks for: ``n`` for each of its prompts.
        end_user: for whom the client says that it asks: ``user``, ``safety_identifier``, or the ``user_id`` of
            ``metadata`` (Anthropic).
        salted: whether ``cache_salt`` is there at all.
        plain: whether no key is spelt with escapes, so that keys can be looked for as they are.
    """

    model: ModelField | None = None
    stream: bool = False
    asks_usage: bool | None = False
    options: bool = False
    max_tokens: int | None = None
    answers: int = 1
    end_user: str | None = None
    salted: bool = False
    plain: bool = False


#: what is assumed of a body that was not read
UNREAD = BodyFacts(asks_usage=None)

_Number: TypeAlias = int | float | None


_NO_VALUE = msgspec.Raw()

#: counts above are no counts
MAX_NUMBER = 2**53


class _Options(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class _Metadata(msgspec.Struct, gc=False):
    user_id: str | None = None


class _Body(msgspec.Struct, gc=False):
    model: str | msgspec.UnsetType = msgspec.UNSET
    stream: bool | None = None
    stream_options: _Options | msgspec.UnsetType | None = msgspec.UNSET
    max_tokens: _Number = None
    max_completion_tokens: _Number = None
    max_output_tokens: _Number = None
    n: _Number = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: _Metadata | None = None
    cache_salt: str | msgspec.UnsetType | None = msgspec.UNSET
    # a union with None would not be taken as it is
    prompt: msgspec.Raw = _NO_VALUE
    messages: msgspec.Raw = _NO_VALUE


_decode = msgspec.json.Decoder(_Body).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_KEY = b'"model"'
# a letter of a key, or its underscore, spelt with an escape
_ESCAPED_LETTER = re.compile(rb"\\u00(?:[67]|5[fF])")
_PLAIN_FIELD = re.compile(rb'"model"[ \t\n\r]*:[ \t\n\r]*("[^"\\]*")')
# several prompts, or several conversations
_SEVERAL = re.compile(rb'\[[ \t\n\r]*["\[]')


def read_body(body: bytes) -> BodyFacts:
    """Return what a body asks for.

    Raises:
        ModelUndetermined: it is not one JSON object in UTF-8 without a byte order mark, or its ``model`` is there twice
            or is not a string.
    """
    first = body.find(_KEY)
    if first >= 0 and body.find(_KEY, first + 1) >= 0:
        return _read_by_scanning(body)
    # most bodies have no backslash at all, which is a quicker search than the whole escape
    if b"\\" in body and b"\\u00" in body and _ESCAPED_LETTER.search(body) is not None:
        return _read_by_scanning(body)
    try:
        found = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # Python's parser has the last word: it takes NaN and lone surrogates, and says what is wrong
        return _read_by_scanning(body)
    if not body.isascii():
        _decode_utf8(body)
    field = None
    if found.model is not msgspec.UNSET:
        # the key is there and spelt plainly, and what spells it is there once: so this is where
        place = _PLAIN_FIELD.match(body, first)
        if place is None:
            return _read_by_scanning(body)
        field = ModelField(found.model, place.start(1), place.end(1))
    most = found.max_tokens if found.max_completion_tokens is None else found.max_completion_tokens
    if type(most) is not int or not 0 < most < MAX_NUMBER:
        most = _first_number(found.max_completion_tokens, found.max_tokens, found.max_output_tokens)
    options = found.stream_options
    several = found.prompt if found.messages is _NO_VALUE else found.messages
    return BodyFacts(
        field,
        found.stream is True,
        bool(options.include_usage) if isinstance(options, _Options) else False,
        options is not msgspec.UNSET,
        most,
        (1 if found.n is None else _number(found.n) or 1) * (1 if several is _NO_VALUE else _count(several)),
        found.user or found.safety_identifier or (None if found.metadata is None else found.metadata.user_id) or None,
        found.cache_salt is not msgspec.UNSET,
        plain=True,
    )


def find_model(body: bytes) -> ModelField | None:
    """Return where `body` names its model, or None where it is a JSON object without ``model``.

    Raises:
        ModelUndetermined: as `read_body`.
    """
    return read_body(body).model


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


def _number(value: object) -> int | None:
    """Return a count that vLLM would take as one: a whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < MAX_NUMBER:
        return None
    return int(value) if int(value) == value else None


def _first_number(*values: object) -> int | None:
    for value in values:
        if value is not None and (number := _number(value)) is not None:
            return number
    return None


def _count(several: msgspec.Raw) -> int:
    return len(_decode_list(several)) if _SEVERAL.match(several) is not None else 1


def _read_by_scanning(body: bytes) -> BodyFacts:
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
    return _facts({member.key: member.value for member in found}, field)


def _facts(values: Mapping[str, Any], field: ModelField | None) -> BodyFacts:
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
    return BodyFacts(
        field,
        values.get("stream") is True,
        bool(asks) if asks is None or isinstance(asks, bool) else None,
        "stream_options" in values,
        _first_number(*(values.get(key) for key in ("max_completion_tokens", "max_tokens", "max_output_tokens"))),
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
