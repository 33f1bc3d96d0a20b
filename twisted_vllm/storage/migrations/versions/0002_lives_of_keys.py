"""What keys gained: names of models, priority, headers, regeneration; the changes, and who made them."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KEYS = "vllm_passthrough_keys"


def upgrade() -> None:
    """Add the columns and tables; every key that there is gets an id for good."""
    for column in (
        sa.Column("aliases", sa.JSON, nullable=False, server_default="{}"),
        sa.Column("priority", sa.Integer),
        sa.Column("granted_headers", sa.JSON, nullable=False, server_default="[]"),
        sa.Column("updated_by", sa.String(64), nullable=False, server_default="master"),
        sa.Column("rotation_count", sa.Integer, nullable=False, server_default="0"),
        sa.Column("last_rotation_at", sa.DateTime(timezone=True)),
        sa.Column("key_id", sa.String(32), nullable=False, server_default=""),
    ):
        op.add_column(KEYS, column)
    keys = sa.table(KEYS, sa.column("token"), sa.column("key_id"), sa.column("created_by"), sa.column("updated_by"))
    connection = op.get_bind()
    tokens = list(connection.execute(sa.select(keys.c.token)).scalars())
    named = (
        sa.update(keys)
        .where(keys.c.token == sa.bindparam("named"))
        .values(key_id=sa.bindparam("id"), updated_by=keys.c.created_by)
    )
    if tokens:
        connection.execute(named, [{"named": token, "id": secrets.token_hex(16)} for token in tokens])
    op.create_index("vllm_passthrough_keys_id", KEYS, ["key_id"], unique=True)
    op.create_index("vllm_passthrough_keys_user", KEYS, ["user_id"])
    op.create_index("vllm_passthrough_keys_team", KEYS, ["team_id"])
    op.create_table(
        "vllm_passthrough_former_keys",
        sa.Column("token", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("works_until", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("vllm_passthrough_former_keys_id", "vllm_passthrough_former_keys", ["key_id"])
    op.create_table(
        "vllm_passthrough_changes",
        sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
    )
    op.create_table(
        "vllm_passthrough_audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("actor_name", sa.String(255), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("object_type", sa.String(16), nullable=False),
        sa.Column("object_id", sa.String(255), nullable=False),
        sa.Column("before", sa.JSON),
        sa.Column("after", sa.JSON),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("client", sa.String(64), nullable=False),
    )
    op.create_index("vllm_passthrough_audit_object", "vllm_passthrough_audit", ["object_id"])


def downgrade() -> None:
    """Drop what was added."""
    for table in ("audit", "changes", "former_keys"):
        op.drop_table(f"vllm_passthrough_{table}")
    for index in ("id", "user", "team"):
        op.drop_index(f"vllm_passthrough_keys_{index}", KEYS)
    for column in (
        "aliases",
        "priority",
        "granted_headers",
        "updated_by",
        "rotation_count",
        "last_rotation_at",
        "key_id",
    ):
        op.drop_column(KEYS, column)
