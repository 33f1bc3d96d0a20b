"""``python -m benchmarks.growth.fill URL``: fills a database as a year of use does, in minutes.

Everything is written by the gateway's own storage. To save time, the indexes of the ledger's tables that guard nothing
are made at the end.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime

import attrs
import psycopg
from sqlalchemy import insert
from sqlalchemy.engine import Engine, make_url

from benchmarks.growth.ledger import PREFIX, Ledger
from benchmarks.growth.options import add_size, size_of, spread_of
from benchmarks.growth.population import Population, Size
from benchmarks.growth.traffic import MONTH_SECONDS, Spread, Traffic
from benchmarks.run import say
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import begin, make_engine, parse_url
from twisted_vllm.storage.schema import migrate
from twisted_vllm.storage.store import change_in
from twisted_vllm.storage.tables import members
from twisted_vllm.storage.transaction import Transaction

#: keys in one transaction: the table of changes keeps as many
_KEYS_AT_ONCE = 10_000
#: rows in one transaction; more than the gateway writes at once, as they need not wait
_ROWS_AT_ONCE = 20_000
_TOLD_EVERY = 25


@attrs.frozen
class Filled:
    """What a filling took.

    Attributes:
        keys_seconds: for keys, users, teams and organizations.
        rows_seconds: for the rows with their sums, and the indexes.
    """

    keys_seconds: float
    rows_seconds: float


def fill(url: str, size: Size, spread: Spread, *, now: float, progress: Callable[[str], None] = say) -> Filled:
    """Fill an empty database.

    Args:
        url: as in ``DATABASE_URL``.
        size: what it shall hold.
        spread: how its rows spread over keys and end users.
        now: Unix seconds: the last row is from then.
        progress: is told how far it is.

    Raises:
        StoreError, SQLAlchemyError: the database cannot be used, or is not empty.
    """
    engine = make_engine(parse_url(Secret(url)), connections=1)
    try:
        began = time.monotonic()
        migrate(engine)
        _fill_keys(engine, Population(size), now - size.months * MONTH_SECONDS)
        made = time.monotonic()
        progress(f"{size.keys:,} keys after {made - began:.1f} s")
        # SQLite lets one connection write: this one must not hold a lock
        engine.dispose()
        with _indexes_made_last(url):
            _fill_rows(url, size, spread, now, progress)
        _finish(url)
        return Filled(made - began, time.monotonic() - made)
    finally:
        engine.dispose()


def _fill_keys(engine: Engine, population: Population, at: float) -> None:
    created = datetime.fromtimestamp(at, UTC)

    def change(work: Callable[[Transaction], None]) -> None:
        with begin(engine, None, writes=True) as connection:
            change_in(connection, work)

    def groups(transaction: Transaction) -> None:
        transaction.organizations.insert_all(population.organization_records(created))
        transaction.teams.insert_all(population.team_records(created))
        transaction.users.insert_all(population.user_records(created))
        memberships = [attrs.asdict(member, recurse=False) for member in population.members()]
        if memberships:
            # `MemberRepository` looks for each first
            transaction.connection.execute(insert(members), memberships)

    change(groups)
    for start in range(0, population.size.keys, _KEYS_AT_ONCE):
        records = population.key_records(created, start, start + _KEYS_AT_ONCE)
        change(lambda transaction, records=records: transaction.keys.insert_all(records))  # type: ignore[misc] # a default is not inferred


def _fill_rows(url: str, size: Size, spread: Spread, now: float, progress: Callable[[str], None]) -> None:
    ledger = Ledger(url)
    began, written = time.monotonic(), 0
    try:
        for number, rows in enumerate(Traffic(Population(size), spread).batches(now, _ROWS_AT_ONCE), 1):
            ledger.write(rows)
            written += len(rows)
            if number % _TOLD_EVERY == 0:
                progress(f"{written:,} of {size.rows:,} rows after {time.monotonic() - began:.0f} s")
    finally:
        ledger.close()


@contextmanager
def _indexes_made_last(url: str) -> Iterator[None]:
    """Drop the indexes of the ledger's tables that do not keep rows unique, and make them again afterwards."""
    if _is_sqlite(url):
        found = f"SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name LIKE '{PREFIX}%' AND sql <> ''"
    else:
        found = (
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema() "
            f"AND tablename LIKE '{PREFIX}%' AND indexdef NOT LIKE '%UNIQUE%'"
        )
    indexes = _execute(url, found)
    _execute(url, *(f'DROP INDEX "{name}"' for name, _ in indexes))
    yield
    _execute(url, *(definition for _, definition in indexes))


def _finish(url: str) -> None:
    """Leave the database as one that has been used for long: counted, and its log written back."""
    _execute(url, "PRAGMA wal_checkpoint(TRUNCATE)" if _is_sqlite(url) else "VACUUM ANALYZE")


def _is_sqlite(url: str) -> bool:
    return make_url(url).get_backend_name() == "sqlite"


def _execute(url: str, *statements: str) -> list[tuple[str, ...]]:
    """Execute statements, each in a transaction of its own; return the rows of the last one.

    The gateway's own connections have time limits, and an index of millions of rows takes minutes.
    """
    rows: list[tuple[str, ...]] = []
    if _is_sqlite(url):
        with closing(sqlite3.connect(str(make_url(url).database), isolation_level=None)) as file:
            file.execute("PRAGMA cache_size = -200000")
            for statement in statements:
                rows = file.execute(statement).fetchall()
        return rows
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            done = connection.execute(statement.encode())
            rows = done.fetchall() if done.description else []
    return rows


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth.fill",
        description="Fills an empty database with keys, users, teams and a ledger.",
    )
    parser.add_argument("url", metavar="URL", help="sqlite:///FILE or postgresql://…")
    add_size(parser)
    chosen = parser.parse_args(arguments)
    size = size_of(chosen)
    filled = fill(chosen.url, size, spread_of(chosen), now=time.time())
    print(f"{size.words()}: {filled.keys_seconds:.1f} s for the keys, {filled.rows_seconds:.1f} s for the rows.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
