"""What keys and teams say about keeping their prompts and answers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009_log_bodies"
down_revision = "0008_tags"
branch_labels = None
depends_on = None

_TABLES = ("vllm_passthrough_keys", "vllm_passthrough_teams")


def upgrade() -> None:
    """Add the columns; NULL says nothing, as in every row so far."""
    for name in _TABLES:
        op.add_column(name, sa.Column("log_bodies", sa.String(8)))


def downgrade() -> None:
    """Drop them."""
    for name in _TABLES:
        op.drop_column(name, "log_bodies")
