"""Many rows in few statements, below SQLAlchemy's compiler: what the ledger writes costs microseconds for a row.

SQLite gets one ``INSERT`` of many ``VALUES``. The interpreter's lock is let go once for all of them; ``executemany``
would ask for it again after each row, and the reactor would wait as often. PostgreSQL gets the rows as one JSON array,
which the server takes apart: encoding that costs the gateway a fraction of what as many parameters do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec
from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql

#: how many rows go into one statement of SQLite, which is compiled once for each of these
_CHUNKS = (256, 64, 16, 4, 1)
_POSTGRESQL = postgresql.dialect()

#: one row's values in the order of the table's columns: text, whole numbers, None; JSON as its text, a date as ISO 8601
Values = Sequence[str | int | None]

_encode = msgspec.json.Encoder().encode


class BulkInsert:
    """Inserts into one table."""

    def __init__(self, table: Table, tail: str = "", *, postgresql_tail: str | None = None) -> None:
        """Prepare the statements.

        Args:
            table: where to.
            tail: what follows the values: ``ON CONFLICT …``, ``RETURNING …``.
            postgresql_tail: the same for PostgreSQL, where it differs.
        """
        names = ", ".join(f'"{column.name}"' for column in table.columns)
        head = f'INSERT INTO "{table.name}" ({names})'
        one = f"({', '.join('?' * len(table.columns))})"
        self._sqlite = {size: f"{head} VALUES {', '.join([one] * size)} {tail}" for size in _CHUNKS}
        casts = ", ".join(
            f"CAST(e.value ->> {number} AS {column.type.compile(_POSTGRESQL)})"
            for number, column in enumerate(table.columns)
        )
        self._postgresql = (
            f"{head} SELECT {casts} FROM jsonb_array_elements(CAST(%s AS jsonb)) WITH ORDINALITY AS e (value, number) "
            f"ORDER BY e.number {tail if postgresql_tail is None else postgresql_tail}"
        )

    def run(self, connection: Connection, rows: Sequence[Values]) -> list[Any]:
        """Insert rows, in their order, and return what the statement returns.

        Raises:
            SQLAlchemyError: the database failed.
            OverflowError, UnicodeError: a value is none that a database keeps.
        """
        found: list[Any] = []
        if connection.dialect.name == "postgresql":
            if rows:
                _run(connection, self._postgresql, (_encode(rows).decode(),), found)
            return found
        start = 0
        for size in _CHUNKS:
            while len(rows) - start >= size:
                values = tuple(chain.from_iterable(rows[start : start + size]))
                _run(connection, self._sqlite[size], values, found)
                start += size
        return found


def _run(connection: Connection, statement: str, values: tuple[Any, ...], found: list[Any]) -> None:
    result = connection.exec_driver_sql(statement, values)
    if result.returns_rows:
        found += result.fetchall()
