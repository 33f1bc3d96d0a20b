"""Revision 0010: indexes that are in the order of the lists, and the months of the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

_AUDIT, _KEYS, _USERS = (f"vllm_passthrough_{name}" for name in ("audit", "keys", "users"))
_SEQUENCE = f"{_AUDIT}_id_seq"

#: the columns of each index of the audit log: before, and now
_AUDIT_BEFORE = {"object": ["object_id"], "actor": ["actor", "id"], "request": ["request_id"]}
_AUDIT_NOW = {
    "time": ["at", "id"],
    "object": ["object_id", "at", "id"],
    "actor": ["actor", "at", "id"],
    "name": ["actor_name", "at", "id"],
    "action": ["action", "at", "id"],
    "type": ["object_type", "at", "id"],
    "request": ["request_id", "at", "id"],
}
#: the columns of indexes that keys had before, each of one column
_KEYS_BEFORE = {"user": "user_id", "team": "team_id", "organization": "organization_id"}


def upgrade_lists() -> None:
    """Make the indexes of keys and users."""
    for name, column in _KEYS_BEFORE.items():
        op.drop_index(f"{_KEYS}_{name}", _KEYS)
        op.create_index(f"{_KEYS}_{name}", _KEYS, [column, "created_at", "token"])
    op.create_index(f"{_KEYS}_named", _KEYS, ["key_alias", "token"])
    op.create_index(f"{_KEYS}_updated", _KEYS, ["updated_at", "token"])
    op.create_index(f"{_KEYS}_expires", _KEYS, ["expires", "token", "blocked"])
    blocked = sa.column("blocked", sa.Boolean).is_(True)
    op.create_index(f"{_KEYS}_blocked", _KEYS, ["created_at", "token"], sqlite_where=blocked, postgresql_where=blocked)
    op.create_index(f"{_USERS}_alias", _USERS, ["user_alias", "user_id"])
    op.create_index(f"{_USERS}_role", _USERS, ["user_role", "created_at", "user_id"])


def downgrade_lists() -> None:
    """Undo `upgrade_lists`."""
    for name in ("role", "alias"):
        op.drop_index(f"{_USERS}_{name}", _USERS)
    for name in ("blocked", "expires", "updated", "named"):
        op.drop_index(f"{_KEYS}_{name}", _KEYS)
    for name, column in _KEYS_BEFORE.items():
        op.drop_index(f"{_KEYS}_{name}", _KEYS)
        op.create_index(f"{_KEYS}_{name}", _KEYS, [column])


def upgrade_audit() -> None:
    """Give the audit log its indexes; on PostgreSQL, make its table the first of the partitions.

    The rows stay where they are: the former table holds all entries until the month after the last one, and goes as a
    whole once all of it is too old.
    """
    _drop_indexes(_AUDIT_BEFORE)
    if op.get_bind().dialect.name == "postgresql":
        _make_partitioned()
    _create_indexes(_AUDIT_NOW)


def downgrade_audit() -> None:
    """Undo `upgrade_audit`. On PostgreSQL, the rows are copied."""
    _drop_indexes(_AUDIT_NOW)
    if op.get_bind().dialect.name == "postgresql":
        months = f"{_AUDIT}_months"
        op.rename_table(_AUDIT, months)
        op.execute(f"CREATE TABLE {_AUDIT} (LIKE {months} INCLUDING DEFAULTS)")
        op.execute(f"ALTER SEQUENCE {_SEQUENCE} OWNED BY {_AUDIT}.id")
        op.execute(f"INSERT INTO {_AUDIT} SELECT * FROM {months}")
        op.drop_table(months)
        op.create_primary_key(f"{_AUDIT}_pkey", _AUDIT, ["id"])
    _create_indexes(_AUDIT_BEFORE)


def _make_partitioned() -> None:
    connection = op.get_bind()
    end = connection.execute(
        sa.text(
            "SELECT date_trunc('month', greatest(now(), max(at)) AT TIME ZONE 'UTC') + interval '1 month' "
            f"FROM {_AUDIT}"
        )
    ).scalar_one()
    former = f"{_AUDIT}_until_{end:%Y_%m}"
    op.drop_constraint(f"{_AUDIT}_pkey", _AUDIT, type_="primary")
    op.rename_table(_AUDIT, former)
    op.execute(f"CREATE TABLE {_AUDIT} (LIKE {former} INCLUDING DEFAULTS) PARTITION BY RANGE (at)")
    op.execute(f"ALTER SEQUENCE {_SEQUENCE} OWNED BY {_AUDIT}.id")
    op.execute(f"ALTER TABLE {former} ALTER COLUMN id DROP DEFAULT")
    bounds = f"FROM (MINVALUE) TO ('{end:%Y-%m-%d} 00:00:00+00')"
    op.execute(f"ALTER TABLE {_AUDIT} ATTACH PARTITION {former} FOR VALUES {bounds}")


def _drop_indexes(indexes: dict[str, list[str]]) -> None:
    for name in indexes:
        op.drop_index(f"{_AUDIT}_{name}", _AUDIT)


def _create_indexes(indexes: dict[str, list[str]]) -> None:
    for name, columns in indexes.items():
        op.create_index(f"{_AUDIT}_{name}", _AUDIT, columns)
