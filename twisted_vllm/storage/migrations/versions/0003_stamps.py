"""A random number beside the number of each change, which tells a restored database from the one that went on."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0003_stamps"
down_revision = "0002_fields"
branch_labels = None
depends_on = None

_TABLE = "vllm_passthrough_changes"


def upgrade() -> None:
    """Add the column; the changes so far get one random number."""
    op.add_column(_TABLE, sa.Column("stamp", sa.BigInteger))
    op.execute(f"UPDATE {_TABLE} SET stamp = {secrets.randbits(56)}")


def downgrade() -> None:
    """Drop the column."""
    op.drop_column(_TABLE, "stamp")
