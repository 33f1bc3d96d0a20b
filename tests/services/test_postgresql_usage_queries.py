"""Reports of usage on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection

from tests.storage import usage_speed
from tests.storage.usage_queries_contract import CHECKS, empty_database


@pytest.fixture
def connection(postgresql_url: str) -> Iterator[Connection]:
    """A transaction on an empty database."""
    with empty_database(postgresql_url) as connection:
        yield connection


@pytest.mark.parametrize("check", CHECKS)
def test_the_queries_keep_their_contract(connection: Connection, check: Callable[[Connection], None]) -> None:
    check(connection)


def test_a_report_over_a_year_comes_soon(connection: Connection) -> None:
    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    usage_speed.fill(connection)
    print("\n".join(usage_speed.check_a_year(connection)))
