"""Moves the ledger's sums between the tables of revision 0009 and the one of 0010.

The former tables named texts in each row; `usage_sums` has the texts' ids, which databases cannot compute. So tables
of this migration's own say which id a text has. The rest is one statement for each kind, whose memory is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from sqlalchemy import Connection, text
from twisted.logger import Logger

from twisted_vllm.storage.usage.tables import KINDS, PAYER, USER, hash_id, name_id
from twisted_vllm.usage.records import Payer, refer

_log = Logger()

_PREFIX = "vllm_passthrough_"
_SUMS = (
    *("requests", "successful", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"),
    *("total_tokens", "audio_ms", "cost", "total_us"),
)
_CHUNK = 2_000

#: the ids of names, and of payers by who they are
_NAMES, _PAYERS = f"{_PREFIX}moved_names", f"{_PREFIX}moved_payers"
#: the former tables by payer, their column of the time, and the period
_BY_PAYER = (("usage_daily", "day", "day"), ("usage_monthly", "month", "month"))


def move_sums(connection: Connection) -> None:
    """Fill `usage_sums` and `usage_names` from the former tables, in the connection's transaction."""
    _make_helpers(connection)
    _log.info("Migrating the ledger's sums: names")
    _keep_names(connection)
    _keep_payers(connection)
    if connection.dialect.name == "postgresql":
        # Their size decides how they are joined.
        for name in (_NAMES, _PAYERS):
            connection.execute(text(f"ANALYZE {name}"))
    sums = ", ".join(f"t.{name}" for name in _SUMS)
    into = f"INSERT INTO {_PREFIX}usage_sums (kind, start, value, model, {', '.join(_SUMS)})"
    # Outer joins: an id that is missing fails the migration, and loses no row silently.
    for name, column, period in _BY_PAYER:
        _log.info("Migrating the ledger's sums: payer by {period}", period=period)
        connection.execute(
            text(
                f"{into} SELECT CAST(:kind AS SMALLINT), {_days(connection, column)}, p.payer, m.id, {sums} "
                f"FROM {_PREFIX}{name} t LEFT JOIN {_PAYERS} p "
                "ON p.key_id = t.key_id AND p.user_id = t.user_id AND p.team_id = t.team_id "
                f"LEFT JOIN {_NAMES} m ON m.name = t.model ORDER BY 2, 3, 4"
            ),
            {"kind": KINDS[PAYER, period]},
        )
    for (dimension, period), kind in KINDS.items():
        if dimension == PAYER:
            continue
        _log.info("Migrating the ledger's sums: {dimension} by {period}", dimension=dimension, period=period)
        connection.execute(
            text(
                f"{into} SELECT CAST(:kind AS SMALLINT), {_days(connection, 'start')}, v.id, m.id, {sums} "
                f"FROM {_PREFIX}usage_totals t LEFT JOIN {_NAMES} v ON v.name = t.value "
                f"LEFT JOIN {_NAMES} m ON m.name = t.model "
                "WHERE t.dimension = :dimension AND t.period = :period ORDER BY 2, 3, 4"
            ),
            {"kind": kind, "dimension": dimension, "period": period},
        )
    _drop_helpers(connection)


def move_sums_back(connection: Connection) -> None:
    """Fill the former tables from `usage_sums`, in the connection's transaction."""
    sums = ", ".join(f"SUM({name})" for name in _SUMS)
    columns = f"{', '.join(_SUMS)}, failed"
    failed = "SUM(requests) - SUM(successful)"
    model = f"LEFT JOIN {_PREFIX}usage_names m ON m.id = t.model"
    for name, column, period in _BY_PAYER:
        # Several payers may be one key, user and team, with other tags.
        connection.execute(
            text(
                f"INSERT INTO {_PREFIX}{name} ({column}, key_id, user_id, team_id, model, {columns}) "
                f"SELECT {_date(connection)}, p.key_id, COALESCE(p.user_id, ''), COALESCE(p.team_id, ''), "
                f"COALESCE(m.name, ''), {sums}, {failed} "
                f"FROM {_PREFIX}usage_sums t LEFT JOIN {_PREFIX}usage_payers p ON p.id = t.value {model} "
                "WHERE t.kind = :kind GROUP BY 1, 2, 3, 4, 5"
            ),
            {"kind": KINDS[PAYER, period]},
        )
    into = f"INSERT INTO {_PREFIX}usage_totals (dimension, period, start, value, model, {columns})"
    for (dimension, period), kind in KINDS.items():
        if dimension != PAYER:
            connection.execute(
                text(
                    f"{into} SELECT :dimension, :period, {_date(connection)}, COALESCE(v.name, ''), "
                    f"COALESCE(m.name, ''), {sums}, {failed} FROM {_PREFIX}usage_sums t "
                    f"LEFT JOIN {_PREFIX}usage_names v ON v.id = t.value {model} "
                    "WHERE t.kind = :kind GROUP BY 3, 4, 5"
                ),
                {"dimension": dimension, "period": period, "kind": kind},
            )
    connection.execute(
        text(
            f"{into} SELECT :dimension, 'day', day, user_id, model, {sums}, SUM(failed) "
            f"FROM {_PREFIX}usage_daily GROUP BY day, user_id, model"
        ),
        {"dimension": USER},
    )


def _days(connection: Connection, column: str) -> str:
    """Return the SQL for the days from 1970 to a date."""
    if connection.dialect.name == "postgresql":
        return f"t.{column} - DATE '1970-01-01'"
    return f"CAST(julianday(t.{column}) - 2440587.5 AS INTEGER)"


def _date(connection: Connection) -> str:
    """Return the SQL for a date from the column ``start``."""
    if connection.dialect.name == "postgresql":
        return "DATE '1970-01-01' + t.start"
    return "date(t.start + 2440587.5)"


def _make_helpers(connection: Connection) -> None:
    rowid = "" if connection.dialect.name == "postgresql" else " WITHOUT ROWID"
    connection.execute(text(f"CREATE TABLE {_NAMES} (name TEXT PRIMARY KEY, id BIGINT NOT NULL){rowid}"))
    connection.execute(
        text(
            f"CREATE TABLE {_PAYERS} (key_id TEXT, user_id TEXT, team_id TEXT, payer BIGINT NOT NULL, "
            f"PRIMARY KEY (key_id, user_id, team_id)){rowid}"
        )
    )


def _drop_helpers(connection: Connection) -> None:
    for name in (_NAMES, _PAYERS):
        connection.execute(text(f"DROP TABLE {name}"))


def _stream(connection: Connection, statement: str, values: dict[str, str] | None = None) -> Iterator[Any]:
    options = {"stream_results": True, "yield_per": _CHUNK}
    yield from connection.execute(text(statement), values or {}, execution_options=options)


def _insert(connection: Connection, statement: str, rows: Iterable[dict[str, Any]]) -> None:
    some = iter(rows)
    while chunk := list(islice(some, _CHUNK)):
        connection.execute(text(f"{statement} ON CONFLICT DO NOTHING"), chunk)


def _keep_names(connection: Connection) -> None:
    """Give the names in the former tables their ids."""
    dimensions = sorted({dimension for dimension, _ in KINDS})
    statements: list[tuple[str, dict[str, str]]] = [
        (f"SELECT DISTINCT value FROM {_PREFIX}usage_totals WHERE dimension = :dimension", {"dimension": dimension})
        for dimension in dimensions
    ]
    statements += [
        (f"SELECT DISTINCT model FROM {_PREFIX}{name}", {}) for name in ("usage_totals", "usage_daily", "usage_monthly")
    ]
    for statement, values in statements:
        found = ({"name": name, "id": name_id(name)} for (name,) in _stream(connection, statement, values))
        _insert(connection, f"INSERT INTO {_NAMES} (name, id) VALUES (:name, :id)", found)
    connection.execute(
        text(f"INSERT INTO {_PREFIX}usage_names (id, name) SELECT id, name FROM {_NAMES} WHERE id <> 0 ORDER BY id")
    )


def _keep_payers(connection: Connection) -> None:
    """Find a payer for each key, user and team in the former tables.

    Where several are the same key, user and team, with other tags or in another organization, the sums are not those of
    one of them: they get a payer of their own, without tags.
    """
    connection.execute(
        text(
            f"INSERT INTO {_PAYERS} SELECT key_id, COALESCE(user_id, ''), COALESCE(team_id, ''), MIN(id) "
            f"FROM {_PREFIX}usage_payers GROUP BY 1, 2, 3 "
            "HAVING MIN(CAST(tags AS TEXT)) = MAX(CAST(tags AS TEXT)) "
            "AND MIN(COALESCE(organization_id, '')) = MAX(COALESCE(organization_id, ''))"
        )
    )
    for name, _, _ in _BY_PAYER:
        missing = _stream(
            connection,
            f"SELECT DISTINCT t.key_id, t.user_id, t.team_id FROM {_PREFIX}{name} t LEFT JOIN {_PAYERS} p "
            "ON p.key_id = t.key_id AND p.user_id = t.user_id AND p.team_id = t.team_id WHERE p.payer IS NULL",
        )
        while chunk := [_payer(connection, *row) for row in islice(missing, _CHUNK)]:
            ids = [hash_id(bytes(refer(each))) for each in chunk]
            _insert(
                connection,
                f"INSERT INTO {_PREFIX}usage_payers (id, kind, key_id, key_hash, key_name, user_id, team_id, tags) "
                "VALUES (:id, :kind, :key_id, :key_hash, :key_name, :user_id, :team_id, '[]')",
                (
                    {name: getattr(each, name) for name in ("kind", "key_id", "key_hash", "key_name")}
                    | {"id": id, "user_id": each.user_id, "team_id": each.team_id}
                    for id, each in zip(ids, chunk, strict=True)
                ),
            )
            _insert(
                connection,
                f"INSERT INTO {_PAYERS} (key_id, user_id, team_id, payer) VALUES (:key_id, :user_id, :team_id, :id)",
                (
                    {"id": id, "key_id": each.key_id, "user_id": each.user_id or "", "team_id": each.team_id or ""}
                    for id, each in zip(ids, chunk, strict=True)
                ),
            )


def _payer(connection: Connection, key_id: str, user_id: str, team_id: str) -> Payer:
    """Return a payer without tags, whose name is one that the key had."""
    known = connection.execute(
        text(f"SELECT kind, key_hash, key_name FROM {_PREFIX}usage_payers WHERE key_id = :key_id ORDER BY id LIMIT 1"),
        {"key_id": key_id},
    ).first()
    kind, key_hash, key_name = known or ("key" if key_id else "master", "", "")
    return Payer(kind, key_id, key_hash, key_name, user_id or None, team_id or None)
