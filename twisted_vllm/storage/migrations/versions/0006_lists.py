"""Lists of many keys, users and acts, newest first, without sorting them all."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_INDEXES = (
    ("vllm_passthrough_keys", "created", ["created_at", "token"]),
    ("vllm_passthrough_users", "created", ["created_at", "user_id"]),
    ("vllm_passthrough_audit", "actor", ["actor", "id"]),
    ("vllm_passthrough_audit", "request", ["request_id"]),
)


def upgrade() -> None:
    """Make the indexes."""
    for table, name, columns in _INDEXES:
        op.create_index(f"{table}_{name}", table, columns)


def downgrade() -> None:
    """Drop them."""
    for table, name, _ in _INDEXES:
        op.drop_index(f"{table}_{name}", table)
