"""Rows of the ledger with their look-ups and sums, written in the transaction of a test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert

from twisted_vllm.storage.engine import begin, make_engine
from twisted_vllm.storage.usage.batch import UsageBatch
from twisted_vllm.storage.usage.gathered import GatheredSpend, GatheredSums, nobody_else
from twisted_vllm.storage.usage.marks import SUMS, Mark, move_mark, read_mark
from twisted_vllm.storage.usage.partitions import (
    Partition,
    add_partition,
    all_partitions,
    create_rows_tables,
    file_of,
    make_directory,
    new_partition,
    rows_in,
)
from twisted_vllm.storage.usage.references import References
from twisted_vllm.storage.usage.steps import SpendSteps, SumsSteps
from twisted_vllm.storage.usage.tables import rows_metadata, usage, usage_lookups
from twisted_vllm.storage.usage.top_names import TopNames
from twisted_vllm.usage.records import UsageRow

#: the spool whose rows these are
_NAME = "filler"


def keep(
    connection: Connection,
    rows: Sequence[UsageRow],
    *,
    by_day: bool = False,
    summed: bool = True,
    top: int = 1_000_000,
) -> None:
    """Write rows.

    Args:
        connection: of a transaction; that of SQLite in memory gets its partitions attached, at most eight.
        rows: the rows.
        by_day: whether their partitions have a day and not a month.
        summed: whether look-ups, sums and spend are written too, which a gateway does later.
        top: end users, and tags, with sums of their own.
    """
    references = References()
    batch = UsageBatch.of(rows, references)
    references.write(connection)
    parts: dict[Partition, list[int]] = {}
    for number, time in enumerate(batch.times):
        parts.setdefault(ensure_partition(connection, time, by_day=by_day), []).append(number)
    gathered = GatheredSums()
    gathered.add(batch)
    lookups = sorted({(value, time) for shard in gathered.lookups for value in shard for time in shard[value]})
    for partition, numbers in sorted(parts.items()):
        there = rows_in(connection, partition)
        values = [dict(zip(usage.columns.keys(), row, strict=True)) for row in zip(*batch.columns, strict=True)]
        there.execute(insert(usage), [_decoded(values[number]) for number in numbers])
        found = [{"value": value, "time": time} for value, time in lookups if partition.has(time)]
        if summed and found:
            there.execute(insert(usage_lookups), found)
    if summed:
        spent = GatheredSpend()
        spent.add(batch)
        sums = SumsSteps(gathered, references, TopNames(top), TopNames(top))
        spend = SpendSteps(spent, nobody_else, lambda _kind, _id, _time: 0, lambda _kind, _id: True, 0.0)
        for steps in (sums, spend):
            for step in steps.after(""):
                steps.write(connection, step)
        settle(connection)


def settle(connection: Connection) -> None:
    """Say that all look-ups and sums were written."""
    mark = read_mark(connection, _NAME, SUMS)
    move_mark(connection, _NAME, SUMS, mark, Mark(mark.serial + 1))


def _decoded(values: dict[str, Any]) -> dict[str, Any]:
    """Return a row's values as SQLAlchemy takes them."""
    texts = {name: values[name] for name in ("headers", "request_tags")}
    return values | {name: None if text is None else json.loads(text) for name, text in texts.items()}


def ensure_partition(connection: Connection, time: int, *, by_day: bool = False) -> Partition:
    """Return the partition of a time, made if there is none."""
    existing = all_partitions(connection)
    found = next((each for each in existing if each.has(time)), None)
    if found is None:
        found = new_partition(time, existing, by_day=by_day)
        _make(connection, found)
        add_partition(connection, found)
    return found


def _make(connection: Connection, partition: Partition) -> None:
    if connection.dialect.name != "sqlite":
        return
    file = connection.engine.url.database
    if file:
        make_directory(Path(file))
        engine = make_engine(connection.engine.url.set(database=str(file_of(Path(file), partition))), connections=1)
        with begin(engine, None, writes=True) as created:
            create_rows_tables(created)
        engine.dispose()
    else:
        schema = f"p{partition.name.replace('-', '_')}"
        connection.exec_driver_sql(f"ATTACH ':memory:' AS \"{schema}\"")
        connection.info.setdefault("attached", {})[schema] = None
        rows_metadata.create_all(rows_in(connection, partition), checkfirst=False)
