"""What holds of the migration to partitions in every database: no row and no sum is lost."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from sqlalchemy import Connection, Engine, select, text

from tests.builders import NOON, usage_row
from tests.storage.former_ledger import ADDED_LATER, fill, former_sums, stored_sums
from tests.storage.migrations import differences, downgrade, upgrade
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import migrate
from twisted_vllm.storage.tables import VERSION_TABLE
from twisted_vllm.storage.usage.database import UsageDatabase
from twisted_vllm.storage.usage.partitions import all_partitions, detach_all, partitions_of, rows_in
from twisted_vllm.storage.usage.tables import (
    KINDS,
    PAYER,
    usage,
    usage_lookups,
    usage_names,
    usage_payers,
    usage_sums,
)
from twisted_vllm.usage.records import UsageRow

DAY = 86_400
FORMER = "0009_log_bodies"


def some_rows(count: int = 400) -> list[UsageRow]:
    """Return rows of four months with every kind of name; some keys changed their tags, some their team."""
    chosen = random.Random(7)
    rows = []
    for number in range(count):
        key = chosen.choice(["", "k1", "k2", "k3"])
        status, outcome = chosen.choice([(200, "completed"), (200, "completed"), (500, "completed"), (200, "reset")])
        rows.append(
            usage_row(
                number,
                time=(NOON - chosen.randrange(110) * DAY) * 1_000_000 + number,
                kind="key" if key else "master",
                key_id=key,
                user_id=chosen.choice([None, "ada"]) if key == "k2" else None,
                team_id=chosen.choice(["red", "blue"]) if key == "k1" else None,
                tags=chosen.choice([(), ("old",), ("new", "ü")]) if key == "k3" else (),
                organization_id="acme" if key == "k1" else None,
                model=chosen.choice(["qwen", "llama", ""]),
                request_id=chosen.choice(["", f"request-{number}"]),
                response_id=chosen.choice(["", f"response-{number % 50}"]),
                end_user=chosen.choice([None, "grace", "o'hara"]),
                request_tags=chosen.choice([(), (), ("mine", "yours")]),
                requests=chosen.choice([1, 1, 1, 5]),
                status=status,
                outcome=outcome,
                error="draining" if status == 500 and number % 2 else "",
                cost=chosen.randrange(10**12),
            )
        )
    return rows


def engine_of(url: str) -> Engine:
    return make_engine(parse_url(Secret(url)))


def make_former(url: str, rows: list[UsageRow]) -> Engine:
    """Return an engine of a database of the former release that has rows."""
    engine = engine_of(url)
    with engine.begin() as connection:
        upgrade(connection, FORMER)
        if rows:
            fill(connection, rows)
    return engine


def make_new(url: str, rows: list[UsageRow]) -> Engine:
    """Return an engine of a new database into which the writer wrote rows."""
    engine = engine_of(url)
    migrate(engine)
    database = UsageDatabase(Secret(url), lambda kind, id, time: 0)
    written = database.write(rows)
    assert written is not None
    accounts = database.open_accounts("spool", own=True)
    accounts.add([written], None)
    while accounts.flush(force=True)[0]:
        pass
    database.close()
    return engine


def rows_of(engine: Engine) -> list[dict[str, Any]]:
    """Return all rows in order."""
    return sorted((dict(row._mapping) for row in _read(engine, usage)), key=lambda row: (row["time"], row["id"]))


def lookups_of(engine: Engine) -> list[tuple[int, int]]:
    return sorted(tuple(row) for row in _read(engine, usage_lookups))


def _read(engine: Engine, table: Any) -> list[Any]:
    found: list[Any] = []
    with engine.connect() as connection:
        for partition in partitions_of(connection):
            found += rows_in(connection, partition).execute(select(table)).all()
        connection.rollback()
        detach_all(connection.connection.driver_connection, connection.info)
    return found


def sums_of(engine: Engine) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """Return the sums by kind, start, the value's name and the model's; those of payers by key, user and team."""
    with engine.connect() as connection:
        names = {0: ""} | {row.id: row.name for row in connection.execute(select(usage_names))}
        payers = {
            row.id: (row.key_id, row.user_id or "", row.team_id or "")
            for row in connection.execute(select(usage_payers))
        }
        found: dict[tuple[Any, ...], Counter[int]] = {}
        for kind, start, value, model, *sums in connection.execute(select(usage_sums)):
            is_payer = kind in (KINDS[PAYER, "day"], KINDS[PAYER, "month"])
            key = (kind, start, payers[value] if is_payer else names[value], names[model])
            found.setdefault(key, Counter()).update(dict(enumerate(sums)))
    return {key: tuple(each[number] for number in range(10)) for key, each in found.items()}


class PartitionsMigrationContract:
    """Fixtures: `urls`, three empty databases."""

    def test_a_migrated_ledger_is_like_one_that_was_written_anew(self, urls: list[str]) -> None:
        rows = some_rows()
        migrated, fresh = make_former(urls[0], rows), make_new(urls[1], rows)
        migrate(migrated)
        assert len(rows_of(migrated)) == len(rows)
        assert rows_of(migrated) == rows_of(fresh)
        assert lookups_of(migrated) == lookups_of(fresh)
        assert sums_of(migrated) == sums_of(fresh)
        with migrated.connect() as one, fresh.connect() as other:
            assert all_partitions(one) == all_partitions(other)
            assert {each.name.count("-") for each in all_partitions(one)} == {1}
        for engine in (migrated, fresh):
            engine.dispose()

    def test_the_writer_goes_on_in_a_migrated_ledger(self, urls: list[str]) -> None:
        rows = some_rows()
        migrated, fresh = make_former(urls[0], rows[:200]), make_new(urls[1], rows)
        migrate(migrated)
        make_new(urls[0], rows[200:]).dispose()
        assert rows_of(migrated) == rows_of(fresh)
        assert lookups_of(migrated) == lookups_of(fresh)
        assert sums_of(migrated) == sums_of(fresh)
        for engine in (migrated, fresh):
            engine.dispose()

    def test_an_empty_ledger_is_migrated(self, urls: list[str]) -> None:
        engine = make_former(urls[0], [])
        migrate(engine)
        assert rows_of(engine) == []
        assert sums_of(engine) == {}
        engine.dispose()

    def test_the_tables_are_those_that_the_code_knows(self, urls: list[str]) -> None:
        engine = make_former(urls[0], [])
        migrate(engine)
        with engine.connect() as connection:
            assert differences(connection) == []
        engine.dispose()

    def test_a_downgrade_gives_back_rows_and_sums(self, urls: list[str]) -> None:
        rows = some_rows()
        engine = make_former(urls[0], rows)
        with engine.begin() as connection:
            before = _former_rows(connection)
        migrate(engine)
        with engine.begin() as connection:
            _downgrade_to_former(connection)
        with engine.begin() as connection:
            assert _former_rows(connection) == before
            assert stored_sums(connection) == former_sums(rows)
        migrate(engine)
        assert len(rows_of(engine)) == len(rows)
        with engine.begin() as connection:
            left = downgrade(connection)
        assert left == [VERSION_TABLE]
        engine.dispose()

    def test_rows_of_a_wrong_clock_have_partitions_of_their_own(self, urls: list[str]) -> None:
        """Months without rows have none."""
        rows = [*some_rows(3), usage_row(7, time=0), usage_row(8, time=(NOON + 5000 * DAY) * 1_000_000)]
        engine = make_former(urls[0], rows)
        migrate(engine)
        assert len(rows_of(engine)) == 5
        with engine.connect() as connection:
            assert len(all_partitions(connection)) <= 5
        engine.dispose()


def _former_rows(connection: Connection) -> tuple[list[Any], list[Any]]:
    names = ", ".join(f'"{column.name}"' for column in usage.columns if column.name not in ADDED_LATER)
    rows = connection.execute(text(f"SELECT {names} FROM vllm_passthrough_usage ORDER BY time, id")).all()
    tags = connection.execute(text("SELECT * FROM vllm_passthrough_usage_request_tags ORDER BY tag, time, id")).all()
    return [tuple(row) for row in rows], [tuple(row) for row in tags]


def _downgrade_to_former(connection: Connection) -> None:
    from alembic import command

    from tests.storage.migrations import _config

    command.downgrade(_config(connection), FORMER)
