"""Inserts many rows with few statements, without SQLAlchemy's compiler: the ledger spends microseconds on a row.

SQLite gets one ``INSERT`` with many ``VALUES``. That takes 5 to 15 % less CPU time than ``executemany``, and releases
Python's lock once for all rows instead of after each. PostgreSQL gets the rows as one JSON array, which the server
expands: encoding it costs the gateway a fraction of what as many parameters do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import msgspec
from sqlalchemy import Column, Connection, Dialect, String, Table

#: Rows in one SQLite statement. Each size is compiled once, and takes up to 2 kB a row for as long as it is cached:
#: larger statements took 8 MB, and saved nothing that could be measured. SQLite takes at most 32,766 values.
_CHUNKS = (256, 128, 64, 32, 16, 8, 4, 2, 1)

#: statements that a `SparseInsert` keeps, each of up to 60 kB
MAX_STATEMENTS = 128

#: one row, in the order of the table's columns: text, integers and None; JSON as its text, a date as ISO 8601
Values = Sequence[str | int | None]

_encode = msgspec.json.Encoder().encode


def _cast_type(column: Column[Any], dialect: Dialect) -> str:
    # Not VARCHAR: a cast to it would silently cut a text that is too long, instead of failing.
    return "TEXT" if isinstance(column.type, String) else column.type.compile(dialect)


def _empty(column: Column[Any]) -> str:
    """Return the SQL for a column's empty value."""
    if column.nullable:
        return "NULL"
    return "''" if isinstance(column.type, String) else "0"


def _chunks(count: int) -> Iterator[tuple[int, int]]:
    """Yield the start and end of the rows of each SQLite statement."""
    start = 0
    for size in _CHUNKS:
        while count - start >= size:
            yield start, start + size
            start += size


class BulkInsert:
    """Inserts into one table, on SQLite or PostgreSQL. A statement is built when it is first needed."""

    def __init__(self, table: Table, tail: str = "", *, postgresql_tail: str | None = None) -> None:
        """Prepare.

        Args:
            table: a table of at most 32 columns.
            tail: what follows the values: ``ON CONFLICT …``, ``RETURNING …``.
            postgresql_tail: the same for PostgreSQL, where it differs.
        """
        names = ", ".join(f'"{column.name}"' for column in table.columns)
        self._table = table
        self._head = f'INSERT INTO "{table.name}" ({names})'
        self._tail = tail
        self._postgresql_tail = tail if postgresql_tail is None else postgresql_tail
        self._sqlite: dict[int, str] = {}
        self._postgresql = ""

    def run(self, connection: Connection, rows: Sequence[Values]) -> list[Any]:
        """Insert rows in their order; return the rows that ``RETURNING`` gives.

        Raises:
            SQLAlchemyError: the database failed.
            OverflowError, UnicodeError: no database can store a value.
        """
        if connection.dialect.name == "postgresql":
            self._postgresql = self._postgresql or self._postgresql_statement(connection.dialect)
            results = [connection.exec_driver_sql(self._postgresql, (_encode(rows).decode(),))] if rows else []
        else:
            results = [
                connection.exec_driver_sql(
                    self._sqlite_statement(end - start), tuple(chain.from_iterable(rows[start:end]))
                )
                for start, end in _chunks(len(rows))
            ]
        return [row for result in results if result.returns_rows for row in result.fetchall()]

    def _sqlite_statement(self, rows: int) -> str:
        if rows not in self._sqlite:
            row = f"({', '.join(['?'] * len(self._table.columns))})"
            self._sqlite[rows] = f"{self._head} VALUES {', '.join([row] * rows)} {self._tail}"
        return self._sqlite[rows]

    def _postgresql_statement(self, dialect: Dialect) -> str:
        casts = ", ".join(
            f"CAST(e.value ->> {number} AS {_cast_type(column, dialect)})"
            for number, column in enumerate(self._table.columns)
        )
        return (
            f"{self._head} SELECT {casts} "
            "FROM jsonb_array_elements(CAST(%s AS jsonb)) WITH ORDINALITY AS e (value, number) "
            f"ORDER BY e.number {self._postgresql_tail}"
        )


class SparseInsert:
    """Inserts rows that do not exist yet into one SQLite table.

    Columns that are empty in all rows become constants of the statement: a row of the ledger has many, and binding
    their values took a fifth of a row's CPU time.
    """

    def __init__(self, table: Table) -> None:
        """Prepare for a table of at most 32 columns."""
        # Their names: a later version may have added columns.
        names = ", ".join(f'"{column.name}"' for column in table.columns)
        self._head = f'INSERT OR IGNORE INTO "{table.name}" ({names})'
        self._columns = [(_empty(column), column.nullable) for column in table.columns]
        self._statement = lru_cache(maxsize=MAX_STATEMENTS)(self._build_statement)

    @property
    def cached_statements(self) -> int:
        """The number of cached statements."""
        return self._statement.cache_info().currsize

    def run(self, connection: Connection, columns: Sequence[Sequence[Any]]) -> int:
        """Insert rows; return how many did not exist.

        Args:
            connection: in a transaction.
            columns: the values of each column, in the order of the table.

        Raises:
            SQLAlchemyError: the database failed.
            OverflowError, UnicodeError: no database can store a value.
        """
        count = len(columns[0])
        bound: list[Sequence[Any]] = []
        is_bound: list[bool] = []
        for (_, nullable), column in zip(self._columns, columns, strict=True):
            is_empty = column.count(None) == count if nullable else not any(column)
            is_bound.append(not is_empty)
            if not is_empty:
                bound.append(column)
        pattern = tuple(is_bound)
        values = chain.from_iterable(zip(*bound, strict=True))
        inserted = 0
        for start, end in _chunks(count):
            rows = end - start
            parameters = tuple(islice(values, rows * len(bound)))
            inserted += connection.exec_driver_sql(self._statement(pattern, rows), parameters).rowcount
        return inserted

    def _build_statement(self, is_bound: Sequence[bool], rows: int) -> str:
        values = ("?" if each else empty for each, (empty, _) in zip(is_bound, self._columns, strict=True))
        row = f"({', '.join(values)})"
        return f"{self._head} VALUES {', '.join([row] * rows)}"
