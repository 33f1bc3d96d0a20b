"""Rows of the ledger as they were before they referred to who paid, and what must become of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, MetaData, Table, insert, select, text

import twisted_vllm.storage as store_package
from tests.storage.usage_contract import EVERYTHING, Ledger, check_sums, day_of, expected_sums, some_rows
from tests.usage.spool_rows import make_row
from twisted_vllm.storage.schema import migrate
from twisted_vllm.storage.usage.queries.newest import rows_of
from twisted_vllm.usage.records import UsageRow, payer_of, target_of

_MIGRATIONS = Path(store_package.__file__).parent / "migrations"


def move_back(engine: Engine, revision: str) -> None:
    """Bring a database to the schema of an earlier version."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def tables_of(engine: Engine) -> dict[str, Table]:
    """Return the ledger's tables as they are in the database, by the end of their names."""
    metadata = MetaData()
    metadata.reflect(engine)
    return {
        name.removeprefix("vllm_passthrough_"): table
        for name, table in metadata.tables.items()
        if name.startswith("vllm_passthrough_usage")
    }


def read(engine: Engine, name: str) -> list[dict[str, Any]]:
    """Return the rows of one of the ledger's tables."""
    with engine.begin() as connection:
        return [dict(row._mapping) for row in connection.execute(select(tables_of(engine)[name]))]


def contents(engine: Engine) -> dict[str, Any]:
    """Return the columns and indexes of the ledger's tables, and what they hold."""
    found: dict[str, Any] = {}
    for name, table in tables_of(engine).items():
        shape = {(column.name, str(column.type), column.nullable) for column in table.columns}
        indexes = {(str(index.name), tuple(column.name for column in index.columns)) for index in table.indexes}
        keys = [column.name for column in table.primary_key.columns]
        rows = {tuple(row[key] for key in keys): row for row in read(engine, name)}
        found[name] = (shape, indexes, keys, rows)
    return found


def old_row(row: UsageRow) -> dict[str, Any]:
    """Return a row as it was kept before, in one table."""
    values = {name: getattr(row, name) for name in row.__struct_fields__ if name not in ("payer", "target")}
    values |= msgspec.structs.asdict(payer_of(row.payer)) | msgspec.structs.asdict(target_of(row.target))
    return values | {
        "request_id": row.request_id or row.id,
        "headers": row.headers or {},
        "tags": list(payer_of(row.payer).tags),
        "prices": dict(target_of(row.target).prices),
    }


def check_that_what_was_there_is_there_in_both_shapes(ledger: Ledger) -> None:
    """Back to the former schema, where each row says everything, and forth again, nothing is lost."""
    rows = [EVERYTHING, *some_rows(300, 1)]
    rows = [msgspec.structs.replace(row, request_id="") if number % 3 else row for number, row in enumerate(rows)]
    ledger.write(*rows)
    before = contents(ledger.engine)
    ledger.database.close()

    move_back(ledger.engine, "0006")
    assert {row["id"]: row for row in read(ledger.engine, "usage")} == {row.id: old_row(row) for row in rows}
    assert {tuple(row.values()) for row in read(ledger.engine, "usage_tags")} == {
        (tag, row.time, row.id) for row in rows for tag in payer_of(row.payer).tags
    }
    of_keys: dict[tuple[Any, ...], list[UsageRow]] = {}
    for row in rows:
        day = day_of(row).date()
        for period, start in (("day", day), ("month", day.replace(day=1))):
            of_keys.setdefault((period, start, payer_of(row.payer).key_id, target_of(row.target).model), []).append(row)
    kept = [row for row in read(ledger.engine, "usage_totals") if row.pop("dimension") == "key"]
    assert {tuple(row.pop(name) for name in ("period", "start", "value", "model")): row for row in kept} == {
        key: expected_sums(members) for key, members in of_keys.items()
    }

    migrate(ledger.engine)
    check_sums(ledger, rows)
    after = contents(ledger.engine)
    for row in before["usage"][-1].values():
        # the second in an id of former versions is not quite that of the time
        row["request_id"] = row["request_id"] or row["id"]
    assert after == before


def check_that_odd_rows_are_brought_along(ledger: Ledger) -> None:
    """What says the same is one payer, whatever the spaces in its JSON; NULL and the empty name are two."""
    move_back(ledger.engine, "0006")
    table = tables_of(ledger.engine)["usage"]
    rows = [make_row(number, key_id="k", model="m", request_id="r", time=number * 10**14) for number in range(6)]
    with ledger.engine.begin() as connection:
        connection.execute(insert(table), [old_row(row) for row in rows])
        for number, change in enumerate(
            ("tags = '[ ]'", "user_id = ''", "request_id = ''", "headers = '{ }'", 'headers = \'{"a": "b"}\'')
        ):
            connection.execute(text(f"UPDATE vllm_passthrough_usage SET {change} WHERE id = '{rows[number].id}'"))
    migrate(ledger.engine)
    found = [ledger.run(lambda connection, row=row: rows_of(connection, [(row.time, row.id)]))[0] for row in rows]
    assert [row.user_id for row in found] == [None, "", None, None, None, None]
    assert [row.request_id for row in found] == ["r", "r", rows[2].id, "r", "r", "r"]
    assert [row.headers for row in found] == [None, None, None, {}, {"a": "b"}, None]
    assert len(read(ledger.engine, "usage_payers")) == 2
    assert len(read(ledger.engine, "usage_targets")) == 1
    # what comes now is numbered alike
    ledger.write(msgspec.structs.replace(rows[5], time=1, id="f" * 32))
    assert len(read(ledger.engine, "usage_payers")) == 2
    assert len(read(ledger.engine, "usage_targets")) == 1
