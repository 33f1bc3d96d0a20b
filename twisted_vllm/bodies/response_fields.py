"""What a body of ``POST /v1/responses`` says about stored responses, read as vLLM 0.32 reads it.

The parser is ``json.loads``: of equal keys the last counts, and keys may be escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from itertools import accumulate

import msgspec

from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.bodies.json_body import byte_offset, members_of
from twisted_vllm.bodies.members import Member
from twisted_vllm.bodies.pydantic_values import to_bool
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.field_policy.escapes import ESCAPED_LETTER

_KEYS = (b'"request_id"', b'"previous_response_id"', b'"background"', b'"truncation"')
#: members that vLLM 0.32 accepts as null, and then cannot write into its answer, after all is generated
_NEVER_NULL = {"background": "false", "truncation": '"disabled"'}

#: levels of a body's objects and lists. vLLM 0.32 writes the request's members into the answer, and pydantic writes 255
MAX_DEPTH = 200

# an escape: a pair of surrogates, half of one (group 1), or any other
_ESCAPE = re.compile(rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F])|.)", re.DOTALL)
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# as signed bytes, an opening bracket is 1 and a closing one -1
_STEPS = bytes.maketrans(b"[{]}", b"\1\1\377\377")


class ResponseFields(msgspec.Struct, frozen=True, gc=False):
    """The members of a body that concern stored responses.

    Attributes:
        previous: the id of the response to continue; None if the body names none.
        background: whether the response is generated after the answer.
        own_id: where the client's own ``request_id`` stands, as the offsets of its value in bytes; None without one.
    """

    previous: str | None = None
    background: bool = False
    own_id: tuple[int, int] | None = None


NO_FIELDS = ResponseFields()


def read_response_fields(body: bytes | HeldBody) -> ResponseFields:
    """Read a body that `read_body` has accepted.

    Raises:
        InvalidRequest: ``json.loads`` cannot read it; ``request_id`` is repeated; a member is null that vLLM cannot
            answer as null; or the response is to be generated in the background without being stored, so that nobody
            could learn what it used.
    """
    offset: Callable[[int], int] = int
    if isinstance(body, HeldBody):
        found = body.members
    else:
        # inside a string the key's quotes would be escaped
        if not any(key in body for key in _KEYS) and not (b"\\" in body and ESCAPED_LETTER.search(body)):
            return NO_FIELDS
        text = body.decode("utf-8")
        offset = partial(byte_offset, text)
        try:
            found = members_of(text)
        except (ValueError, RecursionError):
            # a number of thousands of digits, say
            raise InvalidRequest("The body is not one valid JSON object.") from None
    members: dict[str, Member] = {}
    for member in found:
        if member.key == "request_id" and "request_id" in members:
            raise InvalidRequest('Send "request_id" at most once.', param="request_id")
        members[member.key] = member
    for name, default in _NEVER_NULL.items():
        if name in members and members[name].value is None:
            raise InvalidRequest(
                f'vLLM cannot answer with "{name}": null. Leave it out, or send {default}, which is the same.',
                param=name,
            )
    previous = members.get("previous_response_id")
    background = "background" in members and to_bool(members["background"].value) is True
    if background and "store" in members and to_bool(members["store"].value) is not True:
        # vLLM accepts some texts here, and then never tells that the response has ended
        raise InvalidRequest('"background" can only be used when "store" is true.', param="store")
    own_id = members.get("request_id")
    return ResponseFields(
        # another type is refused by vLLM before it looks for a response
        previous.value if previous is not None and isinstance(previous.value, str) else None,
        background,
        None if own_id is None else (offset(own_id.start), offset(own_id.end)),
    )


def check_repeatable(body: bytes | HeldBody) -> None:
    """Check that vLLM can write what a body contains into its answer.

    The answer repeats tools, metadata and other members. vLLM writes it when all is generated, and answers 400 if it
    cannot: nobody would learn what was used.

    Args:
        body: a body that `read_body` has accepted.

    Raises:
        InvalidRequest: a text contains half a surrogate pair, or the body is nested too deeply.
    """
    if isinstance(body, HeldBody):
        has_half, depth = body.has_half, body.depth
    else:
        has_half, depth = _has_half(body), _depth(body)
    if has_half:
        raise InvalidRequest("A text in the body contains half a character: a lone surrogate.")
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"The body is nested too deeply: at most {MAX_DEPTH} levels.")


def _has_half(body: bytes) -> bool:
    return (b"\\ud" in body or b"\\uD" in body) and any(found[1] for found in _ESCAPE.finditer(body))


def _depth(body: bytes) -> int:
    """Return how deeply the objects and lists of a valid body are nested; 0 if that is surely below `MAX_DEPTH`."""
    if body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return 0
    steps = _STRING.sub(b"", body).translate(_STEPS, _NO_BRACKETS)
    return max(accumulate(memoryview(steps).cast("b")), default=0)
