"""Reports of usage on SQLite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Connection, delete

from tests.builders import usage_row
from tests.storage import usage_speed
from tests.storage.ledger_filler import keep
from tests.storage.usage_queries_contract import CHECKS, START, empty_database
from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.storage.engine import begin, make_engine, parse_url
from twisted_vllm.storage.usage.partitions import all_partitions, directory_of
from twisted_vllm.storage.usage.queries.lookups import RowFilter
from twisted_vllm.storage.usage.queries.plan import UsageQuery, plan
from twisted_vllm.storage.usage.queries.reports import Cursor, read_page
from twisted_vllm.storage.usage.queries.rows import count_rows, page_of_rows
from twisted_vllm.storage.usage.tables import DAY_US, usage_partitions
from twisted_vllm.usage.records import UsageRow


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    """A transaction on an empty database."""
    with empty_database(f"sqlite:///{tmp_path}/usage.sqlite") as connection:
        yield connection


@pytest.mark.parametrize("check", CHECKS)
def test_the_queries_keep_their_contract(connection: Connection, check: Callable[[Connection], None]) -> None:
    check(connection)


def test_a_report_over_a_year_comes_soon(connection: Connection) -> None:
    usage_speed.fill(connection)
    print("\n".join(usage_speed.check_a_year(connection)))


def test_a_report_says_that_rows_were_deleted_while_it_was_read(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/usage.sqlite"
    rows = [usage_row(number, time=START + number * DAY_US, server=f"gpu-{number}") for number in range(40)]
    with empty_database(url) as connection:
        keep(connection, rows, by_day=True)
    engine = make_engine(parse_url(Secret(url)), read_only=True)
    planned = plan(UsageQuery(("server",), "day", START, START + 40 * DAY_US))
    with begin(engine, None, writes=False) as connection:
        first = read_page(connection, planned, Cursor())
        assert first.cursor is not None
        assert len(first.groups) == 1
    drop(url, rows[:5])
    with begin(engine, None, writes=False) as connection, pytest.raises(StoreUnavailable, match="deleted while"):
        read_page(connection, planned, first.cursor)
    engine.dispose()


def test_a_page_shows_the_rest_when_the_file_of_a_partition_is_gone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/usage.sqlite"
    rows = [usage_row(number, time=START + number * DAY_US) for number in range(12)]
    with empty_database(url) as connection:
        keep(connection, rows, by_day=True)
    engine = make_engine(parse_url(Secret(url)), read_only=True)
    with begin(engine, None, writes=False) as connection:
        # What it lists is what there was when it began.
        assert len(all_partitions(connection)) == 12
        drop(url, rows[:2])
        for file in sorted(directory_of(tmp_path / "usage.sqlite").glob("2026-01-0[12].db*")):
            file.unlink()
        for asked in (RowFilter(), RowFilter(equals={"key": "k1"})):
            assert [row.id for row in page_of_rows(connection, asked, 0, 100)] == [row.id for row in rows[:1:-1]]
            assert count_rows(connection, asked) == 10
    assert not list(directory_of(tmp_path / "usage.sqlite").glob("2026-01-0[12].db"))
    engine.dispose()


def drop(url: str, rows: Sequence[UsageRow]) -> None:
    """Drop the partitions of rows."""
    engine = make_engine(parse_url(Secret(url)))
    with begin(engine, None, writes=True) as connection:
        connection.execute(delete(usage_partitions).where(usage_partitions.c.start.in_([row.time for row in rows])))
    engine.dispose()
