"""The ledger's rows refer to who paid and what was asked, and stand in the order of their time; sums by month."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import msgspec
import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_USAGE = "vllm_passthrough_usage"
_OLD = f"{_USAGE}_old"
_PAYERS, _TARGETS, _PAYER_TAGS = f"{_USAGE}_payers", f"{_USAGE}_targets", f"{_USAGE}_payer_tags"
_DAILY, _MONTHLY, _TOTALS, _TAGS = (f"{_USAGE}_{name}" for name in ("daily", "monthly", "totals", "tags"))

#: rows of this stretch of time are copied by one statement, in microseconds
_SLICE = 86_400_000_000
#: rows that Python has at a time
_SOME = 1000

_SAME = (
    *("status", "outcome", "stream", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"),
    *("total_tokens", "audio_ms", "estimated", "cost", "first_byte_us", "total_us", "bytes_in", "bytes_out"),
)
_SUMS = (
    *("requests", "successful", "failed"),
    *("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "total_tokens"),
    *("audio_ms", "cost", "total_us"),
)
#: what a row refers to: its columns, the last of which is JSON
_WHO = ("kind", "key_id", "key_hash", "key_name", "user_id", "team_id", "tags")
_WHAT = ("model", "server", "route", "method", "prices")
_NULLABLE = ("user_id", "team_id")


def _columns(types: dict[str, Any], nullable: Sequence[str] = ()) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=name in nullable) for name, kind in types.items()]


def _measures() -> list[sa.Column[Any]]:
    numbers = dict.fromkeys(_SAME[3:], sa.BigInteger) | {"estimated": sa.Boolean}
    return _columns(
        {"status": sa.Integer, "outcome": sa.Text, "stream": sa.Boolean, **numbers}, nullable=("first_byte_us",)
    )


def _number() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False)


def _is_postgresql() -> bool:
    return bool(op.get_bind().dialect.name == "postgresql")


def upgrade() -> None:
    """Make the tables, and bring what is there into them."""
    op.create_table(
        _PAYERS,
        _number(),
        *_columns(dict.fromkeys(_WHO[:-1], sa.Text) | {"tags": sa.JSON}, nullable=_NULLABLE),
        sqlite_with_rowid=False,
    )
    op.create_table(
        _TARGETS,
        _number(),
        *_columns(dict.fromkeys(_WHAT[:-1], sa.Text) | {"prices": sa.JSON}),
        sqlite_with_rowid=False,
    )
    op.create_table(
        _PAYER_TAGS,
        sa.Column("tag", sa.Text, primary_key=True),
        sa.Column("payer", sa.BigInteger, primary_key=True, autoincrement=False),
        sqlite_with_rowid=False,
    )
    _put_aside(("request", "key", "user", "team", "end_user"))
    op.create_table(
        _USAGE,
        sa.Column("id", sa.String(32), nullable=False),
        *_columns(dict.fromkeys(("time", "payer", "target"), sa.BigInteger)),
        *_columns(
            {"request_id": sa.Text, "end_user": sa.Text, "headers": sa.JSON},
            nullable=("request_id", "end_user", "headers"),
        ),
        *_measures()[:2],
        sa.Column("error", sa.Text),
        *_measures()[2:],
        sa.PrimaryKeyConstraint("time", "id"),
        sqlite_with_rowid=False,
    )
    _number_each("payer", _PAYERS, _WHO, lambda values: [*values[:-1], msgspec.json.decode(values[-1])])
    _number_each("target", _TARGETS, _WHAT, lambda values: [*values[:-1], [*msgspec.json.decode(values[-1]).items()]])
    _copy(
        ("id", "time", "payer", "target", "request_id", "end_user", "headers", "error", *_SAME),
        (
            *("o.id", "o.time", "p.number", "t.number", "NULLIF(o.request_id, '')", "o.end_user"),
            "CASE WHEN CAST(o.headers AS TEXT) = '{}' THEN NULL ELSE o.headers END",
            "NULLIF(o.error, '')",
            *(f"o.{name}" for name in _SAME),
        ),
        f"{_OLD} o JOIN {_join('payer', 'p', _WHO)} JOIN {_join('target', 't', _WHAT)}",
    )
    for name in (_OLD, f"{_USAGE}_map_payer", f"{_USAGE}_map_target", _TAGS):
        op.drop_table(name)
    for table, name, columns in (
        (_PAYERS, "key", ["key_id"]),
        (_PAYERS, "user", ["user_id"]),
        (_PAYERS, "team", ["team_id"]),
        (_TARGETS, "model", ["model"]),
        (_USAGE, "payer", ["payer", "time"]),
    ):
        op.create_index(f"{table}_{name}", table, columns)
    for name, columns in (("end_user", ["end_user", "time"]), ("request", ["request_id"])):
        where = sa.text(f"{columns[0]} IS NOT NULL")
        op.create_index(f"{_USAGE}_{name}", _USAGE, columns, sqlite_where=where, postgresql_where=where)
    _make_months()


def _put_aside(indexes: Sequence[str]) -> None:
    """Rename the table of rows; it keeps what is found by its time, and what its primary key says."""
    for name in indexes:
        op.drop_index(f"{_USAGE}_{name}", _USAGE)
    op.rename_table(_USAGE, _OLD)
    if _is_postgresql():
        op.execute(f"ALTER INDEX {_USAGE}_pkey RENAME TO {_OLD}_pkey")


def _number_each(name: str, table: str, columns: Sequence[str], value_of: Callable[[Sequence[Any]], list[Any]]) -> None:
    """Give each of what the rows refer to its number, in a table of what they have in common and one beside."""
    bind = op.get_bind()
    mapped = op.create_table(
        f"{_USAGE}_map_{name}",
        *_columns(dict.fromkeys(columns, sa.Text), nullable=_NULLABLE),
        sa.Column("number", sa.BigInteger, nullable=False),
    )
    *plain, json = columns
    found = bind.execute(
        sa.text(f"SELECT DISTINCT {', '.join(plain)}, CAST({json} AS TEXT) FROM {_OLD}"),
        execution_options={"stream_results": True},
    )
    for some in found.partitions(_SOME):
        rows = [(number_of(value_of(values)), values) for values in some]
        bind.execute(
            sa.insert(mapped), [dict(zip(columns, values, strict=True)) | {"number": number} for number, values in rows]
        )
        names = ", ".join(f":{each}" for each in plain)
        bind.execute(
            sa.text(
                f"INSERT INTO {table} (id, {', '.join(columns)}) VALUES (:number, {names}, CAST(:{json} AS {_json()})) "
                "ON CONFLICT (id) DO NOTHING"
            ),
            [dict(zip(columns, values, strict=True)) | {"number": number} for number, values in rows],
        )
        tags = [{"tag": tag, "payer": number} for number, values in rows for tag in _tags_of(name, values)]
        if tags:
            bind.execute(
                sa.text(f"INSERT INTO {_PAYER_TAGS} (tag, payer) VALUES (:tag, :payer) ON CONFLICT DO NOTHING"), tags
            )
    op.create_index(f"{_USAGE}_map_{name}_first", f"{_USAGE}_map_{name}", [columns[1], columns[0]])


def number_of(values: Sequence[Any]) -> int:
    """Return the number of a payer or a target: 63 bits of the hash of its values as a JSON array."""
    return int.from_bytes(blake2b(msgspec.json.encode(values), digest_size=8).digest(), "big") >> 1


def _tags_of(name: str, values: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(msgspec.json.decode(values[-1]))) if name == "payer" else []


def _json() -> str:
    # SQLite makes a number of what is cast to a type of another name
    return "JSON" if _is_postgresql() else "TEXT"


def _join(name: str, alias: str, columns: Sequence[str]) -> str:
    same = "IS NOT DISTINCT FROM" if _is_postgresql() else "IS"
    *plain, json = columns
    conditions = [f"{alias}.{each} {same if each in _NULLABLE else '='} o.{each}" for each in plain]
    return f"{_USAGE}_map_{name} {alias} ON {' AND '.join(conditions)} AND {alias}.{json} = CAST(o.{json} AS TEXT)"


def _copy(columns: Sequence[str], selected: Sequence[str], source: str) -> None:
    """Copy rows, `o` in the source, in the order of their time and some at a time."""
    bind = op.get_bind()
    if _is_postgresql():
        bind.execute(sa.text("ANALYZE"))
    statement = sa.text(
        f"INSERT INTO {_USAGE} ({', '.join(columns)}) SELECT {', '.join(selected)} FROM {source} "
        "WHERE o.time >= :low AND o.time < :high ORDER BY o.time, o.id"
    )
    after = sa.text(f"SELECT MIN(time) FROM {_OLD} WHERE time >= :low")
    low = bind.execute(sa.text(f"SELECT MIN(time) FROM {_OLD}")).scalar()
    while low is not None:
        bind.execute(statement, {"low": low, "high": low + _SLICE})
        low = bind.execute(after, {"low": low + _SLICE}).scalar()


def _sums() -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in _SUMS]


def _month(column: str) -> str:
    return f"CAST(date_trunc('month', {column}) AS date)" if _is_postgresql() else f"date({column}, 'start of month')"


def _make_months() -> None:
    """Add the days up by month; what was kept by key alone is in both."""
    together = ("key_id", "user_id", "team_id", "model")
    op.create_table(
        _MONTHLY,
        sa.Column("month", sa.Date, primary_key=True),
        *(sa.Column(name, sa.Text, primary_key=True) for name in together),
        *_sums(),
        sqlite_with_rowid=False,
    )
    added = ", ".join(f"SUM({name})" for name in _SUMS)
    op.execute(
        f"INSERT INTO {_MONTHLY} (month, {', '.join((*together, *_SUMS))}) "
        f"SELECT {_month('day')}, {', '.join(together)}, {added} FROM {_DAILY} "
        f"GROUP BY {_month('day')}, {', '.join(together)}"
    )
    for name in ("key", "user", "team"):
        op.create_index(f"{_MONTHLY}_{name}", _MONTHLY, [f"{name}_id", "month"])
    op.execute(f"DELETE FROM {_TOTALS} WHERE dimension = 'key'")


def downgrade() -> None:
    """Bring everything back into the tables that were."""
    _put_aside(("request", "payer", "end_user"))
    op.create_table(
        _USAGE,
        sa.Column("id", sa.String(32), primary_key=True),
        *_columns({"request_id": sa.Text, "time": sa.BigInteger}),
        *_columns(dict.fromkeys(_WHO[:-1], sa.Text), nullable=_NULLABLE),
        sa.Column("end_user", sa.Text),
        *_columns({"tags": sa.JSON, "headers": sa.JSON}),
        *_columns(dict.fromkeys(_WHAT[:-1], sa.Text)),
        *_measures()[:2],
        *_columns({"error": sa.Text}),
        *_measures()[2:-4],
        *_columns({"prices": sa.JSON}),
        *_measures()[-4:],
    )
    _copy(
        ("id", "request_id", "time", *_WHO, "end_user", "headers", *_WHAT, "error", *_SAME),
        (
            *("o.id", "COALESCE(o.request_id, o.id)", "o.time", *(f"p.{name}" for name in _WHO), "o.end_user"),
            f"COALESCE(o.headers, CAST('{{}}' AS {_json()}))",
            *(f"t.{name}" for name in _WHAT),
            "COALESCE(o.error, '')",
            *(f"o.{name}" for name in _SAME),
        ),
        f"{_OLD} o JOIN {_PAYERS} p ON p.id = o.payer JOIN {_TARGETS} t ON t.id = o.target",
    )
    op.create_table(
        _TAGS,
        sa.Column("tag", sa.Text, primary_key=True),
        sa.Column("time", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("usage_id", sa.String(32), primary_key=True),
        sqlite_with_rowid=False,
    )
    op.execute(
        f"INSERT INTO {_TAGS} (tag, time, usage_id) "
        f"SELECT g.tag, o.time, o.id FROM {_PAYER_TAGS} g JOIN {_OLD} o ON o.payer = g.payer"
    )
    for name in (_OLD, _PAYERS, _TARGETS, _PAYER_TAGS, _MONTHLY):
        op.drop_table(name)
    op.create_index(f"{_USAGE}_time", _USAGE, ["time"])
    op.create_index(f"{_USAGE}_request", _USAGE, ["request_id"])
    for column, condition in (
        ("key_id", "key_id <> ''"),
        ("user_id", "user_id IS NOT NULL"),
        ("team_id", "team_id IS NOT NULL"),
        ("end_user", "end_user IS NOT NULL"),
    ):
        where = sa.text(condition)
        name = f"{_USAGE}_{column.removesuffix('_id')}"
        op.create_index(name, _USAGE, [column, "time"], sqlite_where=where, postgresql_where=where)
    added = ", ".join(f"SUM({name})" for name in _SUMS)
    for period, start in (("day", "day"), ("month", _month("day"))):
        op.execute(
            f"INSERT INTO {_TOTALS} (dimension, period, start, value, model, {', '.join(_SUMS)}) "
            f"SELECT 'key', '{period}', {start}, key_id, model, {added} FROM {_DAILY} GROUP BY {start}, key_id, model"
        )
