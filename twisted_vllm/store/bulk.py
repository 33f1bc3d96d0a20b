"""Many rows in few statements, below SQLAlchemy's compiler: what the ledger writes costs microseconds for a row.

SQLite gets one ``INSERT`` of many ``VALUES``. The interpreter's lock is let go once for all of them; ``executemany``
would ask for it again after each row, and the reactor would wait as often. PostgreSQL gets the rows as one JSON array,
which the server takes apart: encoding that costs the gateway a fraction of what as many parameters do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import msgspec
from sqlalchemy import JSON, Column, Connection, String, Table
from sqlalchemy.dialects import postgresql

#: how many rows go into one statement of SQLite, which is compiled once for each of these and takes 32,766 values
_CHUNKS = (1000, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1)
_POSTGRESQL = postgresql.dialect()

#: what SQLite takes for NULL, in columns of text and of numbers that may be that, which are never negative: its driver
#: looks for an adapter of each None, which takes ten times as long as binding a number
_NO_TEXT, _NO_NUMBER = 0, -1

#: one row's values in the order of the table's columns: text, whole numbers, None; JSON as its text, a date as ISO 8601
Values = Sequence[str | int | None]

_encode = msgspec.json.Encoder().encode


def _type(column: Column[Any]) -> str:
    # what is too long for a column is to fail: a cast to its type would cut it without a word
    return "TEXT" if isinstance(column.type, String) else column.type.compile(_POSTGRESQL)


def _mark(column: Column[Any]) -> int | None:
    """Return what stands for NULL in a column; None where nothing does, as it cannot be NULL."""
    if not column.nullable:
        return None
    return _NO_TEXT if isinstance(column.type, (String, JSON)) else _NO_NUMBER


def _marked(column: Sequence[Any], mark: int | None) -> Sequence[Any]:
    """Return values with the column's mark in the place of each None."""
    absent = 0 if mark is None else column.count(None)
    if not absent:
        return column
    if absent == len(column):
        return [mark] * absent
    return [mark if value is None else value for value in column]


class BulkInsert:
    """Inserts into one table."""

    def __init__(
        self, table: Table, tail: str = "", *, postgresql_tail: str | None = None, sqlite_or: str = ""
    ) -> None:
        """Prepare the statements.

        Args:
            table: where to, of at most 32 columns.
            tail: what follows the values: ``ON CONFLICT …``, ``RETURNING …``.
            postgresql_tail: the same for PostgreSQL, where it differs.
            sqlite_or: what SQLite does with a row that it cannot take, if not end the statement: ``IGNORE``.
        """
        names = ", ".join(f'"{column.name}"' for column in table.columns)
        head = f'INTO "{table.name}" ({names})'
        self._marks = [_mark(column) for column in table.columns]
        one = f"({', '.join('?' if mark is None else f'NULLIF(?, {mark})' for mark in self._marks)})"
        insert = f"INSERT OR {sqlite_or}" if sqlite_or else "INSERT"
        self._sqlite = {size: f"{insert} {head} VALUES {', '.join([one] * size)} {tail}" for size in _CHUNKS}
        casts = ", ".join(
            f"CAST(e.value ->> {number} AS {_type(column)})" for number, column in enumerate(table.columns)
        )
        self._postgresql = (
            f"INSERT {head} SELECT {casts} "
            "FROM jsonb_array_elements(CAST(%s AS jsonb)) WITH ORDINALITY AS e (value, number) "
            f"ORDER BY e.number {tail if postgresql_tail is None else postgresql_tail}"
        )

    def run(self, connection: Connection, rows: Sequence[Values]) -> list[Any]:
        """Insert rows, in their order, and return what the statement returns.

        Raises:
            SQLAlchemyError: the database failed.
            OverflowError, UnicodeError: a value is none that a database keeps.
        """
        if connection.dialect.name == "postgresql":
            results = [connection.exec_driver_sql(self._postgresql, (_encode(rows).decode(),))] if rows else []
        else:
            results = [
                connection.exec_driver_sql(statement, tuple(chain.from_iterable(rows[start:end])))
                for statement, start, end in self._pieces(len(rows))
            ]
        return [row for result in results if result.returns_rows for row in result.fetchall()]

    def count(self, connection: Connection, columns: Sequence[Sequence[Any]]) -> int:
        """Insert rows, given as columns, into SQLite, and return how many it took.

        Raises:
            SQLAlchemyError, OverflowError, UnicodeError: likewise.
        """
        columns = [_marked(column, mark) for column, mark in zip(columns, self._marks, strict=True)]
        # `zip` makes one tuple and fills it again and again, so the garbage collector hears of none
        return sum(
            [
                connection.exec_driver_sql(
                    statement, tuple(chain.from_iterable(zip(*[column[start:end] for column in columns], strict=True)))
                ).rowcount
                for statement, start, end in self._pieces(len(columns[0]))
            ]
        )

    def _pieces(self, count: int) -> Iterator[tuple[str, int, int]]:
        start = 0
        for size in _CHUNKS:
            while count - start >= size:
                yield self._sqlite[size], start, start + size
                start += size
