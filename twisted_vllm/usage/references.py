"""How rows refer to payers and targets, and how rows are made fit for a database.

A row refers to its payer and its target by their JSON, which very many rows share. It is encoded once, so that encoding
a row takes a fraction of a microsecond.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from twisted_vllm.usage.records import Payer, Target, UsageRow

#: the longest text that every database can index, in characters
MAX_TEXT = 255
#: the longest of other texts, such as paths
MAX_LONG_TEXT = 4_096
#: the largest number; every column can hold it, and a year's sum of it
MAX_NUMBER = 2**52

_S = TypeVar("_S", bound=msgspec.Struct)

_INDEXED = ("request_id", "key_id", "key_name", "user_id", "team_id", "end_user", "model")

_json = msgspec.json.Encoder().encode

#: decode what `refer` encodes
payer_of = msgspec.json.Decoder(Payer).decode
target_of = msgspec.json.Decoder(Target).decode


def refer(value: Payer | Target) -> msgspec.Raw:
    """Return the JSON by which rows refer to a payer or a target."""
    try:
        return msgspec.Raw(_json(value))
    except UnicodeEncodeError:
        # half of a surrogate pair, from a client's JSON
        return msgspec.Raw(_json(_clean_struct(value)))


def clean(row: UsageRow) -> UsageRow:
    """Return a row that every database takes.

    NUL and lone surrogates are replaced; texts that are too long and numbers that are too large are cut.
    """
    payer, target = refer(_clean_struct(payer_of(row.payer))), refer(_clean_struct(target_of(row.target)))
    return msgspec.structs.replace(_clean_struct(row), payer=payer, target=target)


def _clean_struct(struct: _S) -> _S:
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
