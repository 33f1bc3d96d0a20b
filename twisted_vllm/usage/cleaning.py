"""What no database takes is replaced or cut: better a name with a mark in it than a row that nobody has."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

#: the longest text that a database indexes without complaint, in characters
MAX_TEXT = 255
#: the longest of any other text, such as a path
MAX_LONG_TEXT = 4_096
#: the largest number that every column and a year's sum of it can hold
MAX_NUMBER = 2**52

_S = TypeVar("_S", bound=msgspec.Struct)

_INDEXED = ("request_id", "key_id", "key_name", "user_id", "team_id", "end_user", "model")


def clean_struct(struct: _S) -> _S:
    """Return a row, a payer or a target without NUL and lone surrogates, and without what is too large."""
    values: list[Any] = []
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if isinstance(value, str):
            value = _clean_text(value)[: MAX_TEXT if name in _INDEXED else MAX_LONG_TEXT]
        elif isinstance(value, int) and not isinstance(value, bool):
            value = max(-MAX_NUMBER, min(value, MAX_NUMBER))
        elif name == "tags":
            value = tuple(_clean_text(each)[:MAX_TEXT] for each in value)
        elif name == "prices":
            value = tuple((_clean_text(key), _clean_text(each)[:MAX_LONG_TEXT]) for key, each in value)
        elif isinstance(value, dict):
            value = {_clean_text(key): _clean_text(each)[:MAX_LONG_TEXT] for key, each in value.items()}
        values.append(value)
    return type(struct)(*values)


def _clean_text(text: str) -> str:
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
