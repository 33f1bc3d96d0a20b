"""Partitions of the ledger's rows and of the audit log, one narrow table of sums, and indexes in the order of lists."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from twisted_vllm.storage.migrations.lists_and_audit import (
    downgrade_audit,
    downgrade_lists,
    upgrade_audit,
    upgrade_lists,
)
from twisted_vllm.storage.migrations.moved_rows import move_rows, move_rows_back, rows_tables
from twisted_vllm.storage.migrations.moved_sums import move_sums, move_sums_back

revision = "0010_partitions"
down_revision = "0009_log_bodies"
branch_labels = None
depends_on = None

_PREFIX = "vllm_passthrough_"
#: what tables of sums had before this revision, and those that they have now
_FORMER_SUMS = (
    *("requests", "successful", "failed", "prompt_tokens", "cached_tokens", "completion_tokens"),
    *("reasoning_tokens", "total_tokens", "audio_ms", "cost", "total_us"),
)
_SUMS = tuple(name for name in _FORMER_SUMS if name != "failed")


def upgrade() -> None:
    """Create the tables, move rows and sums, and drop the former tables."""
    connection = op.get_bind()
    upgrade_lists()
    upgrade_audit()
    _create_exports()
    _create_sums()
    _create_partitions()
    move_rows(connection)
    move_sums(connection)
    for name in ("usage_request_tags", "usage_totals", "usage_monthly", "usage_daily"):
        op.drop_table(f"{_PREFIX}{name}")
    if connection.dialect.name == "postgresql":
        # Nobody has looked at the new tables yet: without figures, the first plans are bad.
        for name in ("usage", "usage_lookups", "usage_sums", "usage_names"):
            op.execute(f"ANALYZE {_PREFIX}{name}")


def downgrade() -> None:
    """Move rows and sums back. On SQLite the files of the partitions stay, for whoever upgrades again."""
    connection = op.get_bind()
    downgrade_audit()
    downgrade_lists()
    _create_former_sums()
    move_sums_back(connection)
    move_rows_back(connection)
    for name in ("usage_sums", "usage_names", "usage_marks", "usage_partitions", "usage_exports"):
        op.drop_table(f"{_PREFIX}{name}")


def _create_exports() -> None:
    """Create the table of exported days, without any: all that the ledger keeps is exported."""
    op.create_table(
        f"{_PREFIX}usage_exports",
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("files", sa.Integer, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("rows", "bytes", "requests")),
        sa.Column("times_written", sa.Integer, nullable=False),
        sa.Column("finished_at", sa.BigInteger),
        sa.Column("claimed_by", sa.Text),
        sa.Column("claimed_until", sa.BigInteger),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("retry_at", sa.BigInteger),
        sa.Column("error", sa.Text),
    )


def _create_sums() -> None:
    op.create_table(
        f"{_PREFIX}usage_names",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        f"{_PREFIX}usage_sums",
        sa.Column("kind", sa.SmallInteger, nullable=False),
        sa.Column("start", sa.Integer, nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.Column("model", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _SUMS),
        sa.PrimaryKeyConstraint("kind", "start", "value", "model"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        f"{_PREFIX}usage_marks",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("what", sa.Text, primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("serial", "segment", "offset")),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("to_segment", "to_offset")),
        sa.Column("done", sa.Text, nullable=False),
        sa.Column("moved_at", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )


def _create_partitions() -> None:
    op.create_table(
        f"{_PREFIX}usage_partitions",
        sa.Column("start", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("end", sa.BigInteger, nullable=False),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sqlite_with_rowid=False,
    )
    if op.get_bind().dialect.name == "postgresql":
        # The former table makes room for the parent of the partitions; `move_rows` empties and drops it.
        op.rename_table(f"{_PREFIX}usage", f"{_PREFIX}usage_former")
        op.execute(f"ALTER INDEX {_PREFIX}usage_pkey RENAME TO {_PREFIX}usage_former_pkey")
        rows_tables.create_all(op.get_bind(), checkfirst=False)


def _create_former_sums() -> None:
    for name, start in (("usage_daily", "day"), ("usage_monthly", "month")):
        op.create_table(
            f"{_PREFIX}{name}",
            sa.Column(start, sa.Date, primary_key=True),
            *(sa.Column(each, sa.Text, primary_key=True) for each in ("key_id", "user_id", "team_id", "model")),
            *(sa.Column(each, sa.BigInteger, nullable=False) for each in _FORMER_SUMS),
            sqlite_with_rowid=False,
        )
        for each in ("key", "user", "team"):
            op.create_index(f"{_PREFIX}{name}_{each}", f"{_PREFIX}{name}", [f"{each}_id", start])
    op.create_table(
        f"{_PREFIX}usage_totals",
        sa.Column("dimension", sa.String(16), primary_key=True),
        sa.Column("period", sa.String(8), primary_key=True),
        sa.Column("start", sa.Date, primary_key=True),
        sa.Column("value", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        *(sa.Column(each, sa.BigInteger, nullable=False) for each in _FORMER_SUMS),
        sqlite_with_rowid=False,
    )
    op.create_index(f"{_PREFIX}usage_totals_value", f"{_PREFIX}usage_totals", ["dimension", "value", "period", "start"])
