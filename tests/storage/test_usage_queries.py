"""Reports of usage on SQLite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from tests.storage import usage_speed
from tests.storage.usage_queries_contract import CHECKS, empty_database


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
