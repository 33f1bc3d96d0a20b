"""Users, teams, and who is a member of which."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _changed() -> list[sa.Column[object]]:
    return [
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_by", sa.String(64), nullable=False),
    ]


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "vllm_passthrough_users",
        sa.Column("user_id", sa.String(255), primary_key=True),
        sa.Column("user_alias", sa.String(255)),
        sa.Column("user_email", sa.String(255)),
        sa.Column("user_role", sa.String(32), nullable=False),
        sa.Column("models", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        *_changed(),
        sa.UniqueConstraint("user_email", name="vllm_passthrough_users_email"),
    )
    op.create_table(
        "vllm_passthrough_teams",
        sa.Column("team_id", sa.String(255), primary_key=True),
        sa.Column("team_alias", sa.String(255)),
        sa.Column("models", sa.JSON, nullable=False),
        sa.Column("blocked", sa.Boolean, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        *_changed(),
    )
    op.create_table(
        "vllm_passthrough_members",
        sa.Column("team_id", sa.String(255), primary_key=True),
        sa.Column("user_id", sa.String(255), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
    )
    op.create_index("vllm_passthrough_members_user", "vllm_passthrough_members", ["user_id"])


def downgrade() -> None:
    """Drop them."""
    for table in ("members", "teams", "users"):
        op.drop_table(f"vllm_passthrough_{table}")
