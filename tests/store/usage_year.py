"""A year of usage, written by SQL: the sums of millions of requests, and some of their rows."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, text

from twisted_vllm.store.usage_queries_sums import SUMS

#: the first day of the year
YEAR = 2025
START = int(datetime(YEAR, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
END = int(datetime(YEAR + 1, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000

#: requests of each key with each model on each day
REQUESTS = 11

_DAILY = "vllm_passthrough_usage_daily"
_TOTALS = "vllm_passthrough_usage_totals"


def fill_sums(connection: Connection, keys: int, models: int, days: int = 365) -> None:
    """Write the sums of a year: each key, a user's own, with each model on each day; ten users to a team."""
    day = _day(connection, "d.n")
    sums = ", ".join(SUMS)
    columns = f"day, key_id, user_id, team_id, model, {sums}"
    connection.execute(
        text(
            f"INSERT INTO {_DAILY} ({columns}) "
            f"WITH RECURSIVE d (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM d WHERE n < {days - 1}), "
            f"k (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM k WHERE n < {keys - 1}), "
            f"m (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM m WHERE n < {models - 1}) "
            f"SELECT {day}, 'key-' || k.n, 'user-' || k.n, 'team-' || (k.n / 10), 'model-' || m.n, "
            f"{REQUESTS}, {REQUESTS - 1}, 1, 1000 + k.n, 100, 200 + m.n, 10, 1200 + k.n + m.n, 0, "
            "123456789 + k.n * 1000 + m.n, 1500000 FROM d, k, m"
        )
    )
    added = ", ".join(f"SUM({name})" for name in SUMS)
    for dimension, value in (("all", "''"), ("key", "key_id"), ("user", "user_id"), ("team", "team_id")):
        _add_totals(connection, "day", f"SELECT '{dimension}', 'day', day, {value} AS v, model, {added} FROM {_DAILY}")
    month = _month(connection)
    _add_totals(
        connection,
        f"{month}, dimension, value",
        f"SELECT dimension, 'month', {month}, value, model, {added} FROM {_TOTALS} WHERE period = 'day'",
    )


def _add_totals(connection: Connection, grouped: str, selected: str) -> None:
    value = ", v" if " AS v" in selected else ""
    columns = ", ".join(("dimension", "period", "start", "value", "model", *SUMS))
    connection.execute(text(f"INSERT INTO {_TOTALS} ({columns}) {selected} GROUP BY {grouped}{value}, model"))


def fill_rows(connection: Connection, rows: int, keys: int, models: int) -> None:
    """Write rows, spread over the year."""
    step = (END - START) // rows
    columns = (
        "id, request_id, time, kind, key_id, key_hash, key_name, user_id, team_id, end_user, tags, headers, model, "
        "server, route, method, status, outcome, error, stream, prompt_tokens, cached_tokens, completion_tokens, "
        "reasoning_tokens, total_tokens, audio_ms, estimated, cost, prices, first_byte_us, total_us, bytes_in, "
        "bytes_out"
    )
    false = "FALSE" if connection.dialect.name == "postgresql" else "0"
    connection.execute(
        text(
            f"INSERT INTO vllm_passthrough_usage ({columns}) "
            f"WITH RECURSIVE r (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM r WHERE n < {rows - 1}) "
            f"SELECT 'id-' || n, 'request-' || n, {START} + CAST(n AS bigint) * {step}, 'key', "
            f"'key-' || (n % {keys}), 'abcdef01', 'alias', 'user-' || (n % {keys}), 'team-' || (n % {keys} / 10), "
            f"'end-' || (n % 1000), '[]', '{{}}', 'model-' || (n % {models}), 'server', '/v1/chat/completions', "
            f"'POST', 200, 'completed', '', {false}, 100, 0, 20, 0, 120, 0, {false}, 123456789, '{{}}', 1000, "
            "150000, 500, 900 FROM r"
        )
    )


def analyse(connection: Connection) -> None:
    """Let the database count what it holds, as it does now and then by itself."""
    connection.execute(text("ANALYZE"))


def _day(connection: Connection, number: str) -> str:
    if connection.dialect.name == "postgresql":
        return f"DATE '{YEAR}-01-01' + {number}"
    return f"date('{YEAR}-01-01', '+' || {number} || ' days')"


def _month(connection: Connection) -> str:
    if connection.dialect.name == "postgresql":
        return "CAST(date_trunc('month', start) AS date)"
    return "date(start, 'start of month')"
