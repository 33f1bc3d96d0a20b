"""The schema of the first version: keys, users, teams, end users, spend, audit log and usage ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001_schema"
down_revision = None
branch_labels = None
depends_on = None

_PREFIX = "vllm_passthrough_"


def upgrade() -> None:
    """Create all tables and indexes."""
    _create_principals()
    _create_records()
    _create_usage()
    _create_usage_sums()


def downgrade() -> None:
    """Drop all tables."""
    for name in (
        *("usage_totals", "usage_monthly", "usage_daily", "usage", "usage_targets", "usage_payer_tags", "usage_payers"),
        *("spend", "audit", "changes", "members", "end_users", "teams", "users", "former_keys", "keys"),
    ):
        op.drop_table(f"{_PREFIX}{name}")


def _create_principals() -> None:
    """Create what is authenticated and limited: keys, users, teams and end users."""
    _create_table(
        "keys",
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
        sa.Column("aliases", sa.JSON, nullable=False),
        sa.Column("priority", sa.Integer),
        sa.Column("granted_headers", sa.JSON, nullable=False),
        sa.Column("updated_by", sa.String(64), nullable=False),
        sa.Column("rotation_count", sa.Integer, nullable=False),
        sa.Column("last_rotation_at", sa.DateTime(timezone=True)),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("allowance", sa.JSON),
        sa.Column("cache_salt", sa.String(64)),
        sa.UniqueConstraint("key_alias", name="vllm_passthrough_keys_alias"),
    )
    _create_index("keys", "id", ["key_id"], unique=True)
    _create_index("keys", "user", ["user_id"])
    _create_index("keys", "team", ["team_id"])
    _create_index("keys", "created", ["created_at", "token"])
    _create_table(
        "former_keys",
        sa.Column("token", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("works_until", sa.DateTime(timezone=True), nullable=False),
    )
    _create_index("former_keys", "id", ["key_id"])
    _create_table(
        "users",
        sa.Column("user_id", sa.String(255), primary_key=True),
        sa.Column("user_alias", sa.String(255)),
        sa.Column("user_email", sa.String(255)),
        sa.Column("user_role", sa.String(32), nullable=False),
        sa.Column("models", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        *_changed_columns(),
        sa.Column("allowance", sa.JSON),
        sa.UniqueConstraint("user_email", name="vllm_passthrough_users_email"),
    )
    _create_index("users", "created", ["created_at", "user_id"])
    _create_table(
        "teams",
        sa.Column("team_id", sa.String(255), primary_key=True),
        sa.Column("team_alias", sa.String(255)),
        sa.Column("models", sa.JSON, nullable=False),
        sa.Column("blocked", sa.Boolean, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        *_changed_columns(),
        sa.Column("allowance", sa.JSON),
    )
    _create_table(
        "end_users",
        sa.Column("user_id", sa.String(255), primary_key=True),
        sa.Column("alias", sa.String(255)),
        sa.Column("blocked", sa.Boolean, nullable=False),
        *_changed_columns(),
        sa.Column("allowance", sa.JSON),
    )
    _create_table(
        "members",
        sa.Column("team_id", sa.String(255), primary_key=True),
        sa.Column("user_id", sa.String(255), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
    )
    _create_index("members", "user", ["user_id"])


def _create_records() -> None:
    """Create the changes for other processes, the audit log, and spend."""
    _create_table(
        "changes",
        sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
    )
    _create_table(
        "audit",
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
    _create_index("audit", "object", ["object_id"])
    _create_index("audit", "actor", ["actor", "id"])
    _create_index("audit", "request", ["request_id"])
    _create_table(
        "spend",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("period_start", sa.BigInteger, nullable=False),
        sa.Column("spend", sa.BigInteger, nullable=False),
        sa.Column("total_spend", sa.BigInteger, nullable=False),
    )


def _create_usage() -> None:
    """Create the ledger: a row for each request, and the payers and targets that rows refer to."""
    _create_table(
        "usage_payers",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        *_columns(sa.Text, "kind", "key_id", "key_hash", "key_name"),
        sa.Column("user_id", sa.Text),
        sa.Column("team_id", sa.Text),
        sa.Column("tags", sa.JSON, nullable=False),
        sqlite_with_rowid=False,
    )
    for name in ("key", "user", "team"):
        _create_index("usage_payers", name, [f"{name}_id"])
    _create_table(
        "usage_payer_tags",
        sa.Column("tag", sa.Text, primary_key=True),
        sa.Column("payer", sa.BigInteger, primary_key=True, autoincrement=False),
        sqlite_with_rowid=False,
    )
    _create_table(
        "usage_targets",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        *_columns(sa.Text, "model", "server", "route", "method"),
        sa.Column("prices", sa.JSON, nullable=False),
        sqlite_with_rowid=False,
    )
    _create_index("usage_targets", "model", ["model"])
    _create_table(
        "usage",
        sa.Column("id", sa.String(32), nullable=False),
        *_columns(sa.BigInteger, "time", "payer", "target"),
        sa.Column("request_id", sa.Text),
        sa.Column("end_user", sa.Text),
        sa.Column("headers", sa.JSON),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("stream", sa.Boolean, nullable=False),
        *_columns(sa.BigInteger, "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"),
        *_columns(sa.BigInteger, "total_tokens", "audio_ms"),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("cost", sa.BigInteger, nullable=False),
        sa.Column("first_byte_us", sa.BigInteger),
        *_columns(sa.BigInteger, "total_us", "bytes_in", "bytes_out"),
        sa.PrimaryKeyConstraint("time", "id"),
        sqlite_with_rowid=False,
    )
    _create_index("usage", "payer", ["payer", "time"])
    _create_index("usage", "end_user", ["end_user", "time"], where="end_user IS NOT NULL")
    _create_index("usage", "request", ["request_id"], where="request_id IS NOT NULL")


def _create_usage_sums() -> None:
    """Create the sums of the ledger by day and month."""
    for name, start in (("usage_daily", "day"), ("usage_monthly", "month")):
        _create_table(
            name,
            sa.Column(start, sa.Date, primary_key=True),
            *(sa.Column(column, sa.Text, primary_key=True) for column in ("key_id", "user_id", "team_id", "model")),
            *_sums(),
            sqlite_with_rowid=False,
        )
        for scope in ("key", "user", "team"):
            _create_index(name, scope, [f"{scope}_id", start])
    _create_table(
        "usage_totals",
        sa.Column("dimension", sa.String(16), primary_key=True),
        sa.Column("period", sa.String(8), primary_key=True),
        sa.Column("start", sa.Date, primary_key=True),
        sa.Column("value", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        *_sums(),
        sqlite_with_rowid=False,
    )
    _create_index("usage_totals", "value", ["dimension", "value", "period", "start"])


def _changed_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_by", sa.String(64), nullable=False),
    ]


def _columns(kind: type[sa.types.TypeEngine[Any]], *names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=False) for name in names]


def _sums() -> list[sa.Column[Any]]:
    return [
        *_columns(sa.BigInteger, "requests", "successful", "failed"),
        *_columns(sa.BigInteger, "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"),
        *_columns(sa.BigInteger, "total_tokens", "audio_ms", "cost", "total_us"),
    ]


def _create_table(name: str, *columns: sa.schema.SchemaItem, **options: Any) -> None:
    op.create_table(f"{_PREFIX}{name}", *columns, **options)


def _create_index(
    table: str, name: str, columns: Sequence[str], *, unique: bool = False, where: str | None = None
) -> None:
    condition = None if where is None else sa.text(where)
    op.create_index(
        f"{_PREFIX}{table}_{name}",
        f"{_PREFIX}{table}",
        columns,
        unique=unique,
        sqlite_where=condition,
        postgresql_where=condition,
    )
