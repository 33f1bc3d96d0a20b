"""Reads LiteLLM's database, in one transaction that only reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from sqlalchemy import Connection, MetaData, Table, column, func, inspect, select, table, text
from sqlalchemy.exc import SQLAlchemyError

from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.deadline import Deadline, WorkStopped
from twisted_vllm.storage.engine import begin, make_engine, parse_url, reason_of
from twisted_vllm.storage.errors import StoreError

#: one row, by the names of its columns
Row = Mapping[str, Any]

#: seconds that all of LiteLLM's tables may take
READ_SECONDS = 300.0

#: The tables to read, and the columns that a table must have. Every other column is read where it exists: LiteLLM 1.80
#: has fewer than 1.108 (schema.prisma of both).
_TABLES = {
    "keys": ("LiteLLM_VerificationToken", ("token", "models", "spend", "metadata")),
    "users": ("LiteLLM_UserTable", ("user_id", "models", "spend")),
    "teams": ("LiteLLM_TeamTable", ("team_id", "models", "spend", "members_with_roles")),
    "memberships": ("LiteLLM_TeamMembership", ("user_id", "team_id")),
    "end_users": ("LiteLLM_EndUserTable", ("user_id", "blocked")),
    "budgets": ("LiteLLM_BudgetTable", ("budget_id",)),
    "organizations": ("LiteLLM_OrganizationTable", ("organization_id", "budget_id")),
    "organization_members": ("LiteLLM_OrganizationMembership", ("user_id", "organization_id")),
}
#: tables that LiteLLM may lack
_OPTIONAL = {
    "aliases": "LiteLLM_ModelTable",
    "object_permissions": "LiteLLM_ObjectPermissionTable",
    "access_groups": "LiteLLM_AccessGroupTable",
    "projects": "LiteLLM_ProjectTable",
    "tags": "LiteLLM_TagTable",
    "former_keys": "LiteLLM_DeprecatedVerificationToken",
}
#: tables of which only the number of rows is told
_COUNTED = {
    "models that were added at run time": "LiteLLM_ProxyModelTable",
    "guardrails": "LiteLLM_GuardrailsTable",
    "policies": "LiteLLM_PolicyTable",
    "credentials": "LiteLLM_CredentialsTable",
    "settings that were changed at run time": "LiteLLM_Config",
    "JWT claims that stand for keys": "LiteLLM_JWTKeyMapping",
}
#: columns that are never read: secrets, and what is kept by nobody
_UNREAD = frozenset(("password", "model_spend"))


@attrs.frozen(kw_only=True)
class LiteLLMRows:
    """What LiteLLM's database holds, table by table.

    Attributes:
        counted: how many rows the tables have that are not copied, by what they hold.

    The others are the rows of the tables.
    """

    keys: Sequence[Row] = ()
    users: Sequence[Row] = ()
    teams: Sequence[Row] = ()
    memberships: Sequence[Row] = ()
    end_users: Sequence[Row] = ()
    budgets: Sequence[Row] = ()
    organizations: Sequence[Row] = ()
    organization_members: Sequence[Row] = ()
    aliases: Sequence[Row] = ()
    object_permissions: Sequence[Row] = ()
    access_groups: Sequence[Row] = ()
    projects: Sequence[Row] = ()
    tags: Sequence[Row] = ()
    former_keys: Sequence[Row] = ()
    counted: Mapping[str, int] = attrs.field(factory=dict)


def read_litellm(url: Secret) -> LiteLLMRows:
    """Return what LiteLLM's database holds, all of one moment. It blocks.

    Raises:
        StoreError: it cannot be read, or is not LiteLLM's; the message says why and names no password.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() != "postgresql":
        raise StoreError("LiteLLM keeps its keys in PostgreSQL: write postgresql://USER:PASSWORD@HOST:PORT/NAME.")
    engine = make_engine(parsed, connections=1, read_only=True)
    try:
        with begin(engine, Deadline(READ_SECONDS), writes=False) as connection:
            # Keys, teams and budgets of one moment: LiteLLM may be running.
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            return _read(connection)
    except WorkStopped:
        raise StoreError(f"LiteLLM's database was not read within {READ_SECONDS:g} s.") from None
    except SQLAlchemyError as error:
        raise StoreError(f"LiteLLM's database cannot be read: {reason_of(error, url)}") from None
    finally:
        engine.dispose()


def _read(connection: Connection) -> LiteLLMRows:
    known = set(inspect(connection).get_table_names())
    if _TABLES["keys"][0] not in known:
        raise StoreError(
            "This is not LiteLLM's database: it has no table LiteLLM_VerificationToken. Name the database that "
            "LiteLLM's DATABASE_URL names; another schema than `public` is named with ?schema=NAME."
        )
    found: dict[str, Sequence[Row]] = {}
    for attribute, (name, needed) in _TABLES.items():
        columns = _columns(connection, name) if name in known else []
        missing = [each for each in needed if each not in columns]
        if missing:
            raise StoreError(
                f"LiteLLM's table {name} has no {', '.join(missing)}: the database is of a version before 1.80. "
                "Start LiteLLM 1.80 or newer on it once, which migrates it."
            )
        found[attribute] = _rows(connection, name, columns)
    for attribute, name in _OPTIONAL.items():
        if name in known:
            found[attribute] = _rows(connection, name, _columns(connection, name))
    counted = {
        label: connection.execute(select(func.count()).select_from(Table(name, MetaData()))).scalar_one()
        for label, name in _COUNTED.items()
        if name in known
    }
    return LiteLLMRows(**found, counted={label: count for label, count in counted.items() if count})


def _columns(connection: Connection, name: str) -> list[str]:
    return [each["name"] for each in inspect(connection).get_columns(name) if each["name"] not in _UNREAD]


def _rows(connection: Connection, name: str, columns: Sequence[str]) -> Sequence[Row]:
    source = table(name, *(column(each) for each in columns))
    return [dict(row._mapping) for row in connection.execute(select(source))]
