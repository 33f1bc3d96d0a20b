"""Reads ledger rows in pages, newest first, and the names of their keys.

A filter may match millions of rows, or three from last year; in neither case are all rows read or sorted. A key, user
or team has one payer or thousands, and an index orders each payer's rows by time. One look-up per payer finds the
newest row. From there, rows are read in growing windows of time; another look-up skips the empty time between two
windows.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import attrs
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Connection,
    Row,
    Select,
    Text,
    and_,
    exists,
    func,
    literal_column,
    not_,
    or_,
    select,
    union_all,
)

from twisted_vllm.storage.repository import in_chunks
from twisted_vllm.storage.tables import former_keys, keys
from twisted_vllm.storage.usage.queries.plan import MODEL, ROUTE, SERVER, microseconds
from twisted_vllm.storage.usage.tables import (
    ALL,
    DAY,
    END_USER,
    KEY,
    TAG,
    TEAM,
    USER,
    RowKey,
    has_row_key,
    usage,
    usage_payer_tags,
    usage_payers,
    usage_request_tags,
    usage_targets,
    usage_totals,
)

#: the maximum count of rows; no page begins after it
MAX_COUNTED = 100_000

#: the first window in microseconds, and the growth factor of the next ones
_WINDOW, _GROWTH = 60_000_000, 8

_DAY = timedelta(days=1)
_STATUS = re.compile("[1-5][0-9]{2}")
_ROW_ID = re.compile("[0-9a-f]{32}")
#: What vLLM 0.32 writes before the ``X-Request-Id`` that the gateway sends, to make the id of its answer. The id of a
#: response (``resp_…``) has nothing of it.
_ANSWER_ID = re.compile(
    "(?:chatcmpl|cmpl|embd|score|rerank|pooling|pool|classify|generate-tokens|decision|tokenize|transcribe|translate)-(.+)",
    re.DOTALL,
)

#: joins a row with the tags that its client gave it
_HAS_REQUEST_TAG = and_(usage_request_tags.c.time == usage.c.time, usage_request_tags.c.id == usage.c.id)

# Not a parameter: PostgreSQL could not tell that the selected expression is the one in GROUP BY.
_EMPTY = literal_column("''", Text)

#: the dimensions that rows can be grouped by, beside their tags
COLUMNS: Mapping[str, ColumnElement[Any]] = {
    KEY: usage_payers.c.key_id,
    USER: func.coalesce(usage_payers.c.user_id, _EMPTY),
    TEAM: func.coalesce(usage_payers.c.team_id, _EMPTY),
    END_USER: func.coalesce(usage.c.end_user, _EMPTY),
    MODEL: usage_targets.c.model,
    ROUTE: usage_targets.c.route,
    SERVER: usage_targets.c.server,
}
_PAYER_COLUMNS = {KEY: usage_payers.c.key_id, USER: usage_payers.c.user_id, TEAM: usage_payers.c.team_id}
_TARGET_COLUMNS = {name: usage_targets.c[name] for name in (MODEL, ROUTE, SERVER)}

#: the condition for rows whose client got a complete response without an error
SUCCESSFUL = and_(usage.c.outcome == "completed", usage.c.status < 400)


@attrs.frozen
class RowFilter:
    """The filter of rows.

    Attributes:
        start: the start of the time range, in microseconds since 1970; None for no start.
        end: its end, exclusive; None for no end.
        equals: required values of dimensions; for a key its permanent id.
        request_id: the request's, or that of the server's answer.
        successful: whether the client got a complete response without an error; None for either.
        error: the status or the code of the error; empty for any.
        costs: the least and the highest cost, in picodollars; None for any.
    """

    start: int | None = None
    end: int | None = None
    equals: Mapping[str, str] = attrs.field(factory=dict)
    request_id: str | None = None
    successful: bool | None = None
    error: str = ""
    costs: tuple[int, int] | None = None


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
class _TimeRange:
    """From `start` to `end`, exclusive, in microseconds since 1970; None means open."""

    start: int | None
    end: int | None

    def conditions(self, time: ColumnElement[int] = usage.c.time) -> list[ColumnElement[bool]]:
        """Return the conditions for rows that began in the range, by the column that says when they began."""
        found: list[ColumnElement[bool]] = []
        if self.start is not None:
            found.append(time >= self.start)
        if self.end is not None:
            found.append(time < self.end)
        return found


def page_of_rows(connection: Connection, wanted: RowFilter, skip: int, limit: int) -> Sequence[Row[Any]]:
    """Return rows with their payers and targets, newest first.

    The `request_id` of a row without one from the client is its `id`.
    """
    within = _time_range(connection, wanted)
    if within is None:
        return []
    if wanted.request_id is not None:
        conditions = _conditions(wanted)
        parts = [
            _newest_rows(connection, None, [*conditions, each], within, 0, skip + limit)
            for each in _has_request_id(wanted.request_id)
        ]
    elif TAG in wanted.equals:
        # of a key with the tag, and with the tag from the client: each has its own index
        by_key = [*_conditions(wanted, tagged=False), usage.c.payer.in_(_payers_of(wanted.equals))]
        parts = [
            _newest_rows(connection, _payers_of(wanted.equals), by_key, within, 0, skip + limit),
            _newest_tagged(connection, wanted, within, skip + limit),
        ]
    else:
        found = _newest_rows(connection, _payers(wanted.equals), _conditions(wanted), within, skip, limit)
        return rows_of(connection, found)
    found = sorted({key for keys in parts for key in keys}, reverse=True)[skip : skip + limit]
    return rows_of(connection, found)


def count_rows(connection: Connection, wanted: RowFilter) -> int:
    """Return the number of rows; `MAX_COUNTED` + 1 for more than `MAX_COUNTED`."""
    within = _time_range(connection, wanted)
    if within is None:
        return 0
    keys = select(usage.c.id)
    if wanted.request_id is not None:
        searches = [keys.where(*_conditions(wanted), each) for each in _has_request_id(wanted.request_id)]
    elif TAG in wanted.equals:
        # one by one, as each has its own index
        tag, conditions = wanted.equals[TAG], _conditions(wanted, tagged=False)
        of_key = usage.c.payer.in_(_tagged_payers(tag))
        of_request = keys.join(usage_request_tags, _HAS_REQUEST_TAG).where(usage_request_tags.c.tag == tag)
        searches = [keys.where(*conditions, of_key), of_request.where(*conditions, not_(of_key))]
    else:
        searches = [keys.where(*_conditions(wanted))]
    counted = 0
    for each in searches:
        found = each.where(*within.conditions()).limit(MAX_COUNTED + 1).subquery()
        counted += connection.execute(select(func.count()).select_from(found)).scalar_one()
    return min(counted, MAX_COUNTED + 1)


def rows_of(connection: Connection, keys: Sequence[RowKey]) -> list[Row[Any]]:
    """Return the existing rows with these keys, with their payers and targets, in the order of the keys."""
    own = [column for column in usage.columns if column.name not in ("payer", "target", "request_id")]
    others = [column for table in (usage_payers, usage_targets) for column in table.columns if column.name != "id"]
    request_id = func.coalesce(usage.c.request_id, usage.c.id).label("request_id")
    statement = joined(select(request_id, *own, *others), (KEY, MODEL))
    found: dict[RowKey, Row[Any]] = {}
    for chunk in in_chunks(keys):
        for row in connection.execute(statement.where(*has_row_key(chunk))):
            found[row.time, row.id] = row
    # On PostgreSQL, another process may have deleted one meanwhile.
    return [found[key] for key in keys if key in found]


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


# conditions, which the reports on rows share


def row_conditions(equals: Mapping[str, str]) -> list[ColumnElement[bool]]:
    """Return the conditions for rows whose dimensions have certain values."""
    found = _conditions_without_tag(equals)
    if TAG in equals:
        found.append(or_(usage.c.payer.in_(_tagged_payers(equals[TAG])), _is_tagged(equals[TAG])))
    return found


def _tagged_payers(tag: str) -> Select[Any]:
    """Return the statement for the ids of the payers whose key has a tag."""
    return select(usage_payer_tags.c.payer).where(usage_payer_tags.c.tag == tag)


def _is_tagged(tag: str) -> ColumnElement[bool]:
    """Return the condition for rows whose client gave them a tag."""
    tags = usage_request_tags.c
    return exists(select(tags.id).where(tags.tag == tag, tags.time == usage.c.time, tags.id == usage.c.id))


def _conditions_without_tag(equals: Mapping[str, str]) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    payers = _payers(equals)
    if payers is not None:
        found.append(usage.c.payer.in_(payers))
    if END_USER in equals:
        found.append(usage.c.end_user == equals[END_USER])
    of_target = [_TARGET_COLUMNS[name] == value for name, value in equals.items() if name in _TARGET_COLUMNS]
    if of_target:
        found.append(usage.c.target.in_(select(usage_targets.c.id).where(*of_target)))
    return found


def joined(statement: Select[Any], dimensions: Collection[str]) -> Select[Any]:
    """Join rows with the tables that hold these dimensions."""
    if not {KEY, USER, TEAM}.isdisjoint(dimensions):
        statement = statement.join(usage_payers, usage_payers.c.id == usage.c.payer)
    if not _TARGET_COLUMNS.keys().isdisjoint(dimensions):
        statement = statement.join(usage_targets, usage_targets.c.id == usage.c.target)
    return statement


def _payers(equals: Mapping[str, str]) -> Select[Any] | None:
    """Return the statement for the ids of the matching payers, whatever their tags; None if all match."""
    conditions = [_PAYER_COLUMNS[name] == value for name, value in equals.items() if name in _PAYER_COLUMNS]
    return select(usage_payers.c.id).where(*conditions) if conditions else None


def _payers_of(equals: Mapping[str, str]) -> Select[Any]:
    """Return the statement for the ids of the matching payers that have a tag."""
    tagged = usage_payers.c.id.in_(_tagged_payers(equals[TAG]))
    payers = _payers(equals)
    return select(usage_payers.c.id).where(tagged) if payers is None else payers.where(tagged)


def tags_of_rows(conditions: Sequence[ColumnElement[bool]]) -> CompoundSelect[Any]:
    """Return the statement for the tags of rows, with time and id: those of their payers, and those of their clients.

    Args:
        conditions: of the rows.
    """
    columns = (usage.c.time, usage.c.id)
    of_payer = select(*columns, usage_payer_tags.c.tag).join(
        usage_payer_tags, usage_payer_tags.c.payer == usage.c.payer
    )
    of_request = select(*columns, usage_request_tags.c.tag).join(usage_request_tags, _HAS_REQUEST_TAG)
    return union_all(of_payer.where(*conditions), of_request.where(*conditions))


def _conditions(wanted: RowFilter, *, tagged: bool = True) -> list[ColumnElement[bool]]:
    found = row_conditions(wanted.equals) if tagged else _conditions_without_tag(wanted.equals)
    if wanted.successful is not None:
        found.append(SUCCESSFUL if wanted.successful else not_(SUCCESSFUL))
    if wanted.error:
        is_status = _STATUS.fullmatch(wanted.error)
        found.append(usage.c.status == int(wanted.error) if is_status else usage.c.error == wanted.error)
    if wanted.costs is not None:
        found.append(usage.c.cost.between(*wanted.costs))
    return found


def _has_request_id(request_id: str) -> list[ColumnElement[bool]]:
    """Return the conditions for a request's rows. They are searched one by one, as each has its own index.

    Args:
        request_id: the request's id, or that of the server's answer.
    """
    answer = _ANSWER_ID.fullmatch(request_id)
    found: list[ColumnElement[bool]] = []
    for each in (request_id,) if answer is None else (request_id, answer[1]):
        # the id of another attempt is kept without what the server writes before it
        found += [usage.c.request_id == each, usage.c.response_id == each]
        if _ROW_ID.fullmatch(each):
            # An id of the gateway's begins with the second of the row's time, which may have been rounded up.
            second = int(each[:8], 16) * 1_000_000
            found.append(
                and_(
                    usage.c.time >= second,
                    usage.c.time <= second + 1_000_000,
                    usage.c.id == each,
                    usage.c.request_id.is_(None),
                )
            )
    return found


def _time_range(connection: Connection, wanted: RowFilter) -> _TimeRange | None:
    """Return the time range to search; None if the sums show that there are no rows."""
    if MODEL not in wanted.equals:
        return _TimeRange(wanted.start, wanted.end)
    # Models have no index: search between the first and the last day with rows.
    days = _days_with(connection, wanted.equals[MODEL])
    if days is None:
        return None
    return _TimeRange(max(wanted.start or 0, days[0]), days[1] if wanted.end is None else min(wanted.end, days[1]))


def _days_with(connection: Connection, model: str) -> tuple[int, int] | None:
    """Return the start of the first day on which a model was used, and the end of the last."""
    table = usage_totals.c
    of_model = (table.dimension == ALL, table.period == DAY, table.value == "", table.model == model)
    first, last = connection.execute(select(func.min(table.start), func.max(table.start)).where(*of_model)).one()
    return None if first is None else (_midnight(first), _midnight(last + _DAY))


def _midnight(day: date) -> int:
    return microseconds(datetime.combine(day, time(), UTC))


# the newest rows


def _newest_rows(
    connection: Connection,
    payers: Select[Any] | None,
    conditions: Sequence[ColumnElement[bool]],
    within: _TimeRange,
    skip: int,
    limit: int,
) -> list[RowKey]:
    """Return the keys of rows, newest first.

    Args:
        connection: of a transaction that reads.
        payers: the ids of the payers; None for all.
        conditions: the conditions of the rows, including `payers`.
        within: the time range.
        skip: how many to skip.
        limit: the maximum number to return.
    """
    if payers is None:
        return _row_keys(connection, conditions, within, skip, limit, by_time=True)
    found: list[RowKey] = []
    end, width = within.end, _WINDOW
    while len(found) < limit:
        newest = _newest_time(connection, payers, _TimeRange(within.start, end))
        if newest is None:
            break
        start = max(newest + 1 - width, within.start or 0)
        window = _TimeRange(start, newest + 1)
        in_window = _row_keys(connection, conditions, window, skip, limit - len(found), by_time=False)
        if in_window:
            skip = 0
        elif skip:
            skip -= _count(connection, conditions, window)
        found += in_window
        end, width = start, width * _GROWTH
    return found


def _newest_tagged(connection: Connection, wanted: RowFilter, within: _TimeRange, limit: int) -> list[RowKey]:
    """Return the keys of the rows whose client gave them a tag, newest first."""
    tags = usage_request_tags.c
    statement = select(tags.time, tags.id).join(usage, _HAS_REQUEST_TAG).where(tags.tag == wanted.equals[TAG])
    statement = statement.where(*_conditions(wanted, tagged=False), *within.conditions(tags.time))
    statement = statement.order_by(tags.time.desc(), tags.id.desc()).limit(limit)
    return [(row.time, row.id) for row in connection.execute(statement)]


def _newest_time(connection: Connection, payers: Select[Any], within: _TimeRange) -> int | None:
    """Return when the newest row of some payers began."""
    ids = payers.subquery()
    of_one = select(func.max(usage.c.time)).where(usage.c.payer == ids.c.id, *within.conditions())
    found: int | None = connection.execute(select(func.max(of_one.scalar_subquery())).select_from(ids)).scalar()
    return found


def _row_keys(
    connection: Connection,
    conditions: Sequence[ColumnElement[bool]],
    within: _TimeRange,
    skip: int,
    limit: int,
    *,
    by_time: bool,
) -> list[RowKey]:
    # Adding 0 keeps SQLite, which has no statistics, from scanning the whole range in the order of time.
    time = usage.c.time if by_time else usage.c.time + literal_column("0", BigInteger)
    statement = select(usage.c.time, usage.c.id).where(*conditions, *within.conditions())
    statement = statement.order_by(time.desc(), usage.c.id.desc()).offset(skip).limit(limit)
    return [(row.time, row.id) for row in connection.execute(statement)]


def _count(connection: Connection, conditions: Sequence[ColumnElement[bool]], within: _TimeRange) -> int:
    statement = select(func.count()).select_from(usage).where(*conditions, *within.conditions())
    return connection.execute(statement).scalar_one()
