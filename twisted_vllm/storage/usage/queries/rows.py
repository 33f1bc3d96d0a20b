"""Reads ledger rows in pages, newest first, and the names of their keys.

A filter may match millions of rows, or three from last year; in neither case are all rows read or sorted. Partitions
are read one after the other, the newest first. In each, rows are read in the order of time, or their times are looked
up. A user or team has one payer or thousands, and look-ups order each payer's rows by time: one look-up per payer finds
the newest row. From there, rows are read in growing windows of time; another look-up skips the empty time between two
windows.

Look-ups are written some seconds after the rows. Therefore the newest rows are always read in the order of time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
from sqlalchemy import BigInteger, ColumnElement, Connection, Row, Select, and_, func, literal_column, select, true

from twisted_vllm.storage.repository import in_chunks
from twisted_vllm.storage.tables import former_keys, keys
from twisted_vllm.storage.usage.marks import SUMS as SUMS_MARK
from twisted_vllm.storage.usage.partitions import Partition, PartitionGone, partitions_of, rows_in
from twisted_vllm.storage.usage.queries.lookups import (
    LookUp,
    RowFilter,
    conditions_of,
    is_own_id,
    joined,
    look_ups,
    own_ids,
    row_conditions,
)
from twisted_vllm.storage.usage.queries.plan import MODEL
from twisted_vllm.storage.usage.tables import (
    ALL,
    DAY,
    DAY_US,
    KEY,
    KINDS,
    RowKey,
    has_row_key,
    name_id,
    usage,
    usage_lookups,
    usage_marks,
    usage_payers,
    usage_sums,
    usage_targets,
)

#: the maximum count of rows; no page begins after it
MAX_COUNTED = 100_000

#: the first window in microseconds, the growth factor of the next ones, and the rows from which on they do not grow
_WINDOW, _GROWTH, _MANY = 60_000_000, 8, 1_000
#: Rows that began so long before look-ups were written, in microseconds, are looked up; so many of the newest rows are
#: not in any case.
_SETTLED, _MOST_RECENT = 60_000_000, 20_000
#: payers that are looked up one by one
_FEW = 8
#: rows that are counted exactly, where look-ups alone tell the number
_EXACT = 5_000


@attrs.frozen
class KeyLabel:
    """The names of a key in a report.

    Attributes:
        token: its SHA-256.
        key_name: ``sk-...`` and its last four characters.
        key_alias: the name that an administrator gave it.
        user_id: its user.
        team_id: its team.
    """

    token: str
    key_name: str
    key_alias: str | None
    user_id: str | None
    team_id: str | None


@attrs.frozen
class _Span:
    """A part of a partition.

    Attributes:
        partition: the partition.
        start: in microseconds since 1970.
        end: exclusive, likewise.
        looked_up: whether its rows are looked up.
    """

    partition: Partition
    start: int
    end: int
    looked_up: bool

    def has(self, time: ColumnElement[int]) -> list[ColumnElement[bool]]:
        """Return the conditions for rows or look-ups of it."""
        return [time >= self.start, time < self.end]


def page_of_rows(connection: Connection, wanted: RowFilter, skip: int, limit: int) -> Sequence[Row[Any]]:
    """Return rows with their payers and targets, newest first.

    The `request_id` of a row without one from the client is its `id`.
    """
    return rows_of(connection, _Search(connection, wanted).newest(skip, limit))


def count_rows(connection: Connection, wanted: RowFilter) -> int:
    """Return the number of rows; `MAX_COUNTED` + 1 for more than `MAX_COUNTED`.

    Of many rows, those of one payer that began in the same microsecond count as one.
    """
    search = _Search(connection, wanted)
    counted = 0
    for span in search.spans():
        counted += search.count(span, MAX_COUNTED + 1 - counted, max(_EXACT - counted, 0))
        if counted > MAX_COUNTED:
            break
    return min(counted, MAX_COUNTED + 1)


def rows_of(connection: Connection, keys: Sequence[RowKey]) -> list[Row[Any]]:
    """Return the existing rows with these keys, with their payers and targets, in the order of the keys."""
    own = [column for column in usage.columns if column.name not in ("payer", "target", "request_id")]
    others = [column for table in (usage_payers, usage_targets) for column in table.columns if column.name != "id"]
    request_id = func.coalesce(usage.c.request_id, usage.c.id).label("request_id")
    statement = joined(select(request_id, *own, *others), (KEY, MODEL))
    found: dict[RowKey, Row[Any]] = {}
    for partition in partitions_of(connection) if keys else ():
        some = [key for key in keys if partition.has(key[0])]
        if some and _opened(connection, partition):
            for chunk in in_chunks(some):
                for row in connection.execute(statement.where(*has_row_key(chunk))):
                    found[row.time, row.id] = row
    # One may have been deleted meanwhile.
    return [found[key] for key in keys if key in found]


def row_with_id(connection: Connection, id: str, equals: Mapping[str, str]) -> Row[Any] | None:
    """Return the row with an id, also where the client gave its request another one; None if there is none.

    Args:
        connection: of a transaction that reads.
        id: the row's.
        equals: values that dimensions must have.
    """
    conditions = row_conditions(connection.dialect.name, equals)
    for second, own in own_ids(id):
        last = second + 1_000_000
        near = (usage.c.time >= second, usage.c.time <= last, usage.c.id == own, *conditions)
        for partition in partitions_of(connection):
            if partition.start <= last and second < partition.end and _opened(connection, partition):
                key = connection.execute(select(usage.c.time, usage.c.id).where(*near)).first()
                if key is not None:
                    return next(iter(rows_of(connection, [(key.time, key.id)])), None)
    return None


def first_row(connection: Connection) -> int | None:
    """Return when the request of the oldest row began, in microseconds since 1970."""
    for partition in reversed(partitions_of(connection)):
        if _opened(connection, partition):
            found: int | None = connection.execute(select(func.min(usage.c.time))).scalar()
            if found is not None:
                return found
    return None


def _opened(connection: Connection, partition: Partition) -> bool:
    try:
        rows_in(connection, partition)
    except PartitionGone:
        return False
    return True


# keys that rows name


def key_id_of(connection: Connection, token: str) -> str | None:
    """Return the permanent id of the key with this hash, or with a former hash."""
    for table in (keys, former_keys):
        found: str | None = connection.execute(select(table.c.key_id).where(table.c.token == token)).scalar()
        if found is not None:
            return found
    return None


def key_labels(connection: Connection, key_ids: Sequence[str]) -> dict[str, KeyLabel]:
    """Return the names of the keys with these ids; deleted keys are omitted."""
    columns = (keys.c.key_id, keys.c.token, keys.c.key_name, keys.c.key_alias, keys.c.user_id, keys.c.team_id)
    found = {}
    for chunk in in_chunks(key_ids):
        for key_id, *values in connection.execute(select(*columns).where(keys.c.key_id.in_(chunk))):
            found[key_id] = KeyLabel(*values)
    return found


# searching


class _Search:
    """Finds the rows of a filter."""

    def __init__(self, connection: Connection, wanted: RowFilter) -> None:
        dialect = connection.dialect.name
        self._connection = connection
        self._wanted = wanted
        self._conditions = conditions_of(dialect, wanted)
        self._look_ups = _of_few(connection, look_ups(dialect, wanted))
        self._own_ids = [] if wanted.request_id is None else own_ids(wanted.request_id)
        # of the next window; an older partition begins with that of the one before
        self._width = _WINDOW

    def newest(self, skip: int, limit: int) -> list[RowKey]:
        """Return the keys of the newest rows.

        Args:
            skip: how many to leave out.
            limit: how many to return at most.
        """
        found: list[RowKey] = []
        for span in self.spans():
            some, skip = self._newest_of(span, skip, limit - len(found))
            found += some
            if len(found) >= limit:
                break
        return found

    def spans(self) -> Iterator[_Span]:
        """Yield the time range in parts, the newest first. The tables of rows mean those of the part's partition."""
        start, end = self._range()
        settled, left = self._moved_at() - _SETTLED, _MOST_RECENT
        for partition in partitions_of(self._connection):
            low, high = max(start, partition.start), min(end, partition.end)
            if low >= high or not _opened(self._connection, partition):
                continue
            if self._look_ups is None:
                yield _Span(partition, low, high, False)
                continue
            recent = max(low, min(settled, high))
            if recent < high:
                recent, left = self._recent(recent, high, left)
                yield _Span(partition, recent, high, False)
            if low < recent:
                yield _Span(partition, low, recent, True)

    def _range(self) -> tuple[int, int]:
        """Return the time range to search; an empty one if the sums show that there are no rows."""
        start = self._wanted.start or 0
        end = 2**62 if self._wanted.end is None else self._wanted.end
        if self._look_ups is None and MODEL in self._wanted.equals:
            # Models are not looked up: search between the first and the last day with sums.
            days, settled = _days_with(self._connection, self._wanted.equals[MODEL]), self._moved_at() - _SETTLED
            if days is None:
                return start, start
            start = max(start, days[0])
            if settled >= days[1]:
                end = min(end, days[1])
        return start, end

    def _moved_at(self) -> int:
        """Return when look-ups and sums were written last by the gateway that is behind most."""
        moved = select(func.min(usage_marks.c.moved_at)).where(usage_marks.c.what == SUMS_MARK)
        return self._connection.execute(moved).scalar() or 0

    def _recent(self, start: int, end: int, left: int) -> tuple[int, int]:
        """Return from when on rows of a time are not looked up, if so many are left, and how many are left then."""
        time = usage.c.time
        if left <= 0:
            return end, 0
        newest = select(time).where(time >= start, time < end).order_by(time.desc()).limit(left)
        found = newest.subquery("newest")
        oldest, count = self._connection.execute(select(func.min(found.c.time), func.count()).select_from(found)).one()
        return (start, left - count) if count < left else (oldest + 1, 0)

    def _newest_of(self, span: _Span, skip: int, limit: int) -> tuple[list[RowKey], int]:
        """Return the keys of the newest rows of a part, and how many more to leave out of older parts."""
        if span.looked_up and self._look_ups is not None:
            if len(self._look_ups) == 1 and not self._own_ids:
                return self._looked_up(self._look_ups[0], span, skip, limit)
            return self._of_several(self._look_ups, span, skip, limit)
        statement = select(usage.c.time, usage.c.id).where(*self._conditions, *span.has(usage.c.time))
        found = self._keys(statement.order_by(usage.c.time.desc(), usage.c.id.desc()), skip, limit)
        return self._left(found, skip, limit, span)

    def _left(self, found: list[RowKey], skip: int, limit: int, span: _Span) -> tuple[list[RowKey], int]:
        if not found and skip and limit:
            return found, skip - min(self.count(span, skip), skip)
        return found, 0

    def _keys(self, statement: Select[Any], skip: int, limit: int) -> list[RowKey]:
        rows = self._connection.execute(statement.offset(skip).limit(limit))
        return [(row[0], row[1]) for row in rows]

    def _looked_up(self, look_up: LookUp, span: _Span, skip: int, limit: int) -> tuple[list[RowKey], int]:
        if isinstance(look_up.values, int):
            # of one value, look-ups are in the order of time
            return self._left(self._keys(self._joined(look_up, span, in_order=True), skip, limit), skip, limit, span)
        found: list[RowKey] = []
        end = span.end
        while len(found) < limit:
            newest = self._newest_time(look_up.values, attrs.evolve(span, end=end))
            if newest is None:
                break
            window = attrs.evolve(span, start=max(newest + 1 - self._width, span.start), end=newest + 1)
            end = window.start
            # Look-ups are counted sooner than rows are sorted.
            passed = self._count_of(look_up, window, skip + 1, 0) if skip else 0
            if passed > skip or not skip:
                some = self._keys(self._joined(look_up, window, in_order=False), skip, limit - len(found))
                passed, skip = skip + len(some), 0
                found += some
            else:
                skip -= passed
            if passed < _MANY:
                self._width *= _GROWTH
        return found, skip

    def _of_several(self, look_ups: Sequence[LookUp], span: _Span, skip: int, limit: int) -> tuple[list[RowKey], int]:
        """Return the keys of rows that any of several look-ups finds."""
        merged: set[RowKey] = set()
        for each in look_ups:
            merged.update(self._looked_up(each, span, 0, skip + limit)[0])
        for own in self._of_own_ids(span):
            merged.update(self._keys(own, 0, skip + limit))
        found = sorted(merged, reverse=True)
        return found[skip : skip + limit], max(skip - len(found), 0)

    def _of_own_ids(self, span: _Span) -> Iterator[Select[Any]]:
        for second, id in self._own_ids:
            time = usage.c.time
            near = (time >= second, time <= second + 1_000_000, is_own_id(id))
            yield select(time, usage.c.id).where(*near, *self._conditions, *span.has(time))

    def _joined(self, look_up: LookUp, span: _Span, *, in_order: bool) -> Select[Any]:
        """Return the statement for the keys of rows that were looked up, newest first."""
        time = usage_lookups.c.time
        wanted = (usage.c.time == time, look_up.found, *self._conditions)
        rows: Any = usage
        if self._connection.dialect.name == "postgresql":
            # Its planner would read all rows and look each of them up, where it expects few to be wanted. OFFSET keeps
            # it from that: each time that was looked up is sought.
            sought = select(usage.c.time, usage.c.id).where(*wanted, *span.has(usage.c.time)).correlate(usage_lookups)
            rows = sought.offset(0).lateral("sought")
            wanted = (true(),)
        statement = select(rows.c.time, rows.c.id).select_from(usage_lookups.join(rows, and_(*wanted)))
        statement = statement.where(look_up.has_value, *span.has(time))
        # Adding 0 keeps SQLite, which has no statistics, from reading all rows in the order of time.
        order = time if in_order else time + literal_column("0", BigInteger)
        return statement.order_by(order.desc(), rows.c.id.desc())

    def _newest_time(self, payers: Select[Any], span: _Span) -> int | None:
        """Return when the newest row of some payers began."""
        ids = payers.subquery("ids")
        [id] = ids.c
        time = usage_lookups.c.time
        of_one = select(func.max(time)).where(usage_lookups.c.value == id, *span.has(time))
        found: int | None = self._connection.execute(
            select(func.max(of_one.scalar_subquery())).select_from(ids)
        ).scalar()
        return found

    def count(self, span: _Span, limit: int, exact: int = _EXACT) -> int:
        """Return the number of rows of a part, up to a limit. Of more than `exact`, look-ups may be counted instead."""
        if not span.looked_up or self._look_ups is None:
            return self._count(select(usage.c.id).where(*self._conditions, *span.has(usage.c.time)), limit)
        if self._wanted.request_id is None:
            counted = 0
            for each in self._look_ups:
                if counted < limit:
                    counted += self._count_of(each, span, limit - counted, max(exact - counted, 0))
            return counted
        statements = [self._joined(each, span, in_order=False).order_by(None) for each in self._look_ups]
        statements += self._of_own_ids(span)
        found: set[RowKey] = set()
        for statement in statements:
            found.update(self._keys(statement, 0, limit))
        return min(len(found), limit)

    def _count_of(self, look_up: LookUp, span: _Span, limit: int, exact: int = _EXACT) -> int:
        if look_up.alone:
            pairs = select(usage_lookups.c.time).where(look_up.has_value, *span.has(usage_lookups.c.time))
            number = self._count(pairs, limit)
            if number > exact:
                return number
        return self._count(self._joined(look_up, span, in_order=False).order_by(None), limit)

    def _count(self, statement: Select[Any], limit: int) -> int:
        found = statement.limit(limit).subquery("found")
        return self._connection.execute(select(func.count()).select_from(found)).scalar_one()


def _of_few(connection: Connection, found: list[LookUp] | None) -> list[LookUp] | None:
    """Return look-ups of which those of a few payers are one by one: each has its rows in the order of time."""
    if found is None:
        return None
    single: list[LookUp] = []
    for each in found:
        if isinstance(each.values, int):
            single.append(each)
            continue
        ids = list(connection.execute(each.values.limit(_FEW + 1)).scalars())
        single += [each] if len(ids) > _FEW else [attrs.evolve(each, values=id) for id in ids]
    return single


def _days_with(connection: Connection, model: str) -> tuple[int, int] | None:
    """Return the start of the first day on which a model was used, and the end of the last."""
    sums = usage_sums.c
    of_model = (sums.kind == KINDS[ALL, DAY], sums.value == 0, sums.model == name_id(model))
    days = select(sums.start).where(*of_model).limit(1)
    first = connection.execute(days.order_by(sums.start)).scalar()
    last = connection.execute(days.order_by(sums.start.desc())).scalar()
    return None if first is None or last is None else (first * DAY_US, (last + 1) * DAY_US)
