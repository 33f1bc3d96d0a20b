"""Many rows in few statements: what is absent is NULL, and nothing else is taken for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import JSON, BigInteger, Boolean, Column, Connection, MetaData, Table, Text, create_engine

from twisted_vllm.storage.usage import bulk_insert as bulk
from twisted_vllm.storage.usage.bulk_insert import SparseInsert

TABLE = Table(
    "things",
    MetaData(),
    Column("number", BigInteger, primary_key=True),
    Column("text", Text),
    Column("json", JSON(none_as_null=True)),
    Column("count", BigInteger),
    Column("truth", Boolean, nullable=False),
    Column("name", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
)


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        TABLE.create(connection)
        yield connection
    engine.dispose()


def kept(connection: Connection) -> list[list[object]]:
    """Return the columns of what is there."""
    rows = connection.exec_driver_sql("SELECT * FROM things ORDER BY number").fetchall()
    return [list(column) for column in zip(*rows, strict=True)]


def columns_of(*rows: list[object]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("names", [["", "", ""], ["", "b", "0"]])
@pytest.mark.parametrize("truths", [[False, False, False], [True, True, True], [False, True, False]])
@pytest.mark.parametrize(
    ("texts", "objects", "counts"),
    [
        ([None, None, None], [None, None, None], [None, None, None]),
        (["", "", ""], ["{}", '{"a":0}', '"0"'], [0, 0, 0]),
        (["", "0", "-1"], ["{}", '{"a":0}', '"0"'], [0, 1, 2**53]),
        ([None, "", "0"], ["null", None, "{}"], [0, None, 7]),
        (["a", None, None], [None, None, "[]"], [None, 0, None]),
    ],
)
def test_rows_are_kept_as_they_are(
    connection: Connection, texts: Any, objects: Any, counts: Any, truths: Any, names: Any
) -> None:
    columns = [[0, 1, 2], texts, objects, counts, truths, names, [0, 0, 0]]
    assert SparseInsert(TABLE).run(connection, columns) == 3
    assert kept(connection) == columns
    assert [type(name) for name in kept(connection)[5]] == [str] * 3


def test_rows_that_lack_other_things_have_statements_of_their_own(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "MAX_STATEMENTS", 2)
    insert = SparseInsert(TABLE)
    rows: list[list[object]] = [
        [1, None, None, None, True, "", 0],
        [2, "a", None, None, False, "", 0],
        [3, None, "{}", None, False, "x", 0],
        [4, None, None, 5, False, "", 6],
        [5, "a", None, None, False, "", 0],
    ]
    for row in rows:
        assert insert.run(connection, columns_of(row)) == 1
        assert insert.cached_statements <= 2
    assert kept(connection) == columns_of(*rows)


def test_rows_that_are_there_are_left_and_not_counted(connection: Connection) -> None:
    insert = SparseInsert(TABLE)
    first: list[object] = [1, "a", None, 5, True, "x", 1]
    assert insert.run(connection, columns_of(first)) == 1
    others: list[list[object]] = [[1, "b", None, 6, False, "y", 2], [2, "b", None, 6, False, "y", 2]]
    assert insert.run(connection, columns_of(*others)) == 1
    assert kept(connection)[:2] == [[1, 2], ["a", "b"]]


def test_a_column_that_a_later_version_added_stays_empty(connection: Connection) -> None:
    """An older gateway goes on writing while a newer one is there already."""
    connection.exec_driver_sql('ALTER TABLE things ADD COLUMN "later" TEXT')
    columns: list[list[Any]] = [[1], ["one"], [None], [None], [True], ["n"], [0]]
    assert SparseInsert(TABLE).run(connection, columns) == 1
    assert kept(connection)[0] == [1]
    assert kept(connection)[-1] == [None]


def test_more_rows_than_a_statement_takes_keep_their_order(connection: Connection) -> None:
    count = 2_345
    texts: list[object] = [*[None, "x"] * (count // 2), None]
    columns: list[list[object]] = [list(range(count)), texts, [None] * count, list(range(count))]
    columns += [[False] * count, ["n"] * count, list(range(count))]
    assert SparseInsert(TABLE).run(connection, columns) == count
    assert kept(connection) == columns
