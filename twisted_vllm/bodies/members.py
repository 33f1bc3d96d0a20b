"""The members of a JSON body."""

from __future__ import annotations

import msgspec

from twisted_vllm.errors import ModelUndetermined

#: the members of one object that is read one by one, which takes 2 µs for each; real bodies have fewer than 100
MAX_MEMBERS = 1_000


class Member(msgspec.Struct, frozen=True):
    """A member of a JSON object.

    Attributes:
        key: its name, decoded.
        value: its value, decoded.
        start: the offset of the value: in characters of a text, in bytes of a held body.
        end: the offset just after it.
    """

    key: str
    value: object
    start: int
    end: int


def undetermined(reason: str) -> ModelUndetermined:
    """Return the error for a body whose model cannot be told.

    Args:
        reason: why, in words that follow a colon.
    """
    return ModelUndetermined(
        f"The gateway cannot tell which model this request is for: {reason}. "
        'Send one JSON object in UTF-8 with one "model", a string.',
        param="model",
    )


def too_many_members() -> str:
    """Return what is wrong with a body of too many members."""
    return f"the body has more than {MAX_MEMBERS:,} members"


def last(found: list[Member], key: str) -> Member | None:
    """Return the last member with a key, which vLLM uses, or None if there is none."""
    return next((member for member in reversed(found) if member.key == key), None)


def only(found: list[Member], key: str) -> Member | None:
    """Return the member with a key, or None if there is none.

    Raises:
        LookupError: the key is repeated.
    """
    same = [member for member in found if member.key == key]
    if len(same) > 1:
        raise LookupError(key)
    return same[0] if same else None
