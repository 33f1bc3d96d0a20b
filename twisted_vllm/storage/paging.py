"""Pages of records by key set: a page begins after the last record of the page before, which an index finds at once.

A numbered page, as LiteLLM's clients ask for it, is found by a walk through the narrowest index, from the nearer end,
that reads the identities of the records alone.

A part of a name is in no index. A search reads the table once, in the order in which it lies on the disk, and finds the
identities of few records; a walk in the order of the list would look up each record of the table. Only what many
records have is found by such a walk: it soon comes by enough of them.

NULL counts as larger than any value. SQLite sorts it the other way round, and no database finds `(NULL, id)` in an
index. So a list that is sorted by a column with NULLs has two parts, one without them and one of them alone.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar

import attrs
import msgspec
from attrs import AttrsInstance
from sqlalchemy import Column, ColumnElement, Connection, Row, Select, Table, and_, func, literal, or_, select, tuple_

from twisted_vllm.errors import InvalidRequest
from twisted_vllm.storage.counts import Counts, count_of
from twisted_vllm.storage.tables import UtcDateTime

RecordT = TypeVar("RecordT", bound=AttrsInstance)

#: the most records of a search that are found by their identities
_FEW = 1_000

#: the most characters of a cursor: it holds the name of a record and one of its values, each up to 255 characters
_LONGEST_CURSOR = 4_000


@attrs.frozen
class PageQuery:
    """Which records to list, in which order, and which page of them.

    Attributes:
        page: the page's number, from 1.
        size: records on a page.
        after: the cursor that the page before had; empty for the page with that number.
        equals: values that columns must have.
        contains: texts that columns must contain, in upper or lower case.
        among: values of which a column must have one.
        search: a text that one of some columns must contain, likewise; empty for any.
        search_in: these columns.
        search_begins: columns that may begin with the text in lower case instead.
        sort_by: the column to sort by; for ties, and where there is no such column, the record's identity.
        descending: whether the largest comes first; ``None`` counts as larger than any value.
    """

    page: int = 1
    size: int = 10
    after: str = ""
    equals: Mapping[str, Any] = attrs.field(factory=dict)
    contains: Mapping[str, str] = attrs.field(factory=dict)
    among: Mapping[str, Sequence[str]] = attrs.field(factory=dict)
    search: str = ""
    search_in: tuple[str, ...] = ()
    search_begins: tuple[str, ...] = ()
    sort_by: str = "created_at"
    descending: bool = True

    def conditions(self, table: Table, dialect: str) -> list[ColumnElement[bool]]:
        """Return the conditions that a record must meet.

        Args:
            table: where the records are.
            dialect: the database's.
        """
        columns = table.c
        wanted = [columns[name] == value for name, value in self.equals.items()]
        wanted += [_contains(columns[name], value, dialect) for name, value in self.contains.items()]
        wanted += [columns[name].in_(values) for name, values in self.among.items()]
        if self.search:
            contained = (_contains(columns[name], self.search, dialect) for name in self.search_in)
            begun = (_begins(columns[name], self.search.lower()) for name in self.search_begins)
            wanted.append(or_(*contained, *begun))
        return wanted

    @property
    def is_filtered(self) -> bool:
        """Whether it leaves records out."""
        return bool(self.equals or self.among or self.searches)

    @property
    def searches(self) -> bool:
        """Whether records are looked for by what no index has: a part of a name, or that they are blocked."""
        return bool(self.search or self.contains or "blocked" in self.equals)


@attrs.frozen
class Page(Generic[RecordT]):
    """One page of records, and how many there are in all.

    Attributes:
        records: the records.
        total_count: of all pages.
        current_page: the number that was asked for.
        total_pages: how many pages there are.
        next: the cursor of the page after; None for the last page.
    """

    records: list[RecordT]
    total_count: int
    current_page: int
    total_pages: int
    next: str | None = None


@attrs.frozen
class _Part:
    """A part of a list whose order one index has.

    Attributes:
        conditions: which records are in it.
        order: the columns that it is sorted by; the last is the identity.
        has_value: whether the column that the list is sorted by has a value in it.
    """

    conditions: tuple[ColumnElement[bool], ...]
    order: tuple[ColumnElement[Any], ...]
    has_value: bool = True


class Pager:
    """Reads pages of one table in one transaction."""

    def __init__(
        self,
        connection: Connection,
        table: Table,
        identity: Column[Any],
        counts: Counts | None,
    ) -> None:
        """Read a table.

        Args:
            connection: the transaction's.
            table: where the records are.
            identity: the column that no two records have the same value of.
            counts: remembers how many records there are; None to count them each time.
        """
        self._connection = connection
        self._table = table
        self._identity = identity
        self._counts = counts

    def read(
        self,
        query: PageQuery,
        conditions: Sequence[ColumnElement[bool]] = (),
        column: ColumnElement[Any] | None = None,
        total: int | None = None,
    ) -> tuple[list[Row[Any]], int, str | None]:
        """Return the rows of a page, how many records there are in all, and the cursor of the page after.

        A page after the last is empty.

        Args:
            query: which page.
            conditions: what the records must meet besides.
            column: what to sort by; None for the identity. An expression is never NULL, and has no cursor.
            total: how many records there are in all, where that is known.

        Raises:
            InvalidRequest: the cursor is none, or that of another order.
        """
        wanted = [*query.conditions(self._table, self._connection.dialect.name), *conditions]
        parts = self._parts(column, query.descending)
        # What other tables decide may change without a change of this one.
        counts = None if conditions else self._counts
        if query.searches and total is None:
            total, few = self._found(wanted, counts)
            if few is not None:
                wanted, counts = [self._identity.in_(few)], None
        sizes = self._sizes(wanted, parts, counts, total)
        if query.after:
            rows = self._after(query, wanted, parts, column)
            is_last = len(rows) <= query.size
            rows = rows[: query.size]
        else:
            skip = (query.page - 1) * query.size
            rows = self._numbered(query, wanted, parts, sizes, skip)
            is_last = skip + len(rows) >= sum(sizes)
        following = None if is_last or not rows else self._cursor_of(rows[-1], query, column)
        return rows, sum(sizes), following

    def _sizes(
        self,
        wanted: Sequence[ColumnElement[bool]],
        parts: Sequence[_Part],
        counts: Counts | None,
        total: int | None,
    ) -> list[int]:
        """Return how many records each part of a list has."""
        if total is None:
            return [count_of(self._connection, self._table, [*wanted, *part.conditions], counts) for part in parts]
        if len(parts) == 1:
            return [total]
        first = count_of(self._connection, self._table, [*wanted, *parts[0].conditions], counts)
        return [first, total - first]

    def _found(self, wanted: Sequence[ColumnElement[bool]], counts: Counts | None) -> tuple[int, Sequence[Any] | None]:
        """Return how many records meet some conditions, and if they are few, their identities.

        Counted and found in one reading of the table. That they are many is remembered.
        """
        found = select(self._identity).where(*wanted).cte("found")
        statement = select(select(func.count()).select_from(found).scalar_subquery(), found.c[0]).limit(_FEW)
        rows: Sequence[Any] | None = None

        def read() -> Sequence[Any]:
            return self._connection.execute(statement).all()

        def count() -> int:
            nonlocal rows
            rows = read()
            return rows[0][0] if rows else 0

        number = count() if counts is None else counts.get_of(self._connection, statement, count)
        if number > _FEW:
            return number, None
        few = read() if rows is None else rows
        return len(few), [row[1] for row in few]

    def _parts(self, column: ColumnElement[Any] | None, descending: bool) -> list[_Part]:
        if column is None or column is self._identity:
            return [_Part((), (self._identity,), has_value=False)]
        order = (column, self._identity)
        if not getattr(column, "nullable", False):
            return [_Part((), order)]
        filled = _Part((column.is_not(None),), order)
        empty = _Part((column.is_(None),), (self._identity,), has_value=False)
        return [empty, filled] if descending else [filled, empty]

    def _after(
        self,
        query: PageQuery,
        wanted: Sequence[ColumnElement[bool]],
        parts: Sequence[_Part],
        column: ColumnElement[Any] | None,
    ) -> list[Row[Any]]:
        """Return the rows after a cursor, and one more if there is one."""
        value, identity = self._place_in(query, column)
        begins_in = next(number for number, part in enumerate(parts) if part.has_value is (value is not None))
        rows: list[Row[Any]] = []
        for part in parts[begins_in:]:
            conditions = [*wanted, *part.conditions]
            if part is parts[begins_in]:
                conditions.append(_is_after(part, value, identity, query.descending))
            left = query.size + 1 - len(rows)
            statement = select(self._table).where(*conditions).order_by(*_ordered(part, query.descending)).limit(left)
            rows += self._connection.execute(statement).all()
            if len(rows) > query.size:
                break
        return rows

    def _numbered(
        self,
        query: PageQuery,
        wanted: Sequence[ColumnElement[bool]],
        parts: Sequence[_Part],
        sizes: Sequence[int],
        skip: int,
    ) -> list[Row[Any]]:
        rows: list[Row[Any]] = []
        for part, size in zip(parts, sizes, strict=True):
            limit = min(query.size - len(rows), size - skip)
            if limit > 0:
                rows += self._slice([*wanted, *part.conditions], part, query.descending, size, skip, limit)
            skip = max(skip - size, 0)
        return rows

    def _slice(
        self,
        conditions: Sequence[ColumnElement[bool]],
        part: _Part,
        descending: bool,
        size: int,
        skip: int,
        limit: int,
    ) -> list[Row[Any]]:
        """Return rows of a part by their number in it."""
        if not skip:
            first = select(self._table).where(*conditions).order_by(*_ordered(part, descending)).limit(limit)
            return list(self._connection.execute(first))
        backwards = skip > size // 2
        if backwards:
            skip = size - skip - limit
        # The rows that are skipped are not read, where an index has what they are sorted by.
        located = self._locating()
        order = _ordered(part, descending is not backwards)
        found: Select[Any] = select(*located).where(*conditions).order_by(*order).limit(limit).offset(skip)
        places = [tuple(row) for row in self._connection.execute(found)]
        if not places:
            return []
        column = located[0] if len(located) == 1 else tuple_(*located)
        among = [place[0] for place in places] if len(located) == 1 else places
        rows = {
            tuple(getattr(row, each.name) for each in located): row
            for row in self._connection.execute(select(self._table).where(column.in_(among)))
        }
        in_order = [rows[place] for place in places if place in rows]
        return in_order[::-1] if backwards else in_order

    def _locating(self) -> tuple[Any, ...]:
        """Return the columns by which a row is found at once: its identity, with that of the partition before it."""
        partition = self._table.info.get("located_by") if self._connection.dialect.name == "postgresql" else None
        return (self._identity,) if partition is None else (self._table.c[partition], self._identity)

    def _cursor_of(self, row: Row[Any], query: PageQuery, column: ColumnElement[Any] | None) -> str | None:
        if column is None or column is self._identity:
            value = None
        elif isinstance(column, Column):
            value = getattr(row, column.name)
        else:
            # What no column has is found by its number only.
            return None
        if isinstance(value, datetime):
            value = value.isoformat()
        place = (query.sort_by, query.descending, value, getattr(row, self._identity.name))
        return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode("ascii").rstrip("=")

    def _place_in(self, query: PageQuery, column: ColumnElement[Any] | None) -> tuple[Any, Any]:
        """Return the value and the identity that a cursor names.

        Raises:
            InvalidRequest: it is none, or that of another order.
        """
        text = query.after
        try:
            if len(text) > _LONGEST_CURSOR:
                raise ValueError("too long")
            found = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            kind, descending, value, identity = msgspec.json.decode(found, type=_Place)
            sorted_by_value = column is not None and column is not self._identity
            _check_type(identity, self._identity)
            if sorted_by_value and (value is not None or not getattr(column, "nullable", False)):
                value = _value_of(value, column)
            elif value is not None:
                raise ValueError("a value in place of none")
        except (ValueError, binascii.Error, msgspec.DecodeError):
            raise InvalidRequest(
                "`after` must be what the page before gave as `next`: ask for the first page without it.", param="after"
            ) from None
        if (kind, descending) != (query.sort_by, query.descending) or not isinstance(column, Column | None):
            raise InvalidRequest(
                "`after` is the cursor of a list in another order: ask for each page in the same order.", param="after"
            )
        return value, identity


#: what a cursor holds: what the list is sorted by, whether the largest comes first, the value and the identity of the
#: last record
_Place = tuple[str, bool, str | int | None, str | int]

_MAX_NUMBER = 2**63


def _check_type(value: Any, column: ColumnElement[Any]) -> None:
    if type(value) is not column.type.python_type or (isinstance(value, str) and "\0" in value):
        raise ValueError("of another type")
    if isinstance(value, int) and not -_MAX_NUMBER <= value < _MAX_NUMBER:
        raise ValueError("too large")


def _value_of(value: Any, column: Any) -> Any:
    if isinstance(column.type, UtcDateTime):
        moment = datetime.fromisoformat(str(value))
        if moment.tzinfo is None:
            raise ValueError("without a time zone")
        return moment
    _check_type(value, column)
    return value


def _contains(column: ColumnElement[Any], text: str, dialect: str) -> ColumnElement[bool]:
    """Return the condition that a column contains a text, in upper or lower case."""
    if dialect == "sqlite":
        # Its LIKE folds the same letters as its lower(), in half the time.
        return column.contains(text, autoescape=True)
    return column.icontains(text, autoescape=True)


def _begins(column: ColumnElement[Any], text: str) -> ColumnElement[bool]:
    """Return the condition that a column begins with a text. A range would depend on the database's collation."""
    return func.substr(column, 1, len(text)) == text


def _ordered(part: _Part, descending: bool) -> list[ColumnElement[Any]]:
    return [each.desc() if descending else each.asc() for each in part.order]


def _is_after(part: _Part, value: Any, identity: Any, descending: bool) -> ColumnElement[bool]:
    """Return the condition that a record of a part comes after a place in it."""
    *columns, last = part.order
    if not columns:
        beyond: ColumnElement[bool] = last < identity if descending else last > identity
        return beyond
    [column] = columns
    here = tuple_(literal(value, column.type), literal(identity, last.type))
    place = tuple_(column, last)
    # The first condition follows from the second; SQLite finds the start of a range by it.
    within = column <= value if descending else column >= value
    return and_(within, place < here if descending else place > here)
