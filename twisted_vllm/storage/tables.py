"""The tables, except those of the usage ledger.

Their names begin with the product's: ``DATABASE_URL`` may name a database that other programs use too.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

from twisted_vllm.field_policy.rules import NO_RULES, FieldRules, rules_from
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance

#: the table in which Alembic keeps the schema's revision
VERSION_TABLE = "vllm_passthrough_schema"

#: the kinds of what changes, besides those of the limits: ``kind`` in `changes`
FORMER_KEY, SPEND, MODEL, BUDGET, DRAINED = "former", "spend", "model", "budget", "drained"

metadata = MetaData()

#: The kind of what changed, and a name that may be made of several names. SQLite ignores the length of a column, and
#: keeps the one that the first version had.
_KIND = String(8).with_variant(String(16), "postgresql")
_NAME = String(255).with_variant(String(600), "postgresql")


def _changes() -> tuple[Column[Any], ...]:
    """Return the columns that say who created and last changed a record, and when."""
    return (
        Column("created_at", UtcDateTime, nullable=False),
        Column("created_by", String(64), nullable=False),
        Column("updated_at", UtcDateTime, nullable=False),
        Column("updated_by", String(64), nullable=False),
    )


class UtcDateTime(TypeDecorator[datetime]):
    """A time in UTC. SQLite stores no time zone; the type adds it again."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the time in UTC.

        Raises:
            ValueError: it has no time zone.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a stored time needs a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the time in UTC, whatever the session's time zone is."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Limits(TypeDecorator[Allowance]):
    """Limits as a JSON object of those that are set; NULL without any. Money is in picodollars."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: Allowance | None, dialect: Dialect) -> dict[str, Any] | None:
        """Return the limits that are set."""
        found = {} if value is None else msgspec.to_builtins(value)
        return {name: each for name, each in found.items() if each is not None and each != {}} or None

    def process_result_value(self, value: Any, dialect: Dialect) -> Allowance:
        """Return the limits. Those that a newer version added are ignored."""
        return UNLIMITED if value is None else msgspec.convert(value, Allowance)


class Fields(TypeDecorator[FieldRules]):
    """Rules about fields as a JSON object of lists and limits; NULL without any."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: FieldRules | None, dialect: Dialect) -> dict[str, Any] | None:
        """Return the rules that are set."""
        if not value:
            return None
        found = {"allowed": list(value.allowed), "forbidden": list(value.forbidden), "limits": dict(value.limits)}
        return {name: each for name, each in found.items() if each}

    def process_result_value(self, value: Any, dialect: Dialect) -> FieldRules:
        """Return the rules. Those that a newer version added are ignored."""
        return NO_RULES if value is None else rules_from(value)


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
    Column("aliases", JSON, nullable=False),
    Column("priority", Integer),
    Column("granted_headers", JSON, nullable=False),
    Column("updated_by", String(64), nullable=False),
    Column("rotation_count", Integer, nullable=False),
    Column("last_rotation_at", UtcDateTime),
    Column("key_id", String(32), nullable=False),
    Column("allowance", Limits),
    Column("cache_salt", String(64)),
    Column("fields", Fields),
    Column("organization_id", String(255)),
    Column("budget_id", String(255)),
    Column("log_bodies", String(8)),
    UniqueConstraint("key_alias", name="vllm_passthrough_keys_alias"),
    Index("vllm_passthrough_keys_id", "key_id", unique=True),
    # A page of the keys of one of these, the newest first, is a range of the index.
    Index("vllm_passthrough_keys_user", "user_id", "created_at", "token"),
    Index("vllm_passthrough_keys_team", "team_id", "created_at", "token"),
    Index("vllm_passthrough_keys_organization", "organization_id", "created_at", "token"),
    Index("vllm_passthrough_keys_budget", "budget_id"),
    Index("vllm_passthrough_keys_created", "created_at", "token"),
    Index("vllm_passthrough_keys_named", "key_alias", "token"),
    Index("vllm_passthrough_keys_updated", "updated_at", "token"),
    Index("vllm_passthrough_keys_expires", "expires", "token", "blocked"),
)

#: blocked keys are few, and are listed on their own
Index(
    "vllm_passthrough_keys_blocked",
    keys.c.created_at,
    keys.c.token,
    sqlite_where=keys.c.blocked.is_(True),
)

#: the values of keys before they were regenerated, which are valid until ``works_until``
former_keys = Table(
    "vllm_passthrough_former_keys",
    metadata,
    Column("token", String(64), primary_key=True),
    Column("key_id", String(32), nullable=False),
    Column("works_until", UtcDateTime, nullable=False),
    Index("vllm_passthrough_former_keys_id", "key_id"),
)

users = Table(
    "vllm_passthrough_users",
    metadata,
    Column("user_id", String(255), primary_key=True),
    Column("user_alias", String(255)),
    Column("user_email", String(255)),
    Column("user_role", String(32), nullable=False),
    Column("models", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),
    *_changes(),
    Column("allowance", Limits),
    Column("budget_id", String(255)),
    UniqueConstraint("user_email", name="vllm_passthrough_users_email"),
    Index("vllm_passthrough_users_created", "created_at", "user_id"),
    Index("vllm_passthrough_users_alias", "user_alias", "user_id"),
    Index("vllm_passthrough_users_role", "user_role", "created_at", "user_id"),
    Index("vllm_passthrough_users_budget", "budget_id"),
)

teams = Table(
    "vllm_passthrough_teams",
    metadata,
    Column("team_id", String(255), primary_key=True),
    Column("team_alias", String(255)),
    Column("models", JSON, nullable=False),
    Column("blocked", Boolean, nullable=False),
    Column("metadata", JSON, nullable=False),
    *_changes(),
    Column("allowance", Limits),
    Column("fields", Fields),
    Column("organization_id", String(255)),
    Column("budget_id", String(255)),
    # NULL is none, as in every row of an older version
    Column("aliases", JSON(none_as_null=True)),
    Column("log_bodies", String(8)),
    Index("vllm_passthrough_teams_organization", "organization_id"),
    Index("vllm_passthrough_teams_budget", "budget_id"),
)

#: what is above teams
organizations = Table(
    "vllm_passthrough_organizations",
    metadata,
    Column("organization_id", String(255), primary_key=True),
    Column("organization_alias", String(255)),
    Column("models", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),
    *_changes(),
    Column("allowance", Limits),
    Column("budget_id", String(255)),
    Index("vllm_passthrough_organizations_budget", "budget_id"),
)

#: limits that several share the definition of, and not the spend
budgets = Table(
    "vllm_passthrough_budgets",
    metadata,
    Column("budget_id", String(255), primary_key=True),
    *_changes(),
    Column("allowance", Limits),
)

#: end users that an administrator created; most end users have no row here
end_users = Table(
    "vllm_passthrough_end_users",
    metadata,
    Column("user_id", String(255), primary_key=True),
    Column("alias", String(255)),
    Column("blocked", Boolean, nullable=False),
    *_changes(),
    Column("allowance", Limits),
    Column("budget_id", String(255)),
    Index("vllm_passthrough_end_users_budget", "budget_id"),
)

#: entries of the model list that were added at run time; ``api_key`` is encrypted
models = Table(
    "vllm_passthrough_models",
    metadata,
    Column("model_id", String(255), primary_key=True),
    Column("model_name", String(255), nullable=False),
    Column("litellm_params", JSON, nullable=False),
    Column("model_info", JSON, nullable=False),
    Column("api_key", Text),
    *_changes(),
)

#: servers that get no new requests, by their URL
drained_servers = Table(
    "vllm_passthrough_drained_servers",
    metadata,
    Column("url", String(500), primary_key=True),
    Column("reason", String(500), nullable=False),
    Column("drained_at", UtcDateTime, nullable=False),
    Column("drained_by", String(255), nullable=False),
)

members = Table(
    "vllm_passthrough_members",
    metadata,
    Column("team_id", String(255), primary_key=True),
    Column("user_id", String(255), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("allowance", Limits),
    Column("budget_id", String(255)),
    Index("vllm_passthrough_members_user", "user_id"),
    Index("vllm_passthrough_members_budget", "budget_id"),
)

organization_members = Table(
    "vllm_passthrough_organization_members",
    metadata,
    Column("organization_id", String(255), primary_key=True),
    Column("user_id", String(255), primary_key=True),
    Column("role", String(32), nullable=False),
    Index("vllm_passthrough_organization_members_user", "user_id"),
)

#: changes, for other processes on the same database; ``revision`` counts without gaps, and ``stamp`` is a random number
#: of the transaction, so that a process notices a restored database whose last revision is its own
changes = Table(
    "vllm_passthrough_changes",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", _KIND, nullable=False),
    Column("name", _NAME, nullable=False),
    Column("stamp", BigInteger),
)

#: The audit log. On PostgreSQL it has a partition for each month, and its key would have to have the time in it.
audit = Table(
    "vllm_passthrough_audit",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), autoincrement=True, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("actor_name", String(255), nullable=False),
    Column("action", String(32), nullable=False),
    Column("object_type", String(16), nullable=False),
    Column("object_id", String(255), nullable=False),
    Column("before", JSON(none_as_null=True)),
    Column("after", JSON(none_as_null=True)),
    Column("request_id", String(128), nullable=False),
    Column("client", String(64), nullable=False),
    PrimaryKeyConstraint("id").ddl_if(dialect="sqlite"),
    *(
        # Each is in the order of the list, so that a page of what it finds is a range of it.
        Index(f"vllm_passthrough_audit_{name}", *columns, "at", "id")
        for name, columns in (
            ("time", ()),
            ("object", ("object_id",)),
            ("actor", ("actor",)),
            ("name", ("actor_name",)),
            ("action", ("action",)),
            ("type", ("object_type",)),
            ("request", ("request_id",)),
        )
    ),
    info={"located_by": "at", "partition_by": "RANGE (at)"},
)

#: what everybody with limits spent (`twisted_vllm.ratelimit.allowance.Limited`), in picodollars: in the budget period
#: that began at ``period_start`` (microseconds since 1970), and in total
spend = Table(
    "vllm_passthrough_spend",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("id", _NAME, primary_key=True),
    Column("period_start", BigInteger, nullable=False),
    Column("spend", BigInteger, nullable=False),
    Column("total_spend", BigInteger, nullable=False),
)

#: Prompt and answer of a request by the id of its ledger row, compressed, while a sink of type ``database`` keeps them.
#: ``time`` is when the request began, in microseconds since 1970, and ``bytes`` the size of ``body``.
request_contents = Table(
    "vllm_passthrough_request_contents",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("time", BigInteger, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("vllm_passthrough_request_contents_time", "time", "bytes"),
)
