"""What keys, users, teams and end users may use, and what each spent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

LIMITED = ("vllm_passthrough_keys", "vllm_passthrough_users", "vllm_passthrough_teams")


def upgrade() -> None:
    """Add the columns and tables; nobody is limited yet."""
    for table in LIMITED:
        op.add_column(table, sa.Column("allowance", sa.JSON))
    op.add_column("vllm_passthrough_keys", sa.Column("cache_salt", sa.String(64)))
    op.create_table(
        "vllm_passthrough_end_users",
        sa.Column("user_id", sa.String(255), primary_key=True),
        sa.Column("alias", sa.String(255)),
        sa.Column("blocked", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_by", sa.String(64), nullable=False),
        sa.Column("allowance", sa.JSON),
    )
    op.create_table(
        "vllm_passthrough_spend",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("period_start", sa.BigInteger, nullable=False),
        sa.Column("spend", sa.BigInteger, nullable=False),
        sa.Column("total_spend", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Drop what was added."""
    for table in ("spend", "end_users"):
        op.drop_table(f"vllm_passthrough_{table}")
    op.drop_column("vllm_passthrough_keys", "cache_salt")
    for table in LIMITED:
        op.drop_column(table, "allowance")
