"""The members of a JSON object with their places, as the parser of ``json.loads`` itself sees them.

vLLM reads a body with Starlette's ``Request.json``, which is Python's ``json.loads``. Where a change or a permission
depends on a place in the body, both must see the same.
"""

from __future__ import annotations

import json
import re

import msgspec

_scan_value = json.JSONDecoder().raw_decode
_WHITESPACE = re.compile(r"[ \t\n\r]*")


class Member(msgspec.Struct, frozen=True):
    """One member.

    Attributes:
        key: its name, decoded.
        value: its value, decoded.
        start: where what spells the value begins, in characters.
        end: where that ends.
    """

    key: str
    value: object
    start: int
    end: int


def members_of(text: str, at: int = 0, *, whole: bool = True) -> list[Member]:
    """Return the members of the object that begins at `at`, in order, repeated ones included.

    Args:
        text: the JSON.
        at: where the object begins, or white space before it.
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
    """Return the member with a key, or None where there is none.

    Raises:
        LookupError: it is there more than once.
    """
    same = [member for member in found if member.key == key]
    if len(same) > 1:
        raise LookupError(key)
    return same[0] if same else None


def byte_offset(text: str, at: int) -> int:
    """Return where a character stands in the text's UTF-8, in bytes."""
    return at if text.isascii() else len(text[:at].encode())


def _after_whitespace(text: str, at: int) -> int:
    found = _WHITESPACE.match(text, at)
    return at if found is None else found.end()
