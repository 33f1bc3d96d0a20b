"""A year of usage, written by SQL: the sums of millions of requests, and some of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, text

from twisted_vllm.storage.usage.tables import SUMS

#: the first day of the year
YEAR = 2025
START = int(datetime(YEAR, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
END = int(datetime(YEAR + 1, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000

#: requests of each key with each model on each day
REQUESTS = 11

_DAILY = "vllm_passthrough_usage_daily"
_MONTHLY = "vllm_passthrough_usage_monthly"
_TOTALS = "vllm_passthrough_usage_totals"


def fill_sums(connection: Connection, keys: int, models: int, days: int = 365) -> None:
    """Write the sums of a year: each key, a user's own, with each model on each day; ten users to a team."""
    day = _day(connection, "d.n")
    columns = ("key_id", "user_id", "team_id", "model")
    connection.execute(
        text(
            f"INSERT INTO {_DAILY} (day, {', '.join((*columns, *SUMS))}) "
            f"WITH RECURSIVE d (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM d WHERE n < {days - 1}), "
            f"k (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM k WHERE n < {keys - 1}), "
            f"m (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM m WHERE n < {models - 1}) "
            f"SELECT {day}, 'key-' || k.n, 'user-' || k.n, 'team-' || (k.n / 10), 'model-' || m.n, "
            f"{REQUESTS}, {REQUESTS - 1}, 1, 1000 + k.n, 100, 200 + m.n, 10, 1200 + k.n + m.n, 0, "
            "123456789 + k.n * 1000 + m.n, 1500000 FROM d, k, m"
        )
    )
    _add(connection, _MONTHLY, ("month", *columns), (_month(connection, "day"), *columns), _DAILY)
    totals = ("dimension", "period", "start", "value", "model")
    for dimension, value in (("all", "''"), ("user", "user_id"), ("team", "team_id")):
        for period, table, start in (("day", _DAILY, "day"), ("month", _MONTHLY, "month")):
            _add(connection, _TOTALS, totals, (f"'{dimension}'", f"'{period}'", start, value, "model"), table)


def _add(connection: Connection, target: str, columns: Sequence[str], values: Sequence[str], source: str) -> None:
    """Add up what a table has, in groups of the values that are no constants."""
    added = ", ".join(f"SUM({name})" for name in SUMS)
    groups = ", ".join(value for value in values if not value.startswith("'"))
    connection.execute(
        text(
            f"INSERT INTO {target} ({', '.join((*columns, *SUMS))}) "
            f"SELECT {', '.join(values)}, {added} FROM {source} GROUP BY {groups}"
        )
    )


def fill_rows(connection: Connection, rows: int, keys: int, models: int) -> None:
    """Write rows, spread over the year."""
    step = (END - START) // rows
    false = "FALSE" if connection.dialect.name == "postgresql" else "0"
    connection.execute(
        text(
            "INSERT INTO vllm_passthrough_usage_payers (id, kind, key_id, key_hash, key_name, user_id, team_id, tags) "
            f"WITH RECURSIVE k (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM k WHERE n < {keys - 1}) "
            "SELECT k.n, 'key', 'key-' || k.n, 'abcdef01', 'alias', 'user-' || k.n, 'team-' || (k.n / 10), '[]' FROM k"
        )
    )
    connection.execute(
        text(
            "INSERT INTO vllm_passthrough_usage_targets (id, model, server, route, method, prices) "
            f"WITH RECURSIVE m (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM m WHERE n < {models - 1}) "
            "SELECT m.n, 'model-' || m.n, 'server', '/v1/chat/completions', 'POST', '{}' FROM m"
        )
    )
    connection.execute(
        text(
            "INSERT INTO vllm_passthrough_usage (id, time, payer, target, request_id, end_user, status, outcome, "
            "stream, prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, total_tokens, audio_ms, "
            "estimated, cost, first_byte_us, total_us, bytes_in, bytes_out) "
            f"WITH RECURSIVE r (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM r WHERE n < {rows - 1}) "
            f"SELECT 'id-' || n, {START} + CAST(n AS bigint) * {step}, n % {keys}, n % {models}, 'request-' || n, "
            f"'end-' || (n % 1000), 200, 'completed', {false}, 100, 0, 20, 0, 120, 0, {false}, 123456789, 1000, "
            "150000, 500, 900 FROM r"
        )
    )


def fill_rare(connection: Connection) -> None:
    """Write three rows of one key, at the beginning of the year, and give everybody's keys a tag."""
    statements = (
        "INSERT INTO vllm_passthrough_usage_payers (id, kind, key_id, key_hash, key_name, tags) "
        "VALUES (-1, 'key', 'rare', '', '', '[]')",
        "UPDATE vllm_passthrough_usage SET payer = -1 WHERE time IN "
        "(SELECT time FROM vllm_passthrough_usage ORDER BY time LIMIT 3)",
        "INSERT INTO vllm_passthrough_usage_payer_tags (tag, payer) "
        "SELECT 'everybody', id FROM vllm_passthrough_usage_payers",
    )
    for statement in statements:
        connection.execute(text(statement))


def analyse(connection: Connection) -> None:
    """Let the database count what it holds, as it does now and then by itself; SQLite never does."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("ANALYZE"))


def _day(connection: Connection, number: str) -> str:
    if connection.dialect.name == "postgresql":
        return f"DATE '{YEAR}-01-01' + {number}"
    return f"date('{YEAR}-01-01', '+' || {number} || ' days')"


def _month(connection: Connection, column: str) -> str:
    if connection.dialect.name == "postgresql":
        return f"CAST(date_trunc('month', {column}) AS date)"
    return f"date({column}, 'start of month')"
