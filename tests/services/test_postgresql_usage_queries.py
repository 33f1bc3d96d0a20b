"""Reports of usage on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection

from tests.storage import usage_queries_contract as contract
from tests.storage import usage_speed
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import migrate


@pytest.fixture
def connection(postgresql_url: str) -> Iterator[Connection]:
    """A transaction on an empty database."""
    engine = make_engine(parse_url(Secret(postgresql_url)))
    migrate(engine)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def test_pages_make_up_the_whole_report(connection: Connection) -> None:
    contract.check_that_pages_make_up_the_whole(connection)


def test_rows_come_in_pages(connection: Connection) -> None:
    contract.check_that_rows_come_in_pages(connection)


def test_a_request_is_found_by_its_id(connection: Connection) -> None:
    contract.check_that_a_request_is_found_by_its_id(connection)


def test_days_come_in_pages(connection: Connection) -> None:
    contract.check_that_days_come_in_pages(connection)


def test_no_table_is_read_whole(connection: Connection) -> None:
    contract.check_that_indexes_are_used(connection)


def test_a_report_over_a_year_comes_soon(connection: Connection) -> None:
    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    usage_speed.fill(connection)
    print("\n".join(usage_speed.check_a_year(connection)))
