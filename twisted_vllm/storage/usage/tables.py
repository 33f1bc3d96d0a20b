"""The ledger's tables: one row per request, and sums by day and month.

What a client sends (an end user's name, a request id, a path) is `Text`, so that no length makes a row fail. The writer
adds to the sums in the transaction of the rows. The sums outlive the rows, so they are tables and not views.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Date,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    text,
    tuple_,
)

from twisted_vllm.ratelimit.allowance import END_USER as END_USER
from twisted_vllm.ratelimit.allowance import KEY as KEY
from twisted_vllm.ratelimit.allowance import ORGANIZATION as ORGANIZATION
from twisted_vllm.ratelimit.allowance import TEAM as TEAM
from twisted_vllm.ratelimit.allowance import USER as USER
from twisted_vllm.storage.tables import metadata as metadata
from twisted_vllm.usage.days import DAY_US as DAY_US

#: the values of ``dimension`` in `usage_totals`, besides the kinds of those who pay
ALL, TAG = "all", "tag"
#: the values of ``period`` in `usage_totals`
DAY, MONTH = "day", "month"

#: Each `twisted_vllm.usage.records.Payer` once. Its id is a hash of its content: no database assigns it, and rows can
#: be moved to another database.
usage_payers = Table(
    "vllm_passthrough_usage_payers",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("key_hash", Text, nullable=False),
    Column("key_name", Text, nullable=False),
    Column("user_id", Text),
    Column("team_id", Text),
    Column("tags", JSON, nullable=False),
    Column("organization_id", Text),
    *(Index(f"vllm_passthrough_usage_payers_{name}", f"{name}_id") for name in (KEY, USER, TEAM, ORGANIZATION)),
    sqlite_with_rowid=False,
)

#: which payers have a tag
usage_payer_tags = Table(
    "vllm_passthrough_usage_payer_tags",
    metadata,
    Column("tag", Text, primary_key=True),
    Column("payer", BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

#: each `twisted_vllm.usage.records.Target` once, with an id of the same kind
usage_targets = Table(
    "vllm_passthrough_usage_targets",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("model", Text, nullable=False),
    Column("server", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("prices", JSON, nullable=False),
    Index("vllm_passthrough_usage_targets_model", "model"),
    sqlite_with_rowid=False,
)

#: one row per `twisted_vllm.usage.records.UsageRow`, whose fields are the columns in their order; NULL is empty
usage = Table(
    "vllm_passthrough_usage",
    metadata,
    Column("id", String(32), nullable=False),
    Column("time", BigInteger, nullable=False),
    Column("payer", BigInteger, nullable=False),
    Column("target", BigInteger, nullable=False),
    Column("request_id", Text),
    Column("end_user", Text),
    Column("headers", JSON(none_as_null=True)),
    Column("status", Integer, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("error", Text),
    Column("stream", Boolean, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("total_tokens", BigInteger, nullable=False),
    Column("audio_ms", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("cost", BigInteger, nullable=False),
    Column("first_byte_us", BigInteger),
    Column("total_us", BigInteger, nullable=False),
    Column("bytes_in", BigInteger, nullable=False),
    Column("bytes_out", BigInteger, nullable=False),
    # NULL is one, as in nearly every row: a constant of the insert
    Column("requests", BigInteger),
    # NULL is none, likewise
    Column("attempts", Text),
    # likewise, what few requests have
    Column("request_tags", JSON(none_as_null=True)),
    Column("spend_metadata", Text),
    Column("response_id", Text),
    # Clustered by time: rows of the same batch are in the same pages.
    PrimaryKeyConstraint("time", "id"),
    # An index costs every row, so those of optional columns are partial, and models, which many rows share, have none.
    Index("vllm_passthrough_usage_payer", "payer", "time"),
    *(
        Index(
            f"vllm_passthrough_usage_{name}",
            *columns,
            # `schema` adds PostgreSQL's: to name it here would load its dialect, 2 MB, into every process.
            sqlite_where=text(f"{columns[0]} IS NOT NULL"),
        )
        for name, columns in (
            ("end_user", ("end_user", "time")),
            ("request", ("request_id",)),
            ("response", ("response_id",)),
        )
    ),
    sqlite_with_rowid=False,
)

#: which rows have a tag that their client gave them and their payer has not; they are deleted with the rows
usage_request_tags = Table(
    "vllm_passthrough_usage_request_tags",
    metadata,
    Column("tag", Text, nullable=False),
    Column("time", BigInteger, nullable=False),
    Column("id", String(32), nullable=False),
    # in the order of time, as rows of a tag are read
    PrimaryKeyConstraint("tag", "time", "id"),
    sqlite_with_rowid=False,
)


#: what is added up, in this order; successful are rows with the outcome ``completed`` and a status below 400
SUMS = (
    *("requests", "successful", "failed"),
    *("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "total_tokens"),
    *("audio_ms", "cost", "total_us"),
)


def _sums() -> list[Column[int]]:
    return [Column(name, BigInteger, nullable=False) for name in SUMS]


def _combined(name: str, start: str) -> Table:
    """Return a table of sums by key, user, team and model together; ``""`` stands for none."""
    return Table(
        name,
        metadata,
        Column(start, Date, primary_key=True),
        Column("key_id", Text, primary_key=True),
        Column("user_id", Text, primary_key=True),
        Column("team_id", Text, primary_key=True),
        Column("model", Text, primary_key=True),
        *_sums(),
        *(Index(f"{name}_{each}", f"{each}_id", start) for each in (KEY, USER, TEAM)),
        sqlite_with_rowid=False,
    )


#: sums by day (UTC), and by month, which is named by its first day
usage_daily = _combined("vllm_passthrough_usage_daily", "day")
usage_monthly = _combined("vllm_passthrough_usage_monthly", "month")

#: Sums by day and by month, of the model with one other dimension: a million end users do not multiply the rows of the
#: keys, and a report over a year reads months. ``start`` is the period's first day (UTC). The values of each dimension
#: add up to ``all``, whose value is ``""``; not so for ``tag``, as a request may have several, and ``organization``, as
#: most have none.
usage_totals = Table(
    "vllm_passthrough_usage_totals",
    metadata,
    Column("dimension", String(16), primary_key=True),
    Column("period", String(8), primary_key=True),
    Column("start", Date, primary_key=True),
    Column("value", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    *_sums(),
    Index("vllm_passthrough_usage_totals_value", "dimension", "value", "period", "start"),
    sqlite_with_rowid=False,
)

#: Which days (UTC, days since 1970) are exported, and who does it. Times are microseconds since 1970. ``requests`` is
#: what the sums counted when the files began: more of them mean rows that came late.
usage_exports = Table(
    "vllm_passthrough_usage_exports",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("state", String(8), nullable=False),
    Column("files", Integer, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("times_written", Integer, nullable=False),
    Column("finished_at", BigInteger),
    Column("claimed_by", Text),
    Column("claimed_until", BigInteger),
    Column("failures", Integer, nullable=False),
    Column("retry_at", BigInteger),
    Column("error", Text),
)

#: a row's time and id
RowKey = tuple[int, str]


def has_row_key(keys: Sequence[RowKey]) -> list[ColumnElement[bool]]:
    """Return the conditions for rows of `usage` with these keys."""
    # The times say nothing more, but SQLite uses its index for them and not for pairs.
    times = usage.c.time.in_({time for time, _ in keys})
    return [times, tuple_(usage.c.time, usage.c.id).in_(keys)]
