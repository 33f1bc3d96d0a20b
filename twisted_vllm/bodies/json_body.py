"""Reads a JSON body: the model, and the few facts that limits and the ledger need.

vLLM 0.32 reads a body with Starlette's ``Request.json``, which is Python's ``json.loads``: the last of two equal keys
wins, keys may contain escapes, and UTF-16 is accepted. It converts values as pydantic does (`pydantic_values`). A
permission must not depend on an ambiguous body, so only one JSON object in UTF-8 is read, with a ``model`` that is a
string or null.

The fast path decodes only the needed members. A body with an unusual spelling (an escaped key, a number in quotes) is
read whole by Python's own parser.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias

import msgspec

from twisted_vllm.api_routes import BATCH_FIELDS, CHAT_FIELDS, MESSAGE_FIELDS, BodyFields
from twisted_vllm.bodies.checked_decoder import NO_VALUE as _NO_VALUE
from twisted_vllm.bodies.checked_decoder import CheckedDecoder, checked_decoder
from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.bodies.members import MAX_MEMBERS, Member, last, too_many_members, undetermined
from twisted_vllm.bodies.pydantic_values import MAX_NUMBER, to_bool, to_count
from twisted_vllm.bodies.request_tags import (
    MAX_SAID,
    METADATA,
    NOTHING_SAID,
    TAGS,
    Said,
    metadata_of,
    said_in,
    tags_of_list,
    together,
)
from twisted_vllm.errors import BodyTooComplex, ModelNotFound
from twisted_vllm.field_policy.escapes import ESCAPED_LETTER
from twisted_vllm.field_policy.media import Repeated, settled
from twisted_vllm.field_policy.policy import FieldPolicy
from twisted_vllm.field_policy.shortened import KEPT_AT_TOP, ShortenedList, ShortenedText, beginning_of, size_of


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
        model: its model; None if it has none. The name is empty if it is null or empty: vLLM's base model then serves.
        model_repeated: whether it names a model more than once; `model` is the last, which vLLM uses.
        stream: whether vLLM streams the response.
        include_usage: whether the client requests the usage of its stream; None if vLLM refuses its value.
        options: whether it has ``stream_options``.
        max_tokens: the limit of each choice in tokens; None if only the model's length limits it.
        min_tokens: the tokens that each choice has at least.
        choices: the number of requested choices, of all prompts together.
        repeated_bytes: the bytes that become part of several prompts, as often as they are repeated.
        end_user: the end user that the client names: ``user``, ``safety_identifier``, or the ``user_id`` of
            ``metadata`` (Anthropic).
        salted: whether it has ``cache_salt``.
        stream_interval: the least tokens of a stream's event that the client requests; 1 if it does not.
        plain: whether no key contains escapes, so that keys can be searched for as bytes.
        said: what it says for the ledger, in ``litellm_metadata`` and ``metadata``.
    """

    model: ModelField | None = None
    model_repeated: bool = False
    stream: bool = False
    include_usage: bool | None = False
    options: bool = False
    max_tokens: int | None = None
    min_tokens: int = 0
    choices: int = 1
    repeated_bytes: int = 0
    end_user: str | None = None
    salted: bool = False
    stream_interval: int = 1
    plain: bool = False
    said: Said = NOTHING_SAID


#: the size in bytes up to which a body that cannot be read is parsed as vLLM does; larger ones are read in steps
MAX_SURE = 2_097_152

#: stands for a body that was not read
UNREAD = BodyFacts(include_usage=None)

_Number: TypeAlias = int | float | None


class _Options(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class _Metadata(msgspec.Struct, gc=False):
    user_id: str | None = None
    tags: msgspec.Raw = _NO_VALUE
    spend_logs_metadata: msgspec.Raw = _NO_VALUE


class _Body(msgspec.Struct, gc=False):
    model: str | msgspec.UnsetType | None = msgspec.UNSET
    stream: bool | None = None
    stream_options: _Options | msgspec.UnsetType | None = msgspec.UNSET
    user: str | None = None
    safety_identifier: str | None = None
    metadata: _Metadata | None = None
    litellm_metadata: _Metadata | None = None
    cache_salt: str | msgspec.UnsetType | None = msgspec.UNSET
    min_tokens: _Number = None
    stream_interval: _Number = None


class _Decoders(dict[BodyFields, Callable[[bytes], Any]]):
    """Decoders of a `_Body` with the members that `BodyFields` names; the table of routes has few different ones."""

    def __missing__(self, fields: BodyFields) -> Callable[[bytes], Any]:
        values = [(name, *kind) for name, kind in _own_members(fields).items()]
        structure = msgspec.defstruct("_RouteBody", values, bases=(_Body,), gc=False)
        decode = self[fields] = msgspec.json.Decoder(structure).decode
        return decode


def _own_members(fields: BodyFields) -> dict[str, tuple[Any, Any]]:
    """Return the type and the default of a route's own members."""
    # a union of Raw and None would be decoded
    found: dict[str, tuple[Any, Any]] = dict.fromkeys(
        fields.prompts + fields.texts + fields.repeated, (msgspec.Raw, _NO_VALUE)
    )
    found |= dict.fromkeys(fields.limits, (_Number | msgspec.UnsetType, msgspec.UNSET))
    found |= dict.fromkeys(fields.choices, (_Number, None))
    return found


def _checked(policy: FieldPolicy, fields: BodyFields) -> CheckedDecoder | None:
    """Make the decoder of a route for a policy; None if the policy needs each body read whole."""
    found = checked_decoder(policy, _Body, _own_members(fields), in_lists=fields in _PARTS_IN_LISTS)
    policy.decoders[fields] = found
    return found


class TooManyMembers(ValueError):
    """An object has more than `MAX_MEMBERS`."""


_DECODERS = _Decoders()
# characters of a member in which each of several equal keys counts
_LARGE_MEMBER = 1_048_576
# routes that take media only in the content of messages: a list within a list
_PARTS_IN_LISTS = frozenset((CHAT_FIELDS, BATCH_FIELDS, MESSAGE_FIELDS))
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_KEY = b'"model"'
# a name as it is spelled, with its quotes
_LONGEST_NAME = KEPT_AT_TOP + 2
_PLAIN_FIELD = re.compile(rb'"model"[ \t\n\r]*:[ \t\n\r]*("[^"\\]*"|null)')
# a list, not of numbers: those are the tokens of one prompt
_SEVERAL = re.compile(rb"\[[ \t\n\r]*[^ \t\n\r\]0-9-]")
_OBJECT = re.compile(rb"\{")
_NULL = re.compile(rb"null")

# the parser of `json.loads` itself
_scan_value = json.JSONDecoder().raw_decode
_WHITESPACE = re.compile(r"[ \t\n\r]*")


def read_body(body: bytes | HeldBody, fields: BodyFields, policy: FieldPolicy | None = None) -> BodyFacts:
    """Return the facts in a body, and check its fields.

    Args:
        body: the body. One that is held was read, and checked by the policy, while it arrived.
        fields: the members that decide how much the route generates.
        policy: which fields it may have; None if any.

    Raises:
        BodyTooComplex: it was held, and has too many values or is nested too deeply.
        FieldNotAllowed: the policy does not allow a field.
        ModelUndetermined: it is not one JSON object in UTF-8 without a byte order mark, or its ``model`` is neither a
            string nor null.
    """
    if isinstance(body, HeldBody):
        return _facts_of_held(body, fields)
    first = body.find(_KEY)
    if body.rfind(_KEY) != first or fields.inside:
        return _read_by_scanning(body, fields, policy)
    # most bodies have no backslash, and that check is faster
    if b"\\" in body and ESCAPED_LETTER.search(body) is not None:
        return _read_by_scanning(body, fields, policy)
    checked = None
    if policy is None:
        decode = _DECODERS[fields]
    else:
        try:
            checked = policy.decoders[fields]
        except KeyError:
            checked = _checked(policy, fields)
        if checked is None:
            return _read_by_scanning(body, fields, policy)
        decode = checked.decode
    try:
        found = decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # an odd value, or Python's parser decides: it accepts NaN and lone surrogates, and reports what is wrong
        return _read_by_scanning(body, fields, policy)
    if not body.isascii():
        _decode_utf8(body)
    if policy is not None and checked is not None and not _holds(checked, found, body):
        text = body.decode("utf-8")
        _check(policy, text, _members_of_body(text))
    field = None
    if found.model is not msgspec.UNSET:
        # the key has no escapes and occurs once, so this is its position
        position = _PLAIN_FIELD.match(body, first)
        if position is None:
            return _read_by_scanning(body, fields, policy)
        field = _field(found.model or "", position.start(1), position.end(1))
    options = found.stream_options
    limit, each = _quick_bounds(found, fields)
    prompts = sum([_count(getattr(found, name)) for name in fields.prompts]) or 1 if fields.prompts else 1
    repeated = 0
    if fields.texts and (texts := sum([_count(getattr(found, name)) for name in fields.texts])) > 1:
        values = [(getattr(found, name), name in fields.paired) for name in fields.repeated]
        repeated = (texts - 1) * sum([len(value) for value, paired in values if not paired or _is_one(value)])
    return BodyFacts(
        field,
        False,
        found.stream is True,
        bool(options.include_usage) if isinstance(options, _Options) else False,
        options is not msgspec.UNSET,
        limit,
        0 if found.min_tokens is None else to_count(found.min_tokens) or 0,
        each * prompts,
        repeated,
        found.user or found.safety_identifier or (None if found.metadata is None else found.metadata.user_id) or None,
        found.cache_salt is not msgspec.UNSET,
        1 if found.stream_interval is None else to_count(found.stream_interval) or 1,
        True,
        NOTHING_SAID
        if found.metadata is None and found.litellm_metadata is None
        else together(_said(found.litellm_metadata), _said(found.metadata)),
    )


def _said(metadata: _Metadata | None) -> Said:
    if metadata is None or (metadata.tags is _NO_VALUE and metadata.spend_logs_metadata is _NO_VALUE):
        return NOTHING_SAID
    return Said(tags_of_list(metadata.tags), metadata_of(metadata.spend_logs_metadata))


def _holds(checked: CheckedDecoder, found: Any, body: bytes) -> bool:
    """Return whether a decoded body is all right; False means that it must be read whole, which says what is wrong."""
    try:
        return checked.holds(found, body)
    except (ValueError, RecursionError):
        # a member that was kept undecoded is too large, or only msgspec reads it: a number of thousands of digits
        return False


def is_no_object(body: bytes | HeldBody) -> bool:
    """Return whether a body is certainly no JSON object for vLLM, which then answers with an error of its own.

    A body over `MAX_SURE` bytes that was not read while it arrived is never certain.
    """
    if isinstance(body, HeldBody):
        return body.is_no_object
    if len(body) > MAX_SURE:
        return False
    try:
        return not isinstance(json.loads(body), dict)
    except ValueError:
        return True
    except RecursionError:
        return False


def _decode_utf8(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        _refuse("it is not valid UTF-8")


def _refuse(reason: str) -> NoReturn:
    raise undetermined(reason)


def _quick_bounds(found: Any, fields: BodyFields) -> tuple[int | None, int]:
    """Return what `_bounds` does, from a decoded body."""
    largest, absent, choices = 0, True, 1
    for name in fields.limits:
        value = getattr(found, name)
        if value is not msgspec.UNSET:
            absent = False
            if value is not None:
                if type(value) is not int or not 0 < value < MAX_NUMBER:
                    value = to_count(value) or 0
                if value > largest:
                    largest = value
    for name in fields.choices:
        value = getattr(found, name)
        if value is not None and value != 1 and (number := to_count(value)) is not None and number > choices:
            choices = number
    if not largest:
        return (fields.default_limit if absent else None), choices
    return (largest if largest > fields.least_limit else fields.least_limit), choices


def _bounds(values: Mapping[str, Any], fields: BodyFields) -> tuple[int | None, int]:
    given = [values[name] for name in fields.limits if name in values]
    limits = [number for value in given if (number := to_count(value)) is not None]
    choices = [number for name in fields.choices if (number := to_count(values.get(name))) is not None]
    limit = max(*limits, fields.least_limit) if limits else None if given else fields.default_limit
    return limit, max(choices, default=1)


def _count(value: msgspec.Raw) -> int:
    """Return the number of prompts that a member contains; 0 if it is absent or null."""
    if value is _NO_VALUE:
        return 0
    if _SEVERAL.match(value) is not None:
        return len(_decode_list(value))
    if _OBJECT.match(value) is not None:
        return len(_decode_object(value))
    return 0 if _NULL.match(value) is not None else 1


def _is_one(value: msgspec.Raw) -> bool:
    """Tell whether a member is one text: an object is, and a list of one."""
    return _OBJECT.match(value) is not None or _count(value) == 1


def _read_by_scanning(body: bytes, fields: BodyFields, policy: FieldPolicy | None) -> BodyFacts:
    """Read the top level with the parser of ``json.loads``, so that the gateway and vLLM agree."""
    text = _decode_utf8(body)
    found = _members_of_body(text)
    if policy is not None:
        _check(policy, text, found)
    model = last(found, "model")
    field = None
    if model is not None:
        field = _field(_checked_name(model.value), byte_offset(text, model.start), byte_offset(text, model.end))
    return _facts(found, field, fields)


def _members_of_body(text: str) -> list[Member]:
    try:
        return members_of(text)
    except TooManyMembers:
        _refuse(too_many_members())
    except ValueError:
        _refuse("the body is not one valid JSON object")
    except RecursionError:
        _refuse("the body is nested too deeply")


def _check(policy: FieldPolicy, text: str, found: list[Member]) -> None:
    """Check all members of a body."""
    try:
        for member in found:
            if not policy.looks_at(member.key, member.value):
                continue
            size = member.end - member.start
            if not isinstance(member.value, (dict, list)) or not member.value or size > _LARGE_MEMBER:
                # decoded again, it would take several times as long; of equal keys in it the last counts, as in vLLM
                policy.check_value(member.key, member.value, size)
            else:
                raw = text[member.start : member.end].encode("utf-8", "surrogatepass")
                policy.check([(member.key, raw)])
    except RecursionError:
        _refuse("the body is nested too deeply")
    except ValueError:
        _refuse("the body has too many values to be checked")


def _facts_of_held(body: HeldBody, fields: BodyFields) -> BodyFacts:
    """Return the facts in a body that was read while it arrived."""
    found = body.checked_members()
    values = {member.key: member.value for member in found}
    inner = values.get(fields.inside) if fields.inside else values
    for name in (*fields.limits, *fields.choices, "min_tokens", "stream_interval"):
        value = inner.get(name) if isinstance(inner, dict) else None
        if any(isinstance(each, ShortenedText) for each in (value if isinstance(value, Repeated) else (value,))):
            raise BodyTooComplex(f"`{name}` is a long text. Send a number.", param=name)
    model = last(found, "model")
    if model is None:
        return _facts(found, None, fields)
    if isinstance(model.value, ShortenedText):
        raise _no_model()
    return _facts(found, ModelField(_checked_name(model.value), model.start, model.end), fields)


def _facts(found: list[Member], field: ModelField | None, fields: BodyFields) -> BodyFacts:
    values = {member.key: member.value for member in found}
    include_usage: bool | None = False
    options = values.get("stream_options")
    if options is not None:
        asked = settled(options.get("include_usage")) if isinstance(options, dict) else options
        include_usage = False if asked is None else to_bool(asked) if isinstance(options, dict) else None
    metadata = values.get("metadata")
    users = (
        values.get("user"),
        values.get("safety_identifier"),
        settled(metadata.get("user_id")) if isinstance(metadata, dict) else None,
    )
    inner = values.get(fields.inside) if fields.inside else values
    sampling = {name: settled(value) for name, value in inner.items()} if isinstance(inner, dict) else {}
    limit, each = _bounds(sampling, fields)
    prompts = sum(_prompts(values[name]) for name in fields.prompts if name in values) or 1
    sizes = {member.key: member.end - member.start for member in found}
    texts = sum(_prompts(values[name]) for name in fields.texts if name in values)
    repeated = sum(
        sizes[name]
        for name in fields.repeated
        if name in values
        and (name not in fields.paired or isinstance(values[name], dict) or _prompts(values[name]) == 1)
    )
    return BodyFacts(
        field,
        sum(member.key == "model" for member in found) > 1,
        to_bool(values.get("stream")) is True,
        include_usage,
        "stream_options" in values,
        limit,
        to_count(sampling.get("min_tokens")) or 0,
        each * prompts,
        max(texts - 1, 0) * repeated,
        next((beginning_of(user) for user in users if isinstance(user, str) and user), None),
        "cache_salt" in values,
        to_count(sampling.get("stream_interval")) or 1,
        said=together(
            *(
                _said_in(values.get(name)) if sizes.get(name, 0) <= MAX_SAID else NOTHING_SAID
                for name in ("litellm_metadata", "metadata")
            )
        ),
    )


def _said_in(metadata: object) -> Said:
    if not isinstance(metadata, dict):
        return NOTHING_SAID
    found = {name: settled(metadata[name]) for name in (TAGS, METADATA) if name in metadata}
    try:
        return said_in({name: _as_sent(value) if name == METADATA else value for name, value in found.items()})
    except ValueError:
        return said_in({TAGS: found.get(TAGS)})


def _as_sent(value: object) -> object:
    """Return a value as the client sent it; of a repeated key, the last.

    Raises:
        ValueError: a part of it was not kept.
    """
    value = settled(value)
    if isinstance(value, (ShortenedText, ShortenedList)):
        raise ValueError("it is not kept whole")
    if isinstance(value, dict):
        return {name: _as_sent(each) for name, each in value.items()}
    return [_as_sent(each) for each in value] if isinstance(value, list) else value


def _prompts(value: object) -> int:
    """Return the number of prompts in a member: vLLM takes a list of numbers for the tokens of one prompt."""
    if value is None:
        return 0
    if isinstance(value, dict):
        return len(value)
    if not isinstance(value, list) or not value or isinstance(value[0], (int, float)):
        return 1
    return size_of(value)


def _field(name: str, start: int, end: int) -> ModelField:
    """Return the model of a body in one piece; a longer name is refused in a large body too, which keeps no more."""
    if end - start > _LONGEST_NAME:
        raise _no_model()
    return ModelField(name, start, end)


def _no_model() -> ModelNotFound:
    return ModelNotFound(f'"model" has more than {KEPT_AT_TOP:,} bytes, and no model\'s name has.', param="model")


def _checked_name(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        _refuse('"model" is not a string')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        _refuse('"model" holds half a character')
    return value


def members_of(text: str, offset: int = 0, *, whole: bool = True) -> list[Member]:
    """Return the members of the object at `offset`, in order, repeated ones included.

    They are read with the parser of ``json.loads``, which vLLM uses: edits and permissions depend on it, so the gateway
    and vLLM must agree.

    Args:
        text: the JSON.
        offset: the offset of the object, or of whitespace before it.
        whole: whether nothing may follow the object.

    Raises:
        TooManyMembers: it has more than `MAX_MEMBERS`.
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
            if len(found) > MAX_MEMBERS:
                raise TooManyMembers("too many members")
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


def byte_offset(text: str, offset: int) -> int:
    """Return the byte offset, in UTF-8, of the character at `offset`."""
    return offset if text.isascii() else len(text[:offset].encode())


def _after_whitespace(text: str, offset: int) -> int:
    found = _WHITESPACE.match(text, offset)
    return offset if found is None else found.end()
