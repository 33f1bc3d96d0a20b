"""The attempts of a request before the one that a row of the ledger describes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006_attempts"
down_revision = "0005_models"
branch_labels = None
depends_on = None

_TABLE = "vllm_passthrough_usage"


def upgrade() -> None:
    """Add the column; NULL means none, as in every row so far."""
    op.add_column(_TABLE, sa.Column("attempts", sa.Text))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column(_TABLE, "attempts")
