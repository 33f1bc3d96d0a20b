"""The virtual keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of virtual keys."""
    op.create_table(
        "vllm_passthrough_keys",
        sa.Column("token", sa.String(64), primary_key=True),
        sa.Column("key_name", sa.String(16), nullable=False),
        sa.Column("key_alias", sa.String(255)),
        sa.Column("models", sa.JSON, nullable=False),
        sa.Column("allowed_routes", sa.JSON, nullable=False),
        sa.Column("blocked", sa.Boolean, nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True)),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("user_id", sa.String(255)),
        sa.Column("team_id", sa.String(255)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("key_alias", name="vllm_passthrough_keys_alias"),
    )


def downgrade() -> None:
    """Drop the table of virtual keys."""
    op.drop_table("vllm_passthrough_keys")
