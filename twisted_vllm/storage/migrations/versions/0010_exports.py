"""Which days of the ledger are exported."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010_exports"
down_revision = "0009_log_bodies"
branch_labels = None
depends_on = None

_TABLE = "vllm_passthrough_usage_exports"


def upgrade() -> None:
    """Create the table, without any day: all that the ledger keeps is exported."""
    op.create_table(
        _TABLE,
        sa.Column("day", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("times_written", sa.Integer(), nullable=False),
        sa.Column("finished_at", sa.BigInteger()),
        sa.Column("claimed_by", sa.Text()),
        sa.Column("claimed_until", sa.BigInteger()),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("retry_at", sa.BigInteger()),
        sa.Column("error", sa.Text()),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table(_TABLE)
