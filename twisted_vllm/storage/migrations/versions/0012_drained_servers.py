"""Servers that an administrator drained."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012_drained_servers"
down_revision = "0011_contents"
branch_labels = None
depends_on = None

STEP = "expand"

_TABLE = "vllm_passthrough_drained_servers"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        _TABLE,
        sa.Column("url", sa.String(500), primary_key=True),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("drained_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("drained_by", sa.String(255), nullable=False),
    )


def downgrade() -> None:
    """Drop the table."""
    op.drop_table(_TABLE)
