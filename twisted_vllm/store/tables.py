"""The tables as the code of this version knows them.

Their names carry the product's: an operator may point ``DATABASE_URL`` at a database that other programs use too.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Dialect,
    MetaData,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
)

#: the table in which Alembic keeps the schema's revision
VERSION_TABLE = "vllm_passthrough_schema"

metadata = MetaData()


class UtcDateTime(TypeDecorator[datetime]):
    """A moment that comes back in UTC with its time zone, also from SQLite, which keeps none."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the moment in UTC; one without a time zone is a mistake of the caller's."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a stored time needs a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the moment in UTC, whatever time zone the session has."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


keys = Table(
    "vllm_passthrough_keys",
    metadata,
    Column("token", String(64), primary_key=True),
    Column("key_name", String(16), nullable=False),
    Column("key_alias", String(255)),
    Column("models", JSON, nullable=False),
    Column("allowed_routes", JSON, nullable=False),
    Column("blocked", Boolean, nullable=False),
    Column("expires", UtcDateTime),
    Column("metadata", JSON, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("user_id", String(255)),
    Column("team_id", String(255)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    UniqueConstraint("key_alias", name="vllm_passthrough_keys_alias"),
)
