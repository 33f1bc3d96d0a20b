"""Fills a database with as many records as a large installation has, in SQL, and has it analysed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import attrs
from sqlalchemy import Connection, inspect, text

from twisted_vllm.storage.audit_months import make_month

#: 2026-01-01, in Unix seconds
YEAR = 1_767_225_600
_YEAR_SECONDS = 365 * 86_400
#: spreads consecutive numbers over all of a range; prime
_STRIDE = 7_919


@attrs.frozen
class Sizes:
    """How many records to make.

    Attributes:
        keys: half of them belong to the large teams, a tenth are expired, a twentieth are blocked.
        users: each is in one organization; its address names it.
        teams: each has 20 members, except the large ones.
        large_teams: how many have `large_team` members.
        large_team: as many.
        customers: end users that were created.
        organizations: as many.
        budgets: each is named by few keys.
        audited: entries of the audit log, over a year.
    """

    keys: int = 100_000
    users: int = 20_000
    teams: int = 1_000
    large_teams: int = 5
    large_team: int = 10_000
    customers: int = 50_000
    organizations: int = 1_000
    budgets: int = 1_000
    audited: int = 1_000_000


#: enough that a planner chooses as for `Sizes`, and filled in a few seconds
SMALL = Sizes(30_000, 20_000, 500, 3, 5_000, 20_000, 500, 500, 50_000)


class _Writer:
    """Writes rows that are made of their number ``n``, counted from 0."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sqlite = connection.dialect.name == "sqlite"

    def write(self, table: str, count: int, columns: Mapping[str, str], where: str = "TRUE") -> None:
        names = ", ".join(f'"{name}"' for name in columns)
        numbers = f"WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count - 1})"
        selected = f"{numbers} SELECT {', '.join(columns.values())} FROM numbers WHERE {where}"
        self._connection.execute(text(f"INSERT INTO vllm_passthrough_{table} ({names}) {selected}"))

    def text(self, number: str) -> str:
        return f"CAST({number} AS TEXT)"

    def hash(self, number: str) -> str:
        """Return 64 digits, in no order."""
        mixed = f"(CAST({number} AS BIGINT) * 2654435761 % 4294967291)"
        if self._sqlite:
            return f"printf('%08x%056x', {mixed}, {number})"
        return f"lpad(to_hex({mixed}::bigint), 8, '0') || lpad(to_hex(({number})::bigint), 56, '0')"

    def moment(self, number: str, count: int) -> str:
        """Return moments in a year, in the order of the number."""
        seconds = f"({YEAR} + CAST({number} AS BIGINT) * {_YEAR_SECONDS} / {count})"
        return self.at(seconds)

    def at(self, seconds: str) -> str:
        if self._sqlite:
            return f"strftime('%Y-%m-%d %H:%M:%f', {seconds}, 'unixepoch') || '000'"
        return f"to_timestamp({seconds})"

    def json(self, value: str) -> str:
        return f"'{value}'" if self._sqlite else f"'{value}'::json"

    def changes(self, count: int) -> dict[str, str]:
        scattered = self.moment(f"(CAST(n AS BIGINT) * {_STRIDE} % {count})", count)
        return {"created_at": scattered, "created_by": "'master'", "updated_at": scattered, "updated_by": "'master'"}


def fill(connection: Connection, sizes: Sizes) -> None:
    """Fill an empty database, and have its statistics made.

    Args:
        connection: of a transaction that writes.
        sizes: how much.
    """
    writer = _Writer(connection)
    _fill_people(writer, sizes)
    _fill_keys(writer, sizes)
    _fill_others(writer, sizes)
    _fill_audit(connection, writer, sizes)
    analyse(connection)


def analyse(connection: Connection) -> None:
    """Make the statistics that a planner decides by."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("ANALYZE")
        return
    for table in inspect(connection).get_table_names():
        connection.exec_driver_sql(f'ANALYZE "{table}"')


def _fill_people(writer: _Writer, sizes: Sizes) -> None:
    models, empty = writer.json('["llama-3", "qwen-2"]'), writer.json("{}")
    user = "'user-' || " + writer.text("n")
    writer.write(
        "users",
        sizes.users,
        {
            "user_id": user,
            "user_alias": f"CASE WHEN n % 3 <> 0 THEN 'Person ' || {writer.text(f'n * {_STRIDE} % 10007')} END",
            "user_email": f"'person.' || {writer.text('n')} || '@example.com'",
            "user_role": "CASE WHEN n % 500 = 0 THEN 'proxy_admin_viewer' ELSE 'internal_user' END",
            "models": models,
            "metadata": empty,
            **writer.changes(sizes.users),
            "allowance": writer.json('{"max_budget": 100000000000000}'),
        },
    )
    writer.write(
        "teams",
        sizes.teams,
        {
            "team_id": "'team-' || " + writer.text("n"),
            "team_alias": f"'Team ' || {writer.text(f'n * {_STRIDE} % 1009')}",
            "models": models,
            "blocked": "n % 50 = 49",
            "metadata": writer.json('{"cost_center": "4711", "contact": "someone@example.com"}'),
            **writer.changes(sizes.teams),
            "allowance": writer.json('{"rpm_limit": 1000}'),
            "organization_id": f"'organization-' || {writer.text(f'n % {sizes.organizations}')}",
        },
    )
    writer.write(
        "organizations",
        sizes.organizations,
        {
            "organization_id": "'organization-' || " + writer.text("n"),
            "organization_alias": "'Organization ' || " + writer.text("n"),
            "models": models,
            "metadata": empty,
            **writer.changes(sizes.organizations),
        },
    )
    writer.write(
        "organization_members",
        sizes.users,
        {
            "organization_id": f"'organization-' || {writer.text(f'n % {sizes.organizations}')}",
            "user_id": user,
            "role": "'internal_user'",
        },
    )
    member = {"role": "CASE WHEN n % 1000 = 0 THEN 'admin' ELSE 'user' END"}
    for large in range(sizes.large_teams):
        members = min(sizes.large_team, sizes.users)
        writer.write("members", members, {"team_id": f"'team-{large}'", "user_id": user, **member})
    others = max(sizes.teams - sizes.large_teams, 1)
    writer.write(
        "members",
        others * 20,
        {
            "team_id": f"'team-' || {writer.text(f'{sizes.large_teams} + n / 20')}",
            "user_id": f"'user-' || {writer.text(f'n * 53 % {sizes.users}')}",
            **member,
        },
    )


def _fill_keys(writer: _Writer, sizes: Sizes) -> None:
    empty, half = writer.json("{}"), sizes.keys // 2
    team = (
        f"CASE WHEN n < {half} THEN n % {sizes.large_teams} "
        f"ELSE {sizes.large_teams} + n % {max(sizes.teams - sizes.large_teams, 1)} END"
    )
    changes = writer.changes(sizes.keys)
    writer.write(
        "keys",
        sizes.keys,
        {
            "token": writer.hash("n"),
            "key_id": "substr(" + writer.hash(f"n + {sizes.keys}") + ", 1, 8) || 'key' || " + writer.text("n"),
            "key_name": "'sk-...' || substr(" + writer.hash("n") + ", 1, 4)",
            "key_alias": f"CASE WHEN n % 4 = 0 THEN NULL ELSE 'service ' || {writer.text('n')} || ' of team' END",
            "models": writer.json('["llama-3"]'),
            "allowed_routes": writer.json("[]"),
            "blocked": "n % 20 = 0",
            "expires": f"CASE WHEN n % 10 = 1 THEN {writer.moment('n', sizes.keys)} END",
            "metadata": writer.json('{"purpose": "batch jobs of the search team", "ticket": "OPS-12345"}'),
            "tags": writer.json('["production"]'),
            "user_id": f"'user-' || {writer.text(f'n % {sizes.users}')}",
            "team_id": f"'team-' || {writer.text(f'({team})')}",
            "organization_id": f"CASE WHEN n % 5 = 0 THEN 'organization-' || {writer.text('n % 100')} END",
            "budget_id": f"CASE WHEN n % 100 = 0 THEN 'budget-' || {writer.text(f'n / 100 % {sizes.budgets}')} END",
            **changes,
            "aliases": empty,
            "granted_headers": writer.json("[]"),
            "rotation_count": "0",
            "allowance": writer.json('{"rpm_limit": 600, "tpm_limit": 200000}'),
        },
    )
    spent = {
        "period_start": "0",
        "spend": f"CAST(n AS BIGINT) * {_STRIDE} % 1000003 * 1000000",
        "total_spend": "CAST(n AS BIGINT) * 1000000",
    }
    key_id = "substr(" + writer.hash(f"n + {sizes.keys}") + ", 1, 8) || 'key' || " + writer.text("n")
    # every tenth has not spent anything
    writer.write("spend", sizes.keys, {"kind": "'key'", "id": key_id, **spent}, "n % 10 <> 3")
    for kind, count in (("user", sizes.users), ("team", sizes.teams), ("end_user", sizes.customers)):
        writer.write("spend", count, {"kind": f"'{kind}'", "id": f"'{kind}-' || {writer.text('n')}", **spent})


def _fill_others(writer: _Writer, sizes: Sizes) -> None:
    writer.write(
        "end_users",
        sizes.customers,
        {
            "user_id": "'end_user-' || " + writer.text("n"),
            "alias": "'Customer ' || " + writer.text("n"),
            "blocked": "n % 100 = 0",
            **writer.changes(sizes.customers),
            "allowance": writer.json('{"max_budget": 5000000000000}'),
        },
    )
    writer.write(
        "budgets",
        sizes.budgets,
        {
            "budget_id": "'budget-' || " + writer.text("n"),
            **writer.changes(sizes.budgets),
            "allowance": writer.json('{"max_budget": 1000000000000, "budget_duration": "30d"}'),
        },
    )


def _fill_audit(connection: Connection, writer: _Writer, sizes: Sizes) -> None:
    note = '{"models": ["llama-3"], "blocked": false, "metadata": {"purpose": "batch jobs of the search team"}}'
    actions = ("key/update", "key/generate", "team/update", "user/new", "key/delete", "team/member_add")
    cases = " ".join(f"WHEN {number} THEN '{action}'" for number, action in enumerate(actions))
    kinds = " ".join(f"WHEN {number} THEN '{action.split('/')[0]}'" for number, action in enumerate(actions))
    for month in range(1, 13):
        make_month(connection, datetime(2026, month, 1, tzinfo=UTC))
    which = f"(CAST(n AS BIGINT) * {_STRIDE} % {len(actions)})"
    writer.write(
        "audit",
        sizes.audited,
        {
            "id": "n + 1",
            "at": writer.moment("n", sizes.audited),
            "actor": f"CASE WHEN n % 2 = 0 THEN 'master' ELSE substr({writer.hash('n % 1000')}, 1, 12) END",
            "actor_name": f"CASE WHEN n % 2 = 0 THEN 'master' ELSE 'operator ' || {writer.text('n % 1000')} END",
            "action": f"CASE WHEN n % 20000 = 77 THEN 'model/delete' ELSE CASE {which} {cases} END END",
            "object_type": f"CASE WHEN n % 20000 = 77 THEN 'model' ELSE CASE {which} {kinds} END END",
            "object_id": f"CASE {which} {kinds} END || '-' || {writer.text('n % 5000')}",
            "before": f"CASE WHEN {which} IN (1, 3) THEN NULL ELSE {writer.json(note)} END",
            "after": writer.json(note),
            "request_id": "'request-' || " + writer.text("n"),
            "client": "'192.0.2.1'",
        },
    )
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(
            f"SELECT setval(pg_get_serial_sequence('vllm_passthrough_audit', 'id'), {sizes.audited + 1})"
        )
