"""Lists by page, on SQLite."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.storage.memory_database import MemoryDatabase
from tests.storage.paging_contract import (
    BETWEEN,
    SORTED_BY,
    USERS,
    check_large_search,
    check_numbered_pages,
    check_search,
    check_walk,
)
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.storage.paging import PageQuery
from twisted_vllm.storage.transaction import Transaction


@given(USERS, BETWEEN, SORTED_BY, st.booleans(), st.integers(1, 7))
def test_a_walk_sees_each_record_once_while_others_come_and_go(
    users: Any, between: Any, sort_by: str, descending: bool, size: int
) -> None:
    database = MemoryDatabase()
    database.run_now(lambda connection: check_walk(connection, users, between, sort_by, descending, size))


@given(USERS, SORTED_BY, st.booleans(), st.integers(1, 7))
def test_pages_by_number_are_those_by_cursor(users: Any, sort_by: str, descending: bool, size: int) -> None:
    database = MemoryDatabase()
    database.run_now(lambda connection: check_numbered_pages(connection, users, sort_by, descending, size))


@given(USERS, SORTED_BY, st.booleans(), st.integers(1, 7), st.sampled_from(["a", "B", "0", "1@ex", "%", "_", "z"]))
def test_a_search_finds_what_a_look_at_each_record_finds(
    users: Any, sort_by: str, descending: bool, size: int, text: str
) -> None:
    database = MemoryDatabase()
    database.run_now(lambda connection: check_search(connection, users, sort_by, descending, size, text))


def test_what_many_records_have_is_found_in_pages_too() -> None:
    database = MemoryDatabase()
    database.run_now(lambda connection: check_large_search(connection, 2_500))


def refused(after: str, sort_by: str = "created_at") -> str:
    query = PageQuery(after=after, sort_by=sort_by)
    with pytest.raises(InvalidRequest) as caught:
        MemoryDatabase().run_now(lambda connection: Transaction(connection).users.page(query))
    assert caught.value.param == "after"
    return str(caught.value)


@given(st.one_of(st.text(min_size=1), st.binary(min_size=1).map(lambda each: base64.urlsafe_b64encode(each).decode())))
def test_what_is_no_cursor_is_refused(text: str) -> None:
    assert "must be what the page before gave" in refused(text)


@pytest.mark.parametrize(
    "place",
    [
        '["created_at",true,"2026-03-01T00:00:00","u"]',
        '["created_at",true,"today","u"]',
        '["created_at",true,7,"u"]',
        '["created_at",true,null,"u"]',
        '["created_at",true,"2026-03-01T00:00:00+00:00",7]',
        '["created_at",true,"2026-03-01T00:00:00+00:00","\\u0000"]',
        '["created_at",true]',
        "[" * 5000,
    ],
)
def test_a_cursor_of_wrong_values_is_refused(place: str) -> None:
    assert "must be what the page before gave" in refused(base64.urlsafe_b64encode(place.encode()).decode())


def test_a_cursor_of_another_order_is_refused() -> None:
    place = '["created_at",false,"2026-03-01T00:00:00+00:00","u"]'
    assert "in another order" in refused(base64.urlsafe_b64encode(place.encode()).decode())
