"""Many rows in few statements: what is absent is NULL, and nothing else is taken for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import JSON, BigInteger, Column, Connection, MetaData, Table, Text, create_engine

from twisted_vllm.store.bulk import BulkInsert

TABLE = Table(
    "things",
    MetaData(),
    Column("number", BigInteger, primary_key=True),
    Column("text", Text),
    Column("json", JSON(none_as_null=True)),
    Column("count", BigInteger),
)


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        TABLE.create(connection)
        yield connection
    engine.dispose()


@pytest.mark.parametrize(
    ("texts", "objects", "counts"),
    [
        ([None, None, None], [None, None, None], [None, None, None]),
        (["", "0", "-1"], ["{}", '{"a":0}', '"0"'], [0, 1, 2**53]),
        ([None, "", "0"], ["null", None, "{}"], [0, None, 7]),
    ],
)
def test_columns_are_kept_as_they_are(
    connection: Connection, texts: list[str | None], objects: list[str | None], counts: list[int | None]
) -> None:
    columns = [[1, 2, 3], texts, objects, counts]
    assert BulkInsert(TABLE).count(connection, columns) == 3
    kept = connection.exec_driver_sql("SELECT * FROM things ORDER BY number").fetchall()
    assert [list(column) for column in zip(*kept, strict=True)] == columns


def test_more_rows_than_a_statement_takes_keep_their_order(connection: Connection) -> None:
    count = 2_345
    columns = [list(range(count)), [None, "x"] * (count // 2) + [None], [None] * count, list(range(count))]
    assert BulkInsert(TABLE).count(connection, columns) == count
    kept = connection.exec_driver_sql("SELECT * FROM things ORDER BY number").fetchall()
    assert [list(column) for column in zip(*kept, strict=True)] == columns
