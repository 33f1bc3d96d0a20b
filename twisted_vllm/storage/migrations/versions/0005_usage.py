"""The ledger: a row for each request, and sums by day and month."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_USAGE = "vllm_passthrough_usage"


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _numbers(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


def _sums() -> list[sa.Column[int]]:
    return _numbers(
        *("requests", "successful", "failed"),
        *("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "total_tokens"),
        *("audio_ms", "cost", "total_us"),
    )


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        _USAGE,
        sa.Column("id", sa.String(32), primary_key=True),
        *_texts("request_id"),
        *_numbers("time"),
        *_texts("kind", "key_id", "key_hash", "key_name"),
        *(sa.Column(name, sa.Text) for name in ("user_id", "team_id", "end_user")),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("headers", sa.JSON, nullable=False),
        *_texts("model", "server", "route", "method"),
        sa.Column("status", sa.Integer, nullable=False),
        *_texts("outcome", "error"),
        sa.Column("stream", sa.Boolean, nullable=False),
        *_numbers("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "total_tokens"),
        *_numbers("audio_ms"),
        sa.Column("estimated", sa.Boolean, nullable=False),
        *_numbers("cost"),
        sa.Column("prices", sa.JSON, nullable=False),
        sa.Column("first_byte_us", sa.BigInteger),
        *_numbers("total_us", "bytes_in", "bytes_out"),
    )
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
    op.create_table(
        f"{_USAGE}_tags",
        sa.Column("tag", sa.Text, primary_key=True),
        sa.Column("time", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("usage_id", sa.String(32), primary_key=True),
        sqlite_with_rowid=False,
    )
    daily = f"{_USAGE}_daily"
    op.create_table(
        daily,
        sa.Column("day", sa.Date, primary_key=True),
        *(sa.Column(name, sa.Text, primary_key=True) for name in ("key_id", "user_id", "team_id", "model")),
        *_sums(),
        sqlite_with_rowid=False,
    )
    for name in ("key", "user", "team"):
        op.create_index(f"{daily}_{name}", daily, [f"{name}_id", "day"])
    totals = f"{_USAGE}_totals"
    op.create_table(
        totals,
        sa.Column("dimension", sa.String(16), primary_key=True),
        sa.Column("period", sa.String(8), primary_key=True),
        sa.Column("start", sa.Date, primary_key=True),
        sa.Column("value", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        *_sums(),
        sqlite_with_rowid=False,
    )
    op.create_index(f"{totals}_value", totals, ["dimension", "value", "period", "start"])


def downgrade() -> None:
    """Drop them."""
    for table in ("_totals", "_daily", "_tags", ""):
        op.drop_table(f"{_USAGE}{table}")
