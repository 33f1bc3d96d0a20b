"""What a client says of its request: tags, and metadata; and the id of the server's answer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008_tags"
down_revision = "0007_levels"
branch_labels = None
depends_on = None

_TABLE = "vllm_passthrough_usage"
_TAGS = "vllm_passthrough_usage_request_tags"
_INDEX = "vllm_passthrough_usage_response"


def upgrade() -> None:
    """Add the columns, whose NULL means none, as in every row so far; and the table of the rows that have a tag."""
    op.add_column(_TABLE, sa.Column("request_tags", sa.JSON))
    op.add_column(_TABLE, sa.Column("spend_metadata", sa.Text))
    op.add_column(_TABLE, sa.Column("response_id", sa.Text))
    present = sa.text("response_id IS NOT NULL")
    op.create_index(_INDEX, _TABLE, ["response_id"], sqlite_where=present, postgresql_where=present)
    op.create_table(
        _TAGS,
        sa.Column("tag", sa.Text, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("id", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("tag", "time", "id"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table(_TAGS)
    op.drop_index(_INDEX, _TABLE)
    for name in ("response_id", "spend_metadata", "request_tags"):
        op.drop_column(_TABLE, name)
