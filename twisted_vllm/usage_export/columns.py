"""The columns of the files, and pages of ledger rows as Arrow tables. It imports PyArrow.

`docs/export.md` describes each column. A new one comes last, and `SCHEMA_VERSION` counts changes that readers notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from twisted_vllm.storage.usage.tables import usage

SCHEMA_VERSION = 1

#: the digits after the point of a cost: a picodollar
COST_SCALE = 12
_COST = pa.decimal128(20, COST_SCALE)
_TEXTS = pa.list_(pa.string())
_PAIRS = pa.map_(pa.string(), pa.string())

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("payer_kind", pa.string()),
        pa.field("key_id", pa.string()),
        pa.field("key_hash", pa.string()),
        pa.field("key_name", pa.string()),
        pa.field("user_id", pa.string()),
        pa.field("team_id", pa.string()),
        pa.field("organization_id", pa.string()),
        pa.field("tags", _TEXTS),
        pa.field("model", pa.string()),
        pa.field("server", pa.string()),
        pa.field("route", pa.string()),
        pa.field("method", pa.string()),
        pa.field("prices", _PAIRS),
        pa.field("request_id", pa.string()),
        pa.field("response_id", pa.string()),
        pa.field("end_user", pa.string()),
        pa.field("request_tags", _TEXTS),
        pa.field("headers", _PAIRS),
        pa.field("spend_metadata", pa.string()),
        pa.field("status", pa.int32(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("attempts", pa.string()),
        pa.field("stream", pa.bool_(), nullable=False),
        pa.field("requests", pa.int64(), nullable=False),
        pa.field("prompt_tokens", pa.int64(), nullable=False),
        pa.field("cached_tokens", pa.int64(), nullable=False),
        pa.field("completion_tokens", pa.int64(), nullable=False),
        pa.field("reasoning_tokens", pa.int64(), nullable=False),
        pa.field("total_tokens", pa.int64(), nullable=False),
        pa.field("audio_ms", pa.duration("ms"), nullable=False),
        pa.field("estimated", pa.bool_(), nullable=False),
        pa.field("cost", _COST, nullable=False),
        pa.field("first_byte_us", pa.duration("us")),
        pa.field("total_us", pa.duration("us"), nullable=False),
        pa.field("bytes_in", pa.int64(), nullable=False),
        pa.field("bytes_out", pa.int64(), nullable=False),
        pa.field("details", pa.string()),
    ]
)

#: the columns whose values repeat
DICTIONARY_ENCODED = (
    *("payer_kind", "key_id", "key_hash", "key_name", "user_id", "team_id", "organization_id", "tags.list.element"),
    *("model", "server", "route", "method", "prices.key_value.key", "prices.key_value.value", "end_user"),
    *("request_tags.list.element", "headers.key_value.key", "headers.key_value.value", "outcome", "error", "status"),
)

_ROW = {column.name: number for number, column in enumerate(usage.columns)}


def _text(name: str) -> Callable[[Any], str | None]:
    """Return what reads a text, of which an empty one is none."""
    return lambda found: getattr(found, name) or None


#: what the columns of those who pay are made of
_PAYER: Mapping[str, Callable[[Any], Any]] = {
    "payer_kind": _text("kind"),
    **{name: _text(name) for name in ("key_id", "key_hash", "key_name", "user_id", "team_id", "organization_id")},
    "tags": lambda payer: list(payer.tags),
}
#: likewise of the model and its server
_TARGET: Mapping[str, Callable[[Any], Any]] = {
    **{name: _text(name) for name in ("model", "server", "route", "method")},
    "prices": lambda target: list(target.prices.items()),
}


def page_of(rows: Sequence[Sequence[Any]], payers: Mapping[int, Any], targets: Mapping[int, Any]) -> pa.Table:
    """Return rows of the ledger as a table with `SCHEMA`.

    Args:
        rows: at least one, as `rows_of_day` returns them.
        payers: those who pay, by id, as `payers_of` returns them. One that is not there is empty.
        targets: likewise.
    """
    values = list(zip(*rows, strict=True))
    found = {
        **_joined(values[_ROW["payer"]], payers, _PAYER),
        **_joined(values[_ROW["target"]], targets, _TARGET),
    }
    for field in SCHEMA:
        if field.name not in found:
            found[field.name] = _column(field, values[_ROW[field.name]])
    return pa.table([found[field.name] for field in SCHEMA], schema=SCHEMA)


def _column(field: pa.Field, values: Sequence[Any]) -> pa.Array:
    if field.name == "cost":
        return _dollars(values)
    if field.name == "requests":
        return pa.array([1 if value is None else value for value in values], field.type)
    if field.name == "headers":
        return pa.array([None if value is None else list(value.items()) for value in values], field.type)
    return pa.array(values, field.type)


def _dollars(picodollars: Sequence[int]) -> pa.Array:
    """Return exact decimals: the same 128 bits, with another place of the point."""
    whole = pa.array(picodollars, pa.int64()).cast(pa.decimal128(_COST.precision, 0))
    return pa.Array.from_buffers(_COST, len(whole), whole.buffers())


def _joined(
    ids: Sequence[int], known: Mapping[int, Any], columns: Mapping[str, Callable[[Any], Any]]
) -> dict[str, pa.Array]:
    """Return columns of what the rows refer to: each value is converted once for a page."""
    places: dict[int, int] = {}
    indices = pa.array([places.setdefault(each, len(places)) for each in ids], pa.int32())
    return {
        name: pa.array(_values(places, known, value), SCHEMA.field(name).type).take(indices)
        for name, value in columns.items()
    }


def _values(ids: Iterable[int], known: Mapping[int, Any], value: Callable[[Any], Any]) -> list[Any]:
    return [None if (found := known.get(each)) is None else value(found) for each in ids]
