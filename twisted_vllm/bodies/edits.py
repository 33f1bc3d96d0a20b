"""Minimal edits to a JSON body: every other byte stays as the client sent it.

Of equal keys, vLLM uses the last; so that one is edited.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import overload

import msgspec

from twisted_vllm.bodies.held_body import MAX_AGAIN, HeldBody
from twisted_vllm.bodies.held_pieces import Rope
from twisted_vllm.bodies.json_body import BodyFacts, ModelField, TooManyMembers, byte_offset, members_of
from twisted_vllm.bodies.members import MAX_MEMBERS, Member, last, only
from twisted_vllm.bodies.pydantic_values import to_bool
from twisted_vllm.bodies.response_fields import ResponseFields
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.field_policy.shortened import ShortenedText

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


@overload
def splice(body: bytes, edits: Iterable[Edit]) -> bytes: ...


@overload
def splice(body: HeldBody, edits: Iterable[Edit]) -> Rope: ...


def splice(body: bytes | HeldBody, edits: Iterable[Edit]) -> bytes | Rope:
    """Return `body` with all edits applied; they must not overlap. A held body is not copied."""
    ordered = sorted(edits, key=lambda edit: (edit.start, edit.end))
    if not ordered:
        return body if isinstance(body, bytes) else body.rope()
    parts: list[bytes | tuple[int, int]] = []
    offset = 0
    members = sum(edit.member for edit in ordered)
    for edit in ordered:
        parts += ((offset, edit.start), edit.new)
        offset = edit.end
        if edit.member:
            members -= 1
            if members or not _is_empty(body):
                parts.append(b",")
    parts.append((offset, len(body)))
    if isinstance(body, HeldBody):
        return body.rope(tuple(parts))
    return b"".join([part if isinstance(part, bytes) else body[part[0] : part[1]] for part in parts])


def rename_edit(field: ModelField, new: str) -> Edit:
    """Return the edit that replaces the model's name by `new`."""
    return Edit(field.start, field.end, msgspec.json.encode(new))


def name_edit(body: bytes | HeldBody, facts: BodyFacts, name: str) -> Edit:
    """Return the edit that names the model in a body that names none, or null."""
    if facts.model is not None:
        return rename_edit(facts.model, name)
    return _member(body, b'"model":' + msgspec.json.encode(name))


def usage_edits(body: bytes | HeldBody, facts: BodyFacts) -> tuple[Edit, ...]:
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
    try:
        found, offset = _read(body)
        options = last(found, "stream_options")
        if options is None or not options.value:
            return () if options is None else (_replaced(offset, options, b'{"include_usage":true}'),)
        return _options_edits(body, options, offset(options.start))
    except TooManyMembers:
        # without the edit, vLLM would not report the usage
        raise _too_many() from None
    except (ValueError, RecursionError):
        # vLLM's parser refuses it too
        return ()


def salt_edit(body: bytes | HeldBody, facts: BodyFacts, salt: str) -> Edit:
    """Return the edit that isolates the prompt in vLLM's prefix cache.

    A salt from the client is combined with `salt`: it still separates the client's prompts, but cannot reach others'.

    Raises:
        InvalidRequest: the body has more than one ``cache_salt``, or one that is neither a string nor null; or
            ``json.loads`` cannot read it.
    """
    if not facts.salted:
        return _member(body, b'"cache_salt":' + msgspec.json.encode(salt))
    found, offset = _members(body)
    try:
        own = only(found, "cache_salt")
    except LookupError:
        own = None
    if own is None or not isinstance(own.value, (str, type(None))):
        raise InvalidRequest('Send at most one "cache_salt", a string.', param="cache_salt")
    value = own.value
    if isinstance(value, ShortenedText):
        if value.spelled > MAX_AGAIN:
            raise InvalidRequest(f'"cache_salt" has more than {MAX_AGAIN:,} bytes.', param="cache_salt")
        value = value.beginning(MAX_AGAIN)
    if value is not None:
        salt = combined_salt(salt, value)
    return _replaced(offset, own, msgspec.json.encode(salt))


def combined_salt(salt: str, own: str) -> str:
    """Return the ``cache_salt`` of a key with a salt whose client sends one of its own."""
    return hmac.digest(salt.encode("utf-8"), own.encode("utf-8", "surrogatepass"), "sha256").hex()


def request_id_edit(body: bytes | HeldBody, fields: ResponseFields, response_id: str) -> Edit:
    """Return the edit that sets the id of a response, in place of the client's own if there is one."""
    new = b'"%b"' % response_id.encode("ascii")
    if fields.own_id is None:
        return _member(body, b'"request_id":' + new)
    return Edit(*fields.own_id, new)


def has_priority(body: bytes | HeldBody, facts: BodyFacts) -> bool:
    """Return whether a body has the member ``priority``.

    Raises:
        InvalidRequest: ``json.loads`` cannot read the body.
    """
    if facts.plain and isinstance(body, bytes) and _PRIORITY not in body:
        return False
    return any(member.key == "priority" for member in _members(body)[0])


def priority_edits(body: bytes | HeldBody, facts: BodyFacts, priority: int, *, insert: bool) -> list[Edit]:
    """Return the edits that set a key's priority in place of the client's.

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
        found, offset = _members(body)
        return [_replaced(offset, each, new) for each in found if each.key == "priority"]
    return [_member(body, _PRIORITY + b":" + new)] if insert else []


def _read(body: bytes | HeldBody) -> tuple[list[Member], Callable[[int], int]]:
    """Return the members of a body, and what makes bytes' offsets of theirs."""
    if isinstance(body, HeldBody):
        return body.members, int
    text = body.decode("utf-8")
    return members_of(text), partial(byte_offset, text)


def _members(body: bytes | HeldBody) -> tuple[list[Member], Callable[[int], int]]:
    """Do as `_read` for a body that msgspec has read; a number of thousands of digits only msgspec reads."""
    try:
        return _read(body)
    except TooManyMembers:
        raise _too_many() from None
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is not one valid JSON object.") from None


def _too_many() -> InvalidRequest:
    return InvalidRequest(f"An object of the body has more than {MAX_MEMBERS:,} members. Send fewer.")


def _member(body: bytes | HeldBody, new: bytes) -> Edit:
    """Return the edit that inserts a member before the others."""
    offset = body.opened if isinstance(body, HeldBody) else body.index(b"{") + 1
    return Edit(offset, offset, new, True)


def _is_empty(body: bytes | HeldBody) -> bool:
    return not body.members if isinstance(body, HeldBody) else _EMPTY.match(body) is not None


def _replaced(offset: Callable[[int], int], member: Member, new: bytes) -> Edit:
    return Edit(offset(member.start), offset(member.end), new)


def _options_edits(body: bytes | HeldBody, options: Member, start: int) -> tuple[Edit, ...]:
    """Return the edits within ``stream_options``, which begins at the byte `start`."""
    if isinstance(body, HeldBody):
        spelled = body.spelled(options)
        if spelled is None:
            raise InvalidRequest(f'"stream_options" has more than {MAX_AGAIN:,} bytes.', param="stream_options")
        text = spelled.decode("utf-8")
    else:
        text = body[start:].decode("utf-8")
    inner = members_of(text, whole=False)

    def offset(within: int) -> int:
        return start + byte_offset(text, within)

    include = last(inner, "include_usage")
    continuous = last(inner, "continuous_usage_stats")
    if include is not None:
        edits = [_replaced(offset, include, b"true")]
    else:
        edits = [Edit(start + 1, start + 1, b'"include_usage":true' + (b"," if inner else b""))]
    if continuous is not None and to_bool(continuous.value):
        edits.append(_replaced(offset, continuous, b"false"))
    return tuple(edits)
