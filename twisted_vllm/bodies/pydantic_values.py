"""Converts JSON values as vLLM's request models do: pydantic 2 in lax mode, from Python objects.

https://docs.pydantic.dev/latest/concepts/conversion_table/, and measured with pydantic 2.14 in vLLM 0.32.
"""

from __future__ import annotations

#: larger counts count as this one
MAX_NUMBER = 2**53

#: more digits after leading zeros are refused
_MAX_DIGITS = 4300

_TRUE = frozenset(("1", "on", "t", "true", "y", "yes"))
_FALSE = frozenset(("0", "off", "f", "false", "n", "no"))


def to_count(value: object) -> int | None:
    """Return a value as a number of tokens or choices, from 1 to `MAX_NUMBER`; None if it is no whole number above 0.

    Limits below 1 are refused by vLLM, or generate nothing.
    """
    if isinstance(value, str):
        value = _whole(value)
    if not isinstance(value, (int, float)) or not value > 0:
        return None
    if value >= MAX_NUMBER:
        return MAX_NUMBER
    # True is 1
    return int(value) if int(value) == value else None


def _whole(text: str) -> int | None:
    """Return the whole number above 0 that a text means, or None.

    pydantic strips whitespace and leading zeros, and accepts underscores (not everywhere, as this does) and a fraction
    of zeros.
    """
    whole, point, fraction = text.strip().partition(".")
    digits = whole.removeprefix("+").replace("_", "").lstrip("0")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > _MAX_DIGITS:
        return None
    if point and (not fraction or fraction.strip("0")):
        return None
    return int(digits)


def to_bool(value: object) -> bool | None:
    """Return a value as a boolean; None if pydantic refuses it, or it is null."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return bool(value) if value in (0, 1) else None
    if isinstance(value, str):
        # the longest is "false"
        text = value.lower() if len(value) <= 5 else ""
        return True if text in _TRUE else False if text in _FALSE else None
    return None
