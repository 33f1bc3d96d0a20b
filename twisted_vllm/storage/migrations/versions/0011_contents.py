"""Prompts and answers of requests, and what else the ledger knows of one: a table, and a column of the rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011_contents"
down_revision = "0010_partitions"
branch_labels = None
depends_on = None

STEP = "expand"

_CONTENTS, _ROWS = "vllm_passthrough_request_contents", "vllm_passthrough_usage"


def upgrade() -> None:
    """Create the table, and add the column. Files of SQLite get it when they are opened: see `complete_file`."""
    op.create_table(
        _CONTENTS,
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.Integer, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index(f"{_CONTENTS}_time", _CONTENTS, ["time", "bytes"])
    if op.get_bind().dialect.name == "postgresql":
        op.add_column(_ROWS, sa.Column("details", sa.Text))


def downgrade() -> None:
    """Drop the table, and PostgreSQL's column; the column stays in files of SQLite."""
    if op.get_bind().dialect.name == "postgresql":
        op.drop_column(_ROWS, "details")
    op.drop_table(_CONTENTS)
