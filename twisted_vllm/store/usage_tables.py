"""The ledger's tables: one row for each request, and sums by day and month.

What a client may write (an end user's name, a request id, a path) is `Text`: no length makes a row fail. The sums are
kept by the writer, in the transaction of the rows. They outlast the rows, so they are no view.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, Date, Index, Integer, String, Table, Text, text

from twisted_vllm.store.tables import metadata as metadata

#: the values of ``dimension`` in `usage_totals`
ALL, KEY, USER, TEAM, END_USER, TAG = "all", "key", "user", "team", "end_user", "tag"
#: the values of ``period`` in `usage_totals`
DAY, MONTH = "day", "month"

#: one row for each `twisted_vllm.ledger.values.UsageRow`, its fields by their names
usage = Table(
    "vllm_passthrough_usage",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("time", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("key_hash", Text, nullable=False),
    Column("key_name", Text, nullable=False),
    Column("user_id", Text),
    Column("team_id", Text),
    Column("end_user", Text),
    Column("tags", JSON, nullable=False),
    Column("headers", JSON, nullable=False),
    Column("model", Text, nullable=False),
    Column("server", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("total_tokens", BigInteger, nullable=False),
    Column("audio_ms", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("cost", BigInteger, nullable=False),
    Column("prices", JSON, nullable=False),
    Column("first_byte_us", BigInteger),
    Column("total_us", BigInteger, nullable=False),
    Column("bytes_in", BigInteger, nullable=False),
    Column("bytes_out", BigInteger, nullable=False),
    # Every index costs each row a microsecond. Those of what many rows lack are partial, and a model, which many
    # share, has none: its rows are found by time.
    Index("vllm_passthrough_usage_time", "time"),
    Index("vllm_passthrough_usage_request", "request_id"),
    *(
        Index(
            f"vllm_passthrough_usage_{name.removesuffix('_id')}",
            name,
            "time",
            sqlite_where=text(condition),
            postgresql_where=text(condition),
        )
        for name, condition in (
            ("key_id", "key_id <> ''"),
            ("user_id", "user_id IS NOT NULL"),
            ("team_id", "team_id IS NOT NULL"),
            ("end_user", "end_user IS NOT NULL"),
        )
    ),
)

#: which rows have a tag
usage_tags = Table(
    "vllm_passthrough_usage_tags",
    metadata,
    Column("tag", Text, primary_key=True),
    Column("time", BigInteger, primary_key=True, autoincrement=False),
    Column("usage_id", String(32), primary_key=True),
    sqlite_with_rowid=False,
)


def _sums() -> list[Column[int]]:
    """Return the columns that are added up; what is successful has the outcome ``completed`` and a status below 400."""
    names = (
        *("requests", "successful", "failed"),
        *("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "total_tokens"),
        *("audio_ms", "cost", "total_us"),
    )
    return [Column(name, BigInteger, nullable=False) for name in names]


#: sums by day (UTC), of all that belongs together; ``""`` is what a request does not have
usage_daily = Table(
    "vllm_passthrough_usage_daily",
    metadata,
    Column("day", Date, primary_key=True),
    Column("key_id", Text, primary_key=True),
    Column("user_id", Text, primary_key=True),
    Column("team_id", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    *_sums(),
    Index("vllm_passthrough_usage_daily_key", "key_id", "day"),
    Index("vllm_passthrough_usage_daily_user", "user_id", "day"),
    Index("vllm_passthrough_usage_daily_team", "team_id", "day"),
    sqlite_with_rowid=False,
)

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
