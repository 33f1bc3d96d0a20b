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
from sqlalchemy import JSON, Boolean, Column, Connection, Dialect, String, Table

#: how many rows go into one statement of SQLite, which is compiled once for each of these and takes 32,766 values
_CHUNKS = (1000, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1)

#: what SQLite takes for NULL, in columns of text and of numbers that may be that, which are never negative: its driver
#: looks for an adapter of each None, which takes ten times as long as binding a number
_NO_TEXT, _NO_NUMBER = 0, -1
#: kinds of rows whose statements are remembered, each of up to 60 kB
_MOST_KINDS = 16

#: one row's values in the order of the table's columns: text, whole numbers, None; JSON as its text, a date as ISO 8601
Values = Sequence[str | int | None]

_encode = msgspec.json.Encoder().encode


def _type(column: Column[Any], dialect: Dialect) -> str:
    # what is too long for a column is to fail: a cast to its type would cut it without a word
    return "TEXT" if isinstance(column.type, String) else column.type.compile(dialect)


def _mark(column: Column[Any]) -> int | None:
    """Return what stands for NULL in a column; None where nothing does, as it cannot be NULL."""
    if not column.nullable:
        return None
    return _NO_TEXT if isinstance(column.type, (String, JSON)) else _NO_NUMBER


def _nothing(column: Column[Any]) -> str:
    """Return the least that a column may have, as SQL writes it."""
    if column.nullable:
        return "NULL"
    return "''" if isinstance(column.type, String) else "0"


def _pieces(count: int) -> Iterator[tuple[int, int]]:
    """Return where the rows of each of SQLite's statements begin and end."""
    start = 0
    for size in _CHUNKS:
        while count - start >= size:
            yield start, start + size
            start += size


class BulkInsert:
    """Inserts into one table."""

    def __init__(self, table: Table, tail: str = "", *, postgresql_tail: str | None = None) -> None:
        """Prepare the statements.

        Args:
            table: where to, of at most 32 columns.
            tail: what follows the values: ``ON CONFLICT …``, ``RETURNING …``.
            postgresql_tail: the same for PostgreSQL, where it differs.
        """
        names = ", ".join(f'"{column.name}"' for column in table.columns)
        self._table = table
        self._head = f'INTO "{table.name}" ({names})'
        self._tail = tail
        self._sqlite: dict[int, str] = {}
        self._postgresql_tail = tail if postgresql_tail is None else postgresql_tail
        self._postgresql: str | None = None

    def run(self, connection: Connection, rows: Sequence[Values]) -> list[Any]:
        """Insert rows, in their order, and return what the statement returns.

        Raises:
            SQLAlchemyError: the database failed.
            OverflowError, UnicodeError: a value is none that a database keeps.
        """
        if connection.dialect.name == "postgresql":
            # Made when it is first needed: the dialect's types take 2 MB, which SQLite's gateways need not hold.
            statement = self._postgresql = self._postgresql or self._postgresql_statement(connection.dialect)
            results = [connection.exec_driver_sql(statement, (_encode(rows).decode(),))] if rows else []
        else:
            results = [
                connection.exec_driver_sql(
                    self._sqlite_statement(end - start), tuple(chain.from_iterable(rows[start:end]))
                )
                for start, end in _pieces(len(rows))
            ]
        return [row for result in results if result.returns_rows for row in result.fetchall()]

    def _sqlite_statement(self, size: int) -> str:
        # The statements of all sizes together take 100 kB for a table: only those that are needed are made.
        found = self._sqlite.get(size)
        if found is None:
            one = f"({', '.join(['?'] * len(self._table.columns))})"
            found = self._sqlite[size] = f"INSERT {self._head} VALUES {', '.join([one] * size)} {self._tail}"
        return found

    def _postgresql_statement(self, dialect: Dialect) -> str:
        casts = ", ".join(
            f"CAST(e.value ->> {number} AS {_type(column, dialect)})"
            for number, column in enumerate(self._table.columns)
        )
        return (
            f"INSERT {self._head} SELECT {casts} "
            "FROM jsonb_array_elements(CAST(%s AS jsonb)) WITH ORDINALITY AS e (value, number) "
            f"ORDER BY e.number {self._postgresql_tail}"
        )


class SparseInsert:
    """Inserts rows that have nothing in many of their columns into one table of SQLite, where they are not there yet.

    To bind a value costs a good deal more than to have a constant in the statement. So a column in which none of the
    rows has anything is not bound; in the others, what is to be NULL is bound as a number that nothing else is.
    """

    def __init__(self, table: Table) -> None:
        """Prepare; `table` has at most 32 columns, and no number in it that may be NULL is negative."""
        self._head = f'INSERT OR IGNORE INTO "{table.name}"'
        self._marks = [_mark(column) for column in table.columns]
        self._nothing = [_nothing(column) for column in table.columns]
        self._truths = [number for number, column in enumerate(table.columns) if isinstance(column.type, Boolean)]
        self._kinds: dict[tuple[int, ...], dict[int, str]] = {}

    def run(self, connection: Connection, values: list[Any]) -> int:
        """Insert rows, and return how many were not there.

        Args:
            connection: where to.
            values: those of the first row in the order of the table's columns, then those of the second, and so on;
                they are used up.

        Raises:
            SQLAlchemyError: the database failed.
            OverflowError, UnicodeError: a value is none that a database keeps.
        """
        width = len(self._marks)
        count = len(values) // width
        unbound: list[int] = []
        # from the last on: the others stay where they are
        for number in reversed(range(width)):
            mark, is_truth = self._marks[number], number in self._truths
            if values[number] and mark is None and not is_truth:
                continue
            column = values[number::width]
            if not any(column) if mark is None else column.count(None) == count:
                del values[number::width]
                unbound.append(number)
                width -= 1
            elif is_truth:
                values[number::width] = map(int, column)
            elif mark is not None and None in column:
                values[number::width] = [mark if value is None else value for value in column]
        statements = self._statements(tuple(unbound))
        inserted = 0
        for start, end in _pieces(count):
            size = end - start
            if size not in statements:
                statements[size] = f"{self._head} VALUES {', '.join([self._row(unbound)] * size)}"
            result = connection.exec_driver_sql(statements[size], tuple(values[start * width : end * width]))
            inserted += result.rowcount
        return inserted

    def _statements(self, unbound: tuple[int, ...]) -> dict[int, str]:
        """Return the statements for rows that have nothing in these columns, by the number of rows."""
        found = self._kinds.get(unbound)
        if found is None:
            if len(self._kinds) >= _MOST_KINDS:
                self._kinds.clear()
            found = self._kinds[unbound] = {}
        return found

    def _row(self, unbound: Sequence[int]) -> str:
        values = (
            nothing if number in unbound else "?" if mark is None else f"NULLIF(?, {mark})"
            for number, (nothing, mark) in enumerate(zip(self._nothing, self._marks, strict=True))
        )
        return f"({', '.join(values)})"
