"""Conditions for ledger rows, and the look-ups that find them.

Rows have no index but their time. `usage_lookups` has the times of the rows of a payer, an end user, a tag, a request
or a failure; a reader joins the rows and compares them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Select,
    Text,
    and_,
    exists,
    func,
    literal,
    not_,
    or_,
    select,
    true,
    union,
    union_all,
)

from twisted_vllm.storage.usage.queries.plan import MODEL, ROUTE, SERVER
from twisted_vllm.storage.usage.queries.sums import EMPTY, payers_with
from twisted_vllm.storage.usage.tables import (
    END_USER,
    FIRST_ERROR,
    KEY,
    OF_END_USER,
    OF_FAILURE,
    OF_REQUEST,
    OF_RESPONSE,
    OF_TAG,
    TAG,
    TEAM,
    USER,
    lookup_id,
    usage,
    usage_lookups,
    usage_payer_tags,
    usage_payers,
    usage_targets,
)

_STATUS = re.compile("[1-5][0-9]{2}")
_ROW_ID = re.compile("[0-9a-f]{32}")
#: What vLLM 0.32 writes before the ``X-Request-Id`` that the gateway sends, to make the id of its answer. The id of a
#: response (``resp_…``) has nothing of it.
_ANSWER_ID = re.compile(
    "(?:chatcmpl|cmpl|embd|score|rerank|pooling|pool|classify|generate-tokens|decision|tokenize|transcribe|translate)-(.+)",
    re.DOTALL,
)

#: the dimensions that rows can be grouped by, beside their tags
COLUMNS: Mapping[str, ColumnElement[Any]] = {
    KEY: usage_payers.c.key_id,
    USER: func.coalesce(usage_payers.c.user_id, EMPTY),
    TEAM: func.coalesce(usage_payers.c.team_id, EMPTY),
    END_USER: func.coalesce(usage.c.end_user, EMPTY),
    MODEL: usage_targets.c.model,
    ROUTE: usage_targets.c.route,
    SERVER: usage_targets.c.server,
}
_TARGET_COLUMNS = {name: usage_targets.c[name] for name in (MODEL, ROUTE, SERVER)}

#: the condition for rows whose client got a complete response without an error
SUCCESSFUL = and_(usage.c.outcome == "completed", usage.c.status < FIRST_ERROR)


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


@attrs.frozen(eq=False)
class LookUp:
    """A way to find rows.

    Attributes:
        values: the values to look up: one number, or a statement for the ids of payers.
        found: the condition for a row whose time was found. A value may have the time of another row.
        alone: whether nothing else is wanted of a row, so that look-ups can be counted in place of rows.
    """

    values: int | Select[Any]
    found: ColumnElement[bool]
    alone: bool = False

    @property
    def has_value(self) -> ColumnElement[bool]:
        """The condition for look-ups."""
        value = usage_lookups.c.value
        return value == self.values if isinstance(self.values, int) else value.in_(self.values)


def look_ups(dialect: str, wanted: RowFilter) -> list[LookUp] | None:
    """Return the look-ups that together find all rows of a filter; None if none do.

    But for those of a request id, no row has two of them.

    Args:
        dialect: of the database.
        wanted: the filter.
    """
    if wanted.request_id is not None:
        return [each for id in _ids_of(wanted.request_id) for each in _of_request(id)]
    no_more = attrs.evolve(wanted, equals={}) == RowFilter(wanted.start, wanted.end)
    return _of_values(dialect, wanted.equals, no_more=no_more) or _of_failures(wanted)


def _of_values(dialect: str, equals: Mapping[str, str], *, no_more: bool = False) -> list[LookUp] | None:
    payers, of_payer = payers_with(equals), usage.c.payer == usage_lookups.c.value
    if payers is not None:
        return [LookUp(payers, of_payer, alone=no_more and equals.keys() <= {KEY, USER, TEAM})]
    if END_USER in equals:
        name = equals[END_USER]
        return [LookUp(lookup_id(OF_END_USER, name), usage.c.end_user == name)] if name else None
    if TAG in equals:
        tag = equals[TAG]
        payers = _tagged_payers(tag)
        of_key = LookUp(payers, of_payer, alone=no_more and equals.keys() == {TAG})
        of_request = and_(_is_tagged(dialect, tag), usage.c.payer.not_in(payers))
        return [of_key, LookUp(lookup_id(OF_TAG, tag), of_request)]
    return None


def _of_failures(wanted: RowFilter) -> list[LookUp] | None:
    # a request with an error of the gateway's is not completed
    has_failed = wanted.error and (not _STATUS.fullmatch(wanted.error) or int(wanted.error) >= FIRST_ERROR)
    if wanted.successful is not False and not (has_failed and wanted.successful is None):
        return None
    error = wanted.error if has_failed else ""
    no_more = attrs.evolve(wanted, successful=None, error="") == RowFilter(wanted.start, wanted.end)
    # `conditions_of` has the error
    return [LookUp(lookup_id(OF_FAILURE, error), not_(SUCCESSFUL), alone=no_more and error == wanted.error)]


def _ids_of(request_id: str) -> tuple[str, ...]:
    answer = _ANSWER_ID.fullmatch(request_id)
    # the id of another attempt is kept without what the server writes before it
    return (request_id,) if answer is None else (request_id, answer[1])


def _of_request(id: str) -> list[LookUp]:
    return [
        LookUp(lookup_id(OF_REQUEST, id), usage.c.request_id == id),
        LookUp(lookup_id(OF_RESPONSE, id), usage.c.response_id == id),
    ]


def own_ids(request_id: str) -> list[tuple[int, str]]:
    """Return the ids among a request's that the gateway may have made, each with the time at which it begins."""
    # An id of the gateway's begins with the second of the row's time, which may have been rounded up.
    return [(int(each[:8], 16) * 1_000_000, each) for each in _ids_of(request_id) if _ROW_ID.fullmatch(each)]


def is_own_id(id: str) -> ColumnElement[bool]:
    """Return the condition for the row of a request whose id the gateway made."""
    return and_(usage.c.id == id, usage.c.request_id.is_(None))


def conditions_of(dialect: str, wanted: RowFilter) -> list[ColumnElement[bool]]:
    """Return the conditions for rows of a filter, but for its time range.

    Args:
        dialect: of the database.
        wanted: the filter.
    """
    found = row_conditions(dialect, wanted.equals)
    if wanted.request_id is not None:
        ids = _ids_of(wanted.request_id)
        own = [is_own_id(id) for _, id in own_ids(wanted.request_id)]
        found.append(or_(usage.c.request_id.in_(ids), usage.c.response_id.in_(ids), *own))
    if wanted.successful is not None:
        found.append(SUCCESSFUL if wanted.successful else not_(SUCCESSFUL))
    if wanted.error:
        is_status = _STATUS.fullmatch(wanted.error)
        found.append(usage.c.status == int(wanted.error) if is_status else usage.c.error == wanted.error)
    if wanted.costs is not None:
        found.append(usage.c.cost.between(*wanted.costs))
    return found


def row_conditions(dialect: str, equals: Mapping[str, str]) -> list[ColumnElement[bool]]:
    """Return the conditions for rows whose dimensions have certain values."""
    found: list[ColumnElement[bool]] = []
    payers = payers_with(equals)
    if payers is not None:
        found.append(usage.c.payer.in_(payers))
    if END_USER in equals:
        name = equals[END_USER]
        found.append(usage.c.end_user == name if name else COLUMNS[END_USER] == EMPTY)
    of_target = [_TARGET_COLUMNS[name] == value for name, value in equals.items() if name in _TARGET_COLUMNS]
    if of_target:
        found.append(usage.c.target.in_(select(usage_targets.c.id).where(*of_target)))
    if TAG in equals:
        tag = equals[TAG]
        found.append(or_(usage.c.payer.in_(_tagged_payers(tag)), _is_tagged(dialect, tag)))
    return found


def looked_up(dialect: str, equals: Mapping[str, str], low: int, high: int) -> list[ColumnElement[bool]]:
    """Return the condition for rows whose times are looked up; none if these values are not.

    Args:
        dialect: of the database.
        equals: required values of dimensions.
        low: the start of the time range, in microseconds since 1970.
        high: its end.
    """
    times = usage_lookups.c.time
    statements = [
        select(times).where(each.has_value, times >= low, times < high) for each in _of_values(dialect, equals) or ()
    ]
    if not statements:
        return []
    return [usage.c.time.in_(statements[0] if len(statements) == 1 else union_all(*statements))]


def joined(statement: Select[Any], dimensions: Collection[str]) -> Select[Any]:
    """Join rows with the tables that hold these dimensions."""
    if not {KEY, USER, TEAM}.isdisjoint(dimensions):
        statement = statement.join(usage_payers, usage_payers.c.id == usage.c.payer)
    if not _TARGET_COLUMNS.keys().isdisjoint(dimensions):
        statement = statement.join(usage_targets, usage_targets.c.id == usage.c.target)
    return statement


def tags_of_rows(dialect: str, conditions: Sequence[ColumnElement[bool]]) -> CompoundSelect[Any]:
    """Return the statement for the tags of rows, with time and id: those of their payers, and those of their clients.

    Args:
        dialect: of the database.
        conditions: of the rows.
    """
    columns = (usage.c.time, usage.c.id)
    of_payer = select(*columns, usage_payer_tags.c.tag).join(
        usage_payer_tags, usage_payer_tags.c.payer == usage.c.payer
    )
    tags, tag = _request_tags(dialect)
    of_request = select(*columns, tag.label("tag")).select_from(usage.join(tags, true()))
    has_tags = usage.c.request_tags.is_not(None)
    # A client may have given a tag that the key has too.
    return union(of_payer.where(*conditions), of_request.where(has_tags, *conditions))


def _request_tags(dialect: str) -> tuple[Any, ColumnElement[str]]:
    """Return the tags that the client gave a row as a table, and its column."""
    if dialect == "postgresql":
        table = func.json_array_elements_text(usage.c.request_tags).table_valued("value", name="each_tag")
        table = table.render_derived()
    else:
        table = func.json_each(usage.c.request_tags).table_valued("value", name="each_tag")
    return table, table.c.value


def _tagged_payers(tag: str) -> Select[Any]:
    """Return the statement for the ids of the payers whose key has a tag."""
    return select(usage_payer_tags.c.payer).where(usage_payer_tags.c.tag == tag)


def _is_tagged(dialect: str, tag: str) -> ColumnElement[bool]:
    """Return the condition for rows whose client gave them a tag."""
    table, name = _request_tags(dialect)
    return exists(select(literal(1, BigInteger)).select_from(table).where(name == literal(tag, Text)))
