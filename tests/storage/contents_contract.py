"""What holds of kept prompts and answers in every database: found by row, bounded by time and size, the oldest go."""

from __future__ import annotations

import os

from sqlalchemy import func, select

from tests.storage.retention_contract import Store, at
from twisted_vllm.storage import request_contents
from twisted_vllm.storage.engine import begin
from twisted_vllm.storage.request_contents import (
    KeptContents,
    have_contents,
    read_contents,
    size_of_contents,
    trim_contents,
    write_contents,
)
from twisted_vllm.storage.tables import request_contents as table

HOUR = 3_600_000_000
START = at("2026-06-01")


def some(number: int, body: bytes = b"") -> KeptContents:
    # what is random is not made smaller
    return KeptContents(f"{number:032x}", START + number * HOUR, body or os.urandom(1_000))


def keep(store: Store, *contents: KeptContents) -> None:
    with begin(store.engine, None, writes=True) as connection:
        write_contents(connection, contents)


def numbers(store: Store) -> list[int]:
    with begin(store.engine, None, writes=False) as connection:
        return sorted(int(each, 16) for each in connection.execute(select(table.c.id)).scalars())


class ContentsContract:
    """Fixture: `store`."""

    def test_what_is_kept_is_found_by_its_row(self, store: Store) -> None:
        text = '{"input":"Grüße \\u0000 <script>"}'.encode()
        keep(store, some(1, text), some(2))
        # a batch may be delivered twice
        keep(store, some(1, b"{}"), some(3))
        with begin(store.engine, None, writes=False) as connection:
            assert read_contents(connection, f"{1:032x}") == text
            assert read_contents(connection, "0" * 32) is None
            wanted = [f"{number:032x}" for number in (1, 3, 9)]
            assert have_contents(connection, wanted) == set(wanted[:2])

    def test_text_takes_less_room_than_it_is_long(self, store: Store) -> None:
        keep(store, some(1, b'{"input": "What is up?"}' * 1_000))
        with begin(store.engine, None, writes=False) as connection:
            assert 0 < size_of_contents(connection) < 2_000

    def test_what_is_too_old_goes(self, store: Store) -> None:
        keep(store, *map(some, range(10)))
        assert trim_contents(store.engine, START + 4 * HOUR, None, 8.0) == 4
        assert numbers(store) == [4, 5, 6, 7, 8, 9]
        assert trim_contents(store.engine, START + 4 * HOUR, None, 8.0) == 0

    def test_of_too_much_the_oldest_go(self, store: Store) -> None:
        keep(store, *map(some, range(10)))
        with begin(store.engine, None, writes=False) as connection:
            most = size_of_contents(connection) - 2_500
        assert trim_contents(store.engine, START, most, 8.0) == 3
        assert numbers(store) == [3, 4, 5, 6, 7, 8, 9]

    def test_many_go_in_several_transactions(self, store: Store) -> None:
        keep(store, *map(some, range(25)))
        former, request_contents._DELETED_AT_ONCE = request_contents._DELETED_AT_ONCE, 10
        try:
            assert trim_contents(store.engine, START + 23 * HOUR, 0, 8.0) == 25
        finally:
            request_contents._DELETED_AT_ONCE = former
        with begin(store.engine, None, writes=False) as connection:
            assert connection.execute(select(func.count()).select_from(table)).scalar() == 0

    def test_they_go_with_the_rows_of_their_requests(self, store: Store) -> None:
        keep(store, *map(some, range(3)))
        store.database.drop_before(START + HOUR)
        assert numbers(store) == [1, 2]
