"""The ledger's tables: one row for each request, and sums by day and month.

What a client may write (an end user's name, a request id, a path) is `Text`: no length makes a row fail. The sums are
kept by the writer, in the transaction of the rows. They outlast the rows, so they are no view.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    text,
)

from twisted_vllm.storage.tables import metadata as metadata

#: the values of ``dimension`` in `usage_totals`
ALL, KEY, USER, TEAM, END_USER, TAG = "all", "key", "user", "team", "end_user", "tag"
#: the values of ``period`` in `usage_totals`
DAY, MONTH = "day", "month"

#: who pays: each `twisted_vllm.usage.records.Payer` once. Its number comes from what it says: nobody has to ask for it,
#: and rows may move to another database.
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
    *(Index(f"vllm_passthrough_usage_payers_{name}", f"{name}_id") for name in (KEY, USER, TEAM)),
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

#: what was asked: each `twisted_vllm.usage.records.Target` once, numbered likewise
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

#: one row for each `twisted_vllm.usage.records.UsageRow`, its fields by their names and in their order; NULL is empty
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
    # Rows stand in the order of their time: those that come together are written together.
    PrimaryKeyConstraint("time", "id"),
    # Every index costs each row. Those of what many rows lack are partial; a model, which many share, has none.
    Index("vllm_passthrough_usage_payer", "payer", "time"),
    *(
        Index(
            f"vllm_passthrough_usage_{name}",
            *columns,
            # `schema` adds PostgreSQL's: naming that here would load its dialect, 2 MB, into every process.
            sqlite_where=text(f"{columns[0]} IS NOT NULL"),
        )
        for name, columns in (("end_user", ("end_user", "time")), ("request", ("request_id",)))
    ),
    sqlite_with_rowid=False,
)


#: what is added up, in this order; what is successful has the outcome ``completed`` and a status below 400
SUMS = (
    *("requests", "successful", "failed"),
    *("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "total_tokens"),
    *("audio_ms", "cost", "total_us"),
)


def _sums() -> list[Column[int]]:
    return [Column(name, BigInteger, nullable=False) for name in SUMS]


def _together(name: str, start: str) -> Table:
    """Return a table of sums of all that belongs together; ``""`` is what a request does not have."""
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


#: sums by day (UTC), and by month, which has its first day's name
usage_daily = _together("vllm_passthrough_usage_daily", "day")
usage_monthly = _together("vllm_passthrough_usage_monthly", "month")

#: sums by day and by month, of one dimension at a time with the model: a year of a million end users does not multiply
#: the keys, and a report over a year reads months. ``start`` is the period's first day (UTC). Every dimension but
#: ``tag``, of which a request may have several, adds up to ``all``, whose value is ``""``.
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
