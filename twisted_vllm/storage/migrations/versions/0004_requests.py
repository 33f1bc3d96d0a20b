"""How many requests a row of the ledger stands for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004_requests"
down_revision = "0003_stamps"
branch_labels = None
depends_on = None

_TABLE = "vllm_passthrough_usage"


def upgrade() -> None:
    """Add the column; NULL means one request, as in every row so far."""
    op.add_column(_TABLE, sa.Column("requests", sa.BigInteger))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column(_TABLE, "requests")
