"""Which end users and tags have sums of their own: a bounded number, and the sums are whole in any case."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from tests.builders import usage_row
from tests.storage.usage_contract import Ledger, flush_all
from twisted_vllm.storage.usage.database import UsageDatabase
from twisted_vllm.storage.usage.tables import ALL, END_USER, KINDS, OTHER, TAG, usage_names, usage_sums
from twisted_vllm.usage.interfaces import Position
from twisted_vllm.usage.records import UsageRow

Write = Callable[..., None]


class Writer:
    """Writes rows and their sums with a small number of names."""

    def __init__(self, ledger: Ledger, most: int) -> None:
        self.ledger = ledger
        self.numbers = iter(range(10**9))
        self.ends = iter(range(1, 10**9))
        self.use(most)

    def use(self, most: int) -> None:
        """Begin as another process."""
        self.database: UsageDatabase = self.ledger.another(top_end_users=most, top_tags=most)
        self.accounts = self.database.open_accounts("mine", own=True)

    def write(self, *named: tuple[str | None, int], key_id: str = "k", **fields: object) -> None:
        """Write requests of end users, each with its number of requests, in one turn."""
        rows = [
            usage_row(next(self.numbers), end_user=name, requests=count, key_id=key_id, **fields)
            for name, count in named
        ]
        self.write_rows(rows)

    def write_rows(self, rows: list[UsageRow]) -> None:
        self.accounts.add([self.database.write(rows)], Position(1, next(self.ends)))
        flush_all(self.accounts)

    def requests(self, dimension: str = END_USER, period: str = "day") -> dict[str, int]:
        """Return the requests by name."""
        with self.ledger.engine.connect() as connection:
            stored = connection.execute(select(usage_names.c.id, usage_names.c.name))
            names = {0: ""} | dict(stored.all())
            columns = (usage_sums.c.value, usage_sums.c.requests)
            kind = KINDS[dimension, period]
            found = connection.execute(select(*columns).where(usage_sums.c.kind == kind))
            return {names[value]: count for value, count in found}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path}/usage.sqlite")
    yield ledger
    ledger.close()


def test_the_first_names_have_sums_and_the_rest_is_added_up(ledger: Ledger) -> None:
    writer = Writer(ledger, 3)
    writer.write(("a", 1), (None, 5))
    writer.write(*((name, 1) for name in "bcdef"))
    found = writer.requests()
    assert (found.pop(""), found.pop(OTHER)) == (5, 3)
    assert len(found) == 3
    assert writer.requests(period="month").keys() == {"", OTHER, *found}


def test_heavy_names_win_and_what_gives_way_is_not_lost(ledger: Ledger) -> None:
    writer = Writer(ledger, 3)
    writer.write(("a", 1), ("b", 2), ("c", 3))
    writer.write(("d", 4))
    assert writer.requests() == {"b": 2, "c": 3, "d": 4, OTHER: 1}
    # not more than the least one has
    writer.write(("e", 2))
    assert writer.requests() == {"b": 2, "c": 3, "d": 4, OTHER: 3}
    # All are heavier than "c"; who comes first is chance, as is whether "b" gives way for a moment.
    writer.write(("b", 9), ("f", 5))
    found = writer.requests()
    assert found.keys() == {"b", "d", "f", OTHER}
    assert (found["d"], found["f"], sum(found.values())) == (4, 5, 26)


def test_a_name_that_gives_way_in_the_same_turn_has_no_sum_of_its_own(ledger: Ledger) -> None:
    writer = Writer(ledger, 2)
    writer.write(*((f"e{number}", number) for number in range(1, 40)))
    found = writer.requests()
    assert found.pop(OTHER) == sum(range(1, 38))
    assert found == {"e38": 38, "e39": 39}


def test_one_key_does_not_take_all_places(ledger: Ledger) -> None:
    writer = Writer(ledger, 20)
    writer.write(*((f"hostile{number}", 1) for number in range(100)), key_id="hostile")
    writer.write(("a", 1), ("b", 1), key_id="other")
    found = writer.requests()
    assert (found["a"], found["b"]) == (1, 1)
    assert len([name for name in found if name.startswith("hostile")]) == 18
    # Its heavy names take the places of its own.
    writer.write(("hostile!", 5), key_id="hostile")
    found = writer.requests()
    assert (found["hostile!"], found["a"], found["b"]) == (5, 1, 1)
    assert len(found) == 21


def test_another_process_knows_the_names_of_the_period(ledger: Ledger) -> None:
    writer = Writer(ledger, 2)
    writer.write(("a", 5), ("b", 5))
    writer.use(2)
    writer.write(("c", 1), ("a", 1))
    assert writer.requests() == {"a": 6, "b": 5, OTHER: 1}


def test_whoever_is_called_like_the_rest_belongs_to_it(ledger: Ledger) -> None:
    writer = Writer(ledger, 1)
    writer.write((OTHER, 3))
    writer.write(("a", 1))
    writer.write(("b", 9))
    assert writer.requests() == {OTHER: 4, "b": 9}


def test_no_name_has_a_sum_of_its_own_where_none_may(ledger: Ledger) -> None:
    writer = Writer(ledger, 0)
    writer.write(("a", 3), (None, 1))
    assert writer.requests() == {OTHER: 3, "": 1}
    writer.database.reconfigure(1, 1)
    writer.write(("a", 2))
    assert writer.requests() == {OTHER: 3, "": 1, "a": 2}


def test_tags_of_keys_take_no_place_and_give_none(ledger: Ledger) -> None:
    writer = Writer(ledger, 1)
    numbers = writer.numbers
    writer.write_rows([usage_row(next(numbers), tags=("own", "other"))])
    writer.write_rows([usage_row(next(numbers), request_tags=("mine",))])
    writer.use(1)
    writer.write_rows([usage_row(next(numbers), request_tags=("heavy", "own"), requests=50)])
    assert writer.requests(TAG) == {"own": 51, "other": 1, "heavy": 50, OTHER: 1}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    turns=st.lists(
        st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9), st.sampled_from("kl")), min_size=1, max_size=20),
        min_size=1,
        max_size=6,
    ),
    most=st.integers(0, 8),
    restarts=st.sets(st.integers(0, 5)),
)
def test_there_are_never_too_many_names_and_the_sums_are_whole(
    tmp_path_factory: pytest.TempPathFactory,
    turns: list[list[tuple[int, int, str]]],
    most: int,
    restarts: set[int],
) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('names')}/usage.sqlite")
    writer = Writer(ledger, most)
    for number, turn in enumerate(turns):
        if number in restarts:
            writer.use(most)
        writer.write_rows(
            [
                usage_row(next(writer.numbers), end_user=f"e{name}", requests=count, key_id=key_id)
                for name, count, key_id in turn
            ]
        )
        for period in ("day", "month"):
            found = writer.requests(period=period)
            assert len(found.keys() - {OTHER}) <= most
            assert sum(found.values()) == sum(writer.requests(ALL, period).values())
    ledger.close()
