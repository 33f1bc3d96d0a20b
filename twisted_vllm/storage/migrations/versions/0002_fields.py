"""What keys and teams say about the fields of a body."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002_fields"
down_revision = "0001_schema"
branch_labels = None
depends_on = None

_TABLES = ("vllm_passthrough_keys", "vllm_passthrough_teams")


def upgrade() -> None:
    """Add the columns; NULL means that a key or team says nothing."""
    for table in _TABLES:
        op.add_column(table, sa.Column("fields", sa.JSON))


def downgrade() -> None:
    """Drop the columns."""
    for table in _TABLES:
        op.drop_column(table, "fields")
