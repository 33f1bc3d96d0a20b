"""Fills a ledger of the schema of revision 0009: rows in one table, and sums in three."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from twisted_vllm.storage.usage.batch import UsageBatch
from twisted_vllm.storage.usage.references import References
from twisted_vllm.storage.usage.tables import DAY_US, SUMS, usage
from twisted_vllm.usage.records import UsageRow, payer_of, target_of

_PREFIX = "vllm_passthrough_"
Key = tuple[str, ...]
#: columns of rows that later revisions added
ADDED_LATER = ("details",)


def fill(connection: Connection, rows: Sequence[UsageRow]) -> None:
    """Store rows as the release before partitions did."""
    references = References()
    batch = UsageBatch.of(rows, references)
    references.write(connection)
    columns = {
        column.name: values
        for column, values in zip(usage.columns, batch.columns, strict=True)
        if column.name not in ADDED_LATER
    }
    _insert(connection, "usage", list(columns), list(zip(*columns.values(), strict=True)))
    tags = [(tag, row.time, row.id) for row in rows for tag in dict.fromkeys(row.request_tags)]
    _insert(connection, "usage_request_tags", ["tag", "time", "id"], tags)
    for table, sums in former_sums(rows).items():
        keys = {
            "usage_daily": ["day", "key_id", "user_id", "team_id", "model"],
            "usage_monthly": ["month", "key_id", "user_id", "team_id", "model"],
            "usage_totals": ["dimension", "period", "start", "value", "model"],
        }[table]
        _insert(connection, table, [*keys, *SUMS], [(*key, *values) for key, values in sums.items()])


def former_sums(rows: Sequence[UsageRow]) -> dict[str, dict[Key, tuple[int, ...]]]:
    """Return what the former tables of sums have for rows, by table and key."""
    found: dict[str, defaultdict[Key, Counter[str]]] = {
        name: defaultdict(Counter) for name in ("usage_daily", "usage_monthly", "usage_totals")
    }
    for row in rows:
        payer, model = payer_of(bytes(row.payer)), target_of(bytes(row.target)).model
        successful = row.requests if row.outcome == "completed" and row.status < 400 else 0
        values = {name: getattr(row, name, 0) for name in SUMS}
        values |= {"successful": successful, "failed": row.requests - successful}
        day = _date(row.time // DAY_US)
        who = (payer.key_id, payer.user_id or "", payer.team_id or "", model)
        totals = [("all", ""), ("user", payer.user_id or ""), ("team", payer.team_id or "")]
        totals += [("end_user", row.end_user or "")]
        totals += [("organization", payer.organization_id)] if payer.organization_id else []
        totals += [("tag", tag) for tag in dict.fromkeys((*payer.tags, *row.request_tags))]
        for table, period, start in (("usage_daily", "day", day), ("usage_monthly", "month", f"{day[:-2]}01")):
            found[table][start, *who].update(values)
            for dimension, value in totals:
                found["usage_totals"][dimension, period, start, value, model].update(values)
    return {
        table: {key: tuple(sums[name] for name in SUMS) for key, sums in each.items()} for table, each in found.items()
    }


def stored_sums(connection: Connection) -> dict[str, dict[Key, tuple[int, ...]]]:
    """Return what the former tables of sums have, by table and key."""
    found: dict[str, dict[Key, tuple[int, ...]]] = {}
    for table in ("usage_daily", "usage_monthly", "usage_totals"):
        rows = connection.execute(text(f"SELECT * FROM {_PREFIX}{table}")).all()
        found[table] = {tuple(str(each) for each in row[:5]): tuple(row[5:]) for row in rows}
    return found


def _date(day: int) -> str:
    from datetime import date, timedelta

    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()


def _insert(connection: Connection, table: str, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    columns = ", ".join(f'"{name}"' for name in names)
    sqlite = connection.dialect.name == "sqlite"
    casts = {"stream": "BOOLEAN", "estimated": "BOOLEAN", "headers": "JSON", "request_tags": "JSON"}
    casts |= dict.fromkeys(("day", "month"), "DATE")
    if table == "usage_totals":
        casts["start"] = "DATE"
    values = ", ".join(
        f"CAST(:{name} AS {casts[name]})" if name in casts and not sqlite else f":{name}" for name in names
    )
    if rows:
        statement = text(f"INSERT INTO {_PREFIX}{table} ({columns}) VALUES ({values})")
        connection.execute(statement, [dict(zip(names, row, strict=True)) for row in rows])
