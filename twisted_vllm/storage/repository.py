"""The records of one table, as one transaction sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import attrs
from attrs import AttrsInstance
from sqlalchemy import ColumnElement, Connection, Row, Table, delete, func, insert, select, update

T = TypeVar("T")
RecordT = TypeVar("RecordT", bound=AttrsInstance)

#: values that one statement takes: SQLite's own limit is 32,766
_MOST_VALUES = 1000


def in_chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Return `values` in pieces that one statement takes."""
    return (values[start : start + _MOST_VALUES] for start in range(0, len(values), _MOST_VALUES))


@attrs.frozen
class PageQuery:
    """Which records, in which order, which page of them.

    Attributes:
        page: the page's number, from 1.
        size: how many records a page holds.
        equals: columns, and the value that each must have.
        contains: columns, and what must stand somewhere in each, whatever its case.
        sort_by: the column to sort by; ties, and a name that is no column, are decided by the record's identity.
        descending: whether the largest comes first; ``None`` is larger than anything.
    """

    page: int = 1
    size: int = 10
    equals: Mapping[str, Any] = attrs.field(factory=dict)
    contains: Mapping[str, str] = attrs.field(factory=dict)
    sort_by: str = "created_at"
    descending: bool = True


@attrs.frozen
class Page(Generic[RecordT]):
    """One page of records and what stands around it."""

    records: list[RecordT]
    total_count: int
    current_page: int
    total_pages: int


class Repository(Generic[RecordT]):
    """Records by their identity, the one column that is the table's primary key.

    Args:
        connection: the transaction's.
        table: where the records are.
        record: their class, whose attributes are the table's columns.
        touched: is told the identity of each record that changes.
    """

    def __init__(
        self, connection: Connection, table: Table, record: type[RecordT], touched: Callable[[str], None]
    ) -> None:
        self._connection = connection
        self._table = table
        self._record = record
        self._touched = touched
        [self._identity] = table.primary_key.columns
        self._tuples = [field.name for field in attrs.fields(record) if str(field.type).startswith("tuple")]

    def get(self, identity: str) -> RecordT | None:
        """Return the record of this identity."""
        found = self.find(**{self._identity.name: identity})
        return found[0] if found else None

    def find(self, **equals: Any) -> list[RecordT]:
        """Return the records whose columns have these values, the smallest identity first."""
        return self._read(*(self._table.c[name] == value for name, value in equals.items()))

    def among(self, column: str, values: Iterable[Any]) -> list[RecordT]:
        """Return the records whose column has one of these values."""
        found: list[RecordT] = []
        for some in in_chunks(list(dict.fromkeys(values))):
            found += self._read(self._table.c[column].in_(some))
        return found

    def _read(self, *conditions: ColumnElement[bool]) -> list[RecordT]:
        asked = select(self._table).where(*conditions).order_by(self._identity)
        return [self._made(row) for row in self._connection.execute(asked)]

    def page(self, query: PageQuery, *conditions: ColumnElement[bool]) -> Page[RecordT]:
        """Return the page that was asked for; one after the last is empty."""
        columns = self._table.c
        wanted = [columns[name] == value for name, value in query.equals.items()]
        wanted += [columns[name].icontains(value, autoescape=True) for name, value in query.contains.items()]
        wanted += conditions
        count = self._connection.execute(select(func.count()).select_from(self._table).where(*wanted)).scalar_one()
        sorting = self._sorting(query.sort_by)
        order = [self._identity] if sorting is None else [sorting, self._identity]
        asked = (
            select(self._table)
            .where(*wanted)
            .order_by(*(each.desc().nulls_first() if query.descending else each.asc().nulls_last() for each in order))
            .limit(query.size)
            .offset((query.page - 1) * query.size)
        )
        return Page(
            records=[self._made(row) for row in self._connection.execute(asked)],
            total_count=count,
            current_page=query.page,
            total_pages=-(-count // query.size),
        )

    def _sorting(self, name: str) -> ColumnElement[Any] | None:
        """Return what a list is sorted by."""
        return self._table.c.get(name)

    def insert(self, record: RecordT) -> None:
        """Keep a new record."""
        values = self._values(record)
        self._connection.execute(insert(self._table).values(values))
        self._touched(str(values[self._identity.name]))

    def replace(self, identity: str, record: RecordT) -> None:
        """Keep a record in the place of another, whose identity may have been different."""
        values = self._values(record)
        self._connection.execute(update(self._table).where(self._identity == identity).values(values))
        self._touched(identity)
        self._touched(str(values[self._identity.name]))

    def delete(self, identities: Sequence[str]) -> None:
        """Forget records; those that are not there are none."""
        for some in in_chunks(identities):
            self._connection.execute(delete(self._table).where(self._identity.in_(some)))
        for identity in identities:
            self._touched(identity)

    def _values(self, record: RecordT) -> dict[str, Any]:
        values = {column.name: getattr(record, column.name) for column in self._table.columns}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def _made(self, row: Row[Any]) -> RecordT:
        values = dict(row._mapping)
        for name in self._tuples:
            values[name] = tuple(values[name])
        return self._record(**values)
