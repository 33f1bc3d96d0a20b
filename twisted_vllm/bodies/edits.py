"""Minimal edits to a JSON body: every other byte stays as the client sent it.

Of equal keys, vLLM uses the last; so that one is edited.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable

import msgspec

from twisted_vllm.bodies.json_body import (
    MAX_MEMBERS,
    BodyFacts,
    Member,
    ModelField,
    TooManyMembers,
    byte_offset,
    last,
    members_of,
    only,
)
from twisted_vllm.bodies.pydantic_values import to_bool
from twisted_vllm.bodies.response_fields import ResponseFields
from twisted_vllm.errors import InvalidRequest

_PRIORITY = b'"priority"'
_EMPTY = re.compile(rb"[ \t\n\r]*\{[ \t\n\r]*\}")


class Edit(msgspec.Struct, frozen=True, gc=False):
    """Replaces the bytes between two offsets.

    Attributes:
        start: the offset of the first byte that is replaced.
        end: the offset just after the last; equal to `start` for an insertion.
        new: the bytes that replace them.
        member: whether it inserts a member at the beginning of the body's object; `splice` writes the comma.
    """

    start: int
    end: int
    new: bytes
    member: bool = False


def splice(body: bytes, edits: Iterable[Edit]) -> bytes:
    """Return `body` with all edits applied; they must not overlap."""
    ordered = sorted(edits, key=lambda edit: (edit.start, edit.end))
    if not ordered:
        return body
    parts: list[bytes] = []
    offset = 0
    members = sum(edit.member for edit in ordered)
    for edit in ordered:
        parts += (body[offset : edit.start], edit.new)
        offset = edit.end
        if edit.member:
            members -= 1
            if members or not _is_empty(body):
                parts.append(b",")
    parts.append(body[offset:])
    return b"".join(parts)


def rename_edit(field: ModelField, new: str) -> Edit:
    """Return the edit that replaces the model's name by `new`."""
    return Edit(field.start, field.end, msgspec.json.encode(new))


def name_edit(body: bytes, facts: BodyFacts, name: str) -> Edit:
    """Return the edit that names the model in a body that names none, or null."""
    if facts.model is not None:
        return rename_edit(facts.model, name)
    return _member(body, b'"model":' + msgspec.json.encode(name))


def usage_edits(body: bytes, facts: BodyFacts) -> tuple[Edit, ...]:
    """Return the edits that request the usage of a stream; none if the client requests it.

    vLLM 0.32 ignores ``continuous_usage_stats`` without ``include_usage`` (serve/utils/api_utils.py). If the client set
    only the former, it is unset; otherwise every event would have usage.

    Raises:
        InvalidRequest: the body, or its ``stream_options``, has too many members.
    """
    if not facts.stream or facts.include_usage is not False:
        return ()
    if not facts.options:
        return (_member(body, b'"stream_options":{"include_usage":true}'),)
    text = body.decode("utf-8")
    try:
        options = last(members_of(text), "stream_options")
        if options is None or not options.value:
            return () if options is None else (_replaced(text, options, b'{"include_usage":true}'),)
        return _options_edits(text, options)
    except TooManyMembers:
        # without the edit, vLLM would not report the usage
        raise _too_many() from None
    except (ValueError, RecursionError):
        # vLLM's parser refuses it too
        return ()


def salt_edit(body: bytes, facts: BodyFacts, salt: str) -> Edit:
    """Return the edit that isolates the prompt in vLLM's prefix cache.

    A salt from the client is combined with `salt`: it still separates the client's prompts, but cannot reach others'.

    Raises:
        InvalidRequest: the body has more than one ``cache_salt``, or one that is neither a string nor null; or
            ``json.loads`` cannot read it.
    """
    if not facts.salted:
        return _member(body, b'"cache_salt":' + msgspec.json.encode(salt))
    text = body.decode("utf-8")
    try:
        own = only(_members(text), "cache_salt")
    except LookupError:
        own = None
    if own is None or not isinstance(own.value, (str, type(None))):
        raise InvalidRequest('Send at most one "cache_salt", a string.', param="cache_salt")
    if own.value is not None:
        salt = hmac.digest(salt.encode("utf-8"), own.value.encode("utf-8", "surrogatepass"), "sha256").hex()
    return _replaced(text, own, msgspec.json.encode(salt))


def request_id_edit(body: bytes, fields: ResponseFields, response_id: str) -> Edit:
    """Return the edit that sets the id of a response, in place of the client's own if there is one."""
    new = b'"%b"' % response_id.encode("ascii")
    if fields.own_id is None:
        return _member(body, b'"request_id":' + new)
    return Edit(*fields.own_id, new)


def has_priority(body: bytes, facts: BodyFacts) -> bool:
    """Return whether a body has the member ``priority``.

    Raises:
        InvalidRequest: ``json.loads`` cannot read the body.
    """
    if facts.plain and _PRIORITY not in body:
        return False
    return any(member.key == "priority" for member in _members(body.decode("utf-8")))


def with_priority(body: bytes, facts: BodyFacts, priority: int, *, insert: bool) -> bytes:
    """Return a body with a key's priority in place of the client's.

    Args:
        body: the body.
        facts: the facts in it.
        priority: the priority.
        insert: whether the route reads it from the body alone, so that it must stand there.

    Raises:
        InvalidRequest: ``json.loads`` cannot read the body.
    """
    new = b"%d" % priority
    if has_priority(body, facts):
        text = body.decode("utf-8")
        return splice(body, [_replaced(text, each, new) for each in _members(text) if each.key == "priority"])
    return splice(body, [_member(body, _PRIORITY + b":" + new)]) if insert else body


def _members(text: str) -> list[Member]:
    """Return the members of a body that msgspec has read; a number of thousands of digits only msgspec reads."""
    try:
        return members_of(text)
    except TooManyMembers:
        raise _too_many() from None
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is not one valid JSON object.") from None


def _too_many() -> InvalidRequest:
    return InvalidRequest(f"An object of the body has more than {MAX_MEMBERS} members. Send fewer.")


def _member(body: bytes, new: bytes) -> Edit:
    """Return the edit that inserts a member before the others."""
    offset = body.index(b"{") + 1
    return Edit(offset, offset, new, True)


def _is_empty(body: bytes) -> bool:
    return _EMPTY.match(body) is not None


def _replaced(text: str, member: Member, new: bytes) -> Edit:
    return Edit(byte_offset(text, member.start), byte_offset(text, member.end), new)


def _options_edits(text: str, options: Member) -> tuple[Edit, ...]:
    inner = members_of(text, options.start, whole=False)
    include = last(inner, "include_usage")
    continuous = last(inner, "continuous_usage_stats")
    if include is not None:
        edits = [_replaced(text, include, b"true")]
    else:
        offset = byte_offset(text, options.start) + 1
        edits = [Edit(offset, offset, b'"include_usage":true' + (b"," if inner else b""))]
    if continuous is not None and to_bool(continuous.value):
        edits.append(_replaced(text, continuous, b"false"))
    return tuple(edits)
