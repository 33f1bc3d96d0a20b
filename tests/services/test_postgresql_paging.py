"""Lists by page, on PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from tests.services.private_postgresql import PrivatePostgresql
from tests.storage.paging_contract import (
    BETWEEN,
    SORTED_BY,
    USERS,
    check_large_search,
    check_numbered_pages,
    check_search,
    check_walk,
)
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import migrate


@pytest.fixture(scope="module")
def engine(postgresql: PrivatePostgresql) -> Any:
    engine = make_engine(parse_url(Secret(postgresql.make_database())))
    migrate(engine)
    yield engine
    engine.dispose()


def in_a_transaction(engine: Engine, work: Any) -> None:
    """Do work that nothing is left of."""
    with engine.connect() as connection, connection.begin() as transaction:
        # a machine that runs other tests as well may be slow
        connection.execute(text("SET LOCAL statement_timeout = '60s'"))
        work(connection)
        transaction.rollback()


@settings(max_examples=25)
@given(USERS, BETWEEN, SORTED_BY, st.booleans(), st.integers(1, 7))
def test_a_walk_sees_each_record_once_while_others_come_and_go(
    engine: Engine, users: Any, between: Any, sort_by: str, descending: bool, size: int
) -> None:
    in_a_transaction(engine, lambda connection: check_walk(connection, users, between, sort_by, descending, size))


@settings(max_examples=25)
@given(USERS, SORTED_BY, st.booleans(), st.integers(1, 7))
def test_pages_by_number_are_those_by_cursor(
    engine: Engine, users: Any, sort_by: str, descending: bool, size: int
) -> None:
    in_a_transaction(engine, lambda connection: check_numbered_pages(connection, users, sort_by, descending, size))


@settings(max_examples=25)
@given(USERS, SORTED_BY, st.booleans(), st.integers(1, 7), st.sampled_from(["a", "B", "0", "1@ex", "%", "_", "z"]))
def test_a_search_finds_what_a_look_at_each_record_finds(
    engine: Engine, users: Any, sort_by: str, descending: bool, size: int, text: str
) -> None:
    in_a_transaction(engine, lambda connection: check_search(connection, users, sort_by, descending, size, text))


def test_what_many_records_have_is_found_in_pages_too(engine: Engine) -> None:
    in_a_transaction(engine, lambda connection: check_large_search(connection, 2_500))
