"""Organizations, budgets that several name, limits of members, and a team's own names of models."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007_levels"
down_revision = "0006_attempts"
branch_labels = None
depends_on = None

_PREFIX = "vllm_passthrough_"
#: the tables whose rows may name a budget
_WITH_BUDGETS = ("keys", "users", "teams", "end_users", "members")


def upgrade() -> None:
    """Create the tables, and add the columns; NULL means none, as in every row so far."""
    if op.get_bind().dialect.name == "postgresql":
        # SQLite ignores the length of a column
        op.alter_column(f"{_PREFIX}changes", "kind", type_=sa.String(16))
        op.alter_column(f"{_PREFIX}changes", "name", type_=sa.String(600))
        op.alter_column(f"{_PREFIX}spend", "id", type_=sa.String(600))
    op.create_table(
        f"{_PREFIX}organizations",
        sa.Column("organization_id", sa.String(255), primary_key=True),
        sa.Column("organization_alias", sa.String(255)),
        sa.Column("models", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        *_changes(),
        sa.Column("allowance", sa.JSON),
        sa.Column("budget_id", sa.String(255)),
    )
    op.create_table(
        f"{_PREFIX}organization_members",
        sa.Column("organization_id", sa.String(255), primary_key=True),
        sa.Column("user_id", sa.String(255), primary_key=True),
        sa.Column("role", sa.String(32), nullable=False),
    )
    op.create_index(f"{_PREFIX}organization_members_user", f"{_PREFIX}organization_members", ["user_id"])
    op.create_table(
        f"{_PREFIX}budgets",
        sa.Column("budget_id", sa.String(255), primary_key=True),
        *_changes(),
        sa.Column("allowance", sa.JSON),
    )
    for name in ("keys", "teams"):
        op.add_column(f"{_PREFIX}{name}", sa.Column("organization_id", sa.String(255)))
        op.create_index(f"{_PREFIX}{name}_organization", f"{_PREFIX}{name}", ["organization_id"])
    op.add_column(f"{_PREFIX}members", sa.Column("allowance", sa.JSON))
    for name in _WITH_BUDGETS:
        op.add_column(f"{_PREFIX}{name}", sa.Column("budget_id", sa.String(255)))
    for name in (*_WITH_BUDGETS, "organizations"):
        op.create_index(f"{_PREFIX}{name}_budget", f"{_PREFIX}{name}", ["budget_id"])
    op.add_column(f"{_PREFIX}teams", sa.Column("aliases", sa.JSON))
    op.add_column(f"{_PREFIX}usage_payers", sa.Column("organization_id", sa.Text))
    op.create_index(f"{_PREFIX}usage_payers_organization", f"{_PREFIX}usage_payers", ["organization_id"])


def downgrade() -> None:
    """Drop them."""
    op.drop_index(f"{_PREFIX}usage_payers_organization", f"{_PREFIX}usage_payers")
    op.drop_column(f"{_PREFIX}usage_payers", "organization_id")
    op.drop_column(f"{_PREFIX}teams", "aliases")
    for name in _WITH_BUDGETS:
        op.drop_index(f"{_PREFIX}{name}_budget", f"{_PREFIX}{name}")
        op.drop_column(f"{_PREFIX}{name}", "budget_id")
    op.drop_column(f"{_PREFIX}members", "allowance")
    for name in ("keys", "teams"):
        op.drop_index(f"{_PREFIX}{name}_organization", f"{_PREFIX}{name}")
        op.drop_column(f"{_PREFIX}{name}", "organization_id")
    for name in ("budgets", "organization_members", "organizations"):
        op.drop_table(f"{_PREFIX}{name}")


def _changes() -> tuple[sa.Column[object], ...]:
    return (
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_by", sa.String(64), nullable=False),
    )
