"""A year of usage, written by SQL: the sums of millions of requests, and some of their rows."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, insert, select, text, update

from tests.storage.ledger_filler import ensure_partition, settle
from twisted_vllm.storage.usage.partitions import Partition, rows_in
from twisted_vllm.storage.usage.queries.plan import microseconds
from twisted_vllm.storage.usage.tables import (
    DAY_US,
    KINDS,
    OF_END_USER,
    OF_REQUEST,
    ROWS,
    STORED_SUMS,
    lookup_id,
    name_id,
    usage,
    usage_lookups,
)

#: the first day of the year
YEAR = 2025
START = int(datetime(YEAR, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
END = int(datetime(YEAR + 1, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000

#: requests of each key with each model on each day
REQUESTS = 11

_SUMS = "vllm_passthrough_usage_sums"
_PAYERS = "vllm_passthrough_usage_payers"
_NAMES = "vllm_passthrough_usage_names"
_FIRST_DAY = START // DAY_US


def fill_sums(connection: Connection, keys: int, models: int, days: int = 365) -> None:
    """Write the sums of a year: each key, a user's own, with each model on each day; ten users to a team."""
    names = [
        f"{kind}-{number}"
        for kind, count in (("user", keys), ("team", keys), ("model", models))
        for number in range(count)
    ]
    connection.execute(
        text(f"INSERT INTO {_NAMES} (id, name) VALUES (:id, :name)"),
        [{"id": name_id(name), "name": name} for name in names],
    )
    _fill_payers(connection, keys)
    columns = ", ".join(("kind", "start", "value", "model", *STORED_SUMS))
    day, month = KINDS["payer", "day"], KINDS["payer", "month"]
    connection.execute(
        text(
            f"INSERT INTO {_SUMS} ({columns}) "
            f"WITH RECURSIVE d (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM d WHERE n < {days - 1}), "
            f"k (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM k WHERE n < {keys - 1}), "
            f"m (n, id) AS (SELECT CAST(substr(name, 7) AS INTEGER), id FROM {_NAMES} WHERE name LIKE 'model-%') "
            f"SELECT {day}, {_FIRST_DAY} + d.n, k.n, m.id, {REQUESTS}, {REQUESTS - 1}, 1000 + k.n, 100, 200 + m.n, 10, "
            "1200 + k.n + m.n, 0, 123456789 + k.n * 1000 + m.n, 1500000 FROM d, k, m"
        )
    )
    _add(connection, month, _month_of_day(), "value", f"{_SUMS} WHERE kind = {day}")
    for period, source in (("day", day), ("month", month)):
        _add(connection, KINDS["all", period], "start", "0", f"{_SUMS} WHERE kind = {source}")
        for dimension in ("user", "team"):
            kind = KINDS.get((dimension, period))
            if kind is not None:
                joined = f"{_SUMS} s JOIN {_PAYERS} p ON p.id = s.value JOIN {_NAMES} n ON n.name = p.{dimension}_id"
                _add(connection, kind, "start", "n.id", f"{joined} WHERE s.kind = {source}")


def _month_of_day() -> str:
    """Return the SQL for the first day of the month of `start`."""
    firsts = [datetime(YEAR, month, 1, tzinfo=UTC).timetuple().tm_yday - 1 for month in range(12, 0, -1)]
    cases = " ".join(f"WHEN start >= {_FIRST_DAY + first} THEN {_FIRST_DAY + first}" for first in firsts)
    return f"CASE {cases} END"


def _add(connection: Connection, kind: int, start: str, value: str, source: str) -> None:
    """Add up what some sums have."""
    added = ", ".join(f"SUM({name})" for name in STORED_SUMS)
    connection.execute(
        text(
            f"INSERT INTO {_SUMS} (kind, start, value, model, {', '.join(STORED_SUMS)}) "
            f"SELECT {kind}, a, b, model, {added} FROM "
            f"(SELECT {start} AS a, {value} AS b, model, {', '.join(STORED_SUMS)} FROM {source}) AS of_source "
            "GROUP BY a, b, model"
        )
    )


def _fill_payers(connection: Connection, keys: int) -> None:
    connection.execute(
        text(
            f"INSERT INTO {_PAYERS} (id, kind, key_id, key_hash, key_name, user_id, team_id, tags) "
            f"WITH RECURSIVE k (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM k WHERE n < {keys - 1}) "
            "SELECT k.n, 'key', 'key-' || k.n, 'abcdef01', 'alias', 'user-' || k.n, 'team-' || (k.n / 10), '[]' FROM k"
        )
    )


def fill_rows(connection: Connection, rows: int, keys: int, models: int) -> None:
    """Write rows with their look-ups, spread over the year; `fill_sums` wrote their payers."""
    step = (END - START) // rows
    false = "FALSE" if connection.dialect.name == "postgresql" else "0"
    connection.execute(
        text(
            "INSERT INTO vllm_passthrough_usage_targets (id, model, server, route, method, prices) "
            f"WITH RECURSIVE m (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM m WHERE n < {models - 1}) "
            "SELECT m.n, 'model-' || m.n, 'server', '/v1/chat/completions', 'POST', '{}' FROM m"
        )
    )
    end_users = [(number, lookup_id(OF_END_USER, f"end-{number}")) for number in range(1000)]
    for month in range(1, 13):
        partition = ensure_partition(connection, microseconds(datetime(YEAR, month, 1, tzinfo=UTC)))
        there = rows_in(connection, partition)
        schema = there.get_execution_options()["schema_translate_map"][ROWS]
        table = f"{schema}.{usage.name}" if schema else usage.name
        first, last = -(-(partition.start - START) // step), min(-(-(partition.end - START) // step), rows)
        there.execute(
            text(
                f"INSERT INTO {table} (id, time, payer, target, request_id, end_user, status, outcome, "
                "stream, prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, total_tokens, audio_ms, "
                "estimated, cost, first_byte_us, total_us, bytes_in, bytes_out) "
                f"WITH RECURSIVE r (n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM r WHERE n < {last - 1}) "
                f"SELECT 'id-' || n, {START} + CAST(n AS bigint) * {step}, n % {keys}, n % {models}, 'request-' || n, "
                f"'end-' || (n % 1000), 200, 'completed', {false}, 100, 0, 20, 0, 120, 0, {false}, 123456789, 1000, "
                "150000, 500, 900 FROM r"
            )
        )
        there.execute(
            text(
                f"INSERT INTO {table}_lookups (value, time) "
                f"SELECT payer, time FROM {table} WHERE {in_partition(partition)}"
            )
        )
        values = ", ".join(f"('end-{number}', {value})" for number, value in end_users)
        there.execute(
            text(
                f"INSERT INTO {table}_lookups (value, time) WITH e (name, value) AS (VALUES {values}) "
                f"SELECT e.value, u.time FROM {table} u JOIN e ON e.name = u.end_user WHERE {in_partition(partition)}"
            )
        )

    settle(connection)


def in_partition(partition: Partition) -> str:
    """Return the SQL for rows of a partition."""
    return f"time >= {partition.start} AND time < {partition.end}"


def fill_rare(connection: Connection) -> None:
    """Write three rows of one key, at the beginning of the year, and give everybody's keys a tag."""
    connection.execute(
        text(
            f"INSERT INTO {_PAYERS} (id, kind, key_id, key_hash, key_name, tags) "
            "VALUES (-1, 'key', 'rare', '', '', '[]')"
        )
    )
    there = rows_in(connection, ensure_partition(connection, START))
    times = list(there.execute(select(usage.c.time).order_by(usage.c.time).limit(3)).scalars())
    there.execute(update(usage).where(usage.c.time.in_(times)).values(payer=-1))
    values = [(-1, time) for time in times]
    values += [(lookup_id(OF_REQUEST, f"request-{number}"), time) for number, time in enumerate(times)]
    there.execute(insert(usage_lookups), [{"value": value, "time": time} for value, time in values])
    connection.execute(
        text(f"INSERT INTO vllm_passthrough_usage_payer_tags (tag, payer) SELECT 'everybody', id FROM {_PAYERS}")
    )


def analyse(connection: Connection) -> None:
    """Let the database count what it holds, as it does now and then by itself; SQLite never does."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("ANALYZE"))
