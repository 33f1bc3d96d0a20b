"""The groups with the most usage, all others together, and one measure of each by interval: what a chart shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

import attrs
from sqlalchemy import Connection

from twisted_vllm.admin.models import Json
from twisted_vllm.admin.reports.models import TopGroupsQuery
from twisted_vllm.admin.reports.scope import UsageScope
from twisted_vllm.admin.reports.usage_report import iso_of, named_group, named_sums, report_span, usage_query
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.storage.transaction import Transaction
from twisted_vllm.storage.usage.queries.plan import (
    HOUR,
    HOUR_US,
    ROWS,
    Plan,
    Unanswerable,
    UsageQuery,
    moment_of,
    month_start,
    plan,
)
from twisted_vllm.storage.usage.queries.reports import Cursor, Group, read_all, read_page, read_totals
from twisted_vllm.storage.usage.queries.rows import first_row, key_labels
from twisted_vllm.storage.usage.tables import DAY_US, KEY, MONTH, SUMS, TAG, TEAM

#: intervals of an answer: 80 days of hours
MAX_INTERVALS = 2_000
#: Groups of all intervals that are compared here. Of more, the database finds those with the highest cost: it knows no
#: other order.
MAX_COMPARED = 60_000

Sums = list[int]


@attrs.frozen
class _Found:
    """What a report found.

    Attributes:
        groups: the values of the groups with the most usage, the most first, and their sums.
        series: the measure of each by interval, likewise; None stands for the others.
        others: the sums of the others; None if there are none, or if a request may be in several groups.
        totals: the sums of all.
        intervals: the sums of each interval, where nothing is grouped by.
    """

    groups: Sequence[tuple[tuple[str, ...], Sums]]
    series: Mapping[tuple[str, ...] | None, Mapping[str, int]]
    others: Sums | None
    totals: Sums
    intervals: Mapping[str, Sequence[int]] | None = None


def top_groups(
    transaction: Transaction, scope: UsageScope, query: TopGroupsQuery, group_by: tuple[str, ...], now: datetime
) -> Json:
    """Return the groups as `TopGroups` describes them.

    Raises:
        InvalidRequest: it cannot be reported, or has too many intervals.
        RouteNotAllowed: the caller may not see it.
    """
    connection = transaction.connection
    equals = scope.filters(connection, query)
    start, end = report_span(query, now)
    wanted = usage_query(query, group_by, start, end, equals or {})
    starts = _starts(wanted)
    try:
        planned = plan(wanted)
    except Unanswerable as error:
        raise InvalidRequest(str(error), param="group_by") from None
    measure = _MEASURES[query.measure]
    found = _NOTHING if equals is None else _find(connection, planned, query.top, measure)
    ids: list[str] = []
    if KEY in group_by:
        ids = sorted({values[group_by.index(KEY)] for values, _ in found.groups} - {""})
    labels = key_labels(connection, ids)
    teams: dict[str, str | None] = {}
    if TEAM in group_by:
        ids = sorted({values[group_by.index(TEAM)] for values, _ in found.groups} - {""})
        teams = {team.team_id: team.team_alias for team in transaction.teams.among("team_id", ids)}
    shown = _dollars if query.measure == "spend" else int

    def series(values: tuple[str, ...] | None) -> list[int | float]:
        of_group = found.series.get(values, {})
        return [shown(of_group.get(each, 0)) for each in starts]

    about: Json = {
        "start": iso_of(start),
        "end": iso_of(end),
        "interval": query.interval,
        "group_by": group_by,
        "measure": query.measure,
        "source": planned.source,
        "starts": starts,
        "groups": [
            {
                **named_group(group_by, values, labels),
                **({"team_alias": teams.get(values[group_by.index(TEAM)])} if TEAM in group_by else {}),
                **named_sums(sums),
                "series": series(values),
            }
            for values, sums in found.groups
        ],
        "intervals": None
        if found.intervals is None
        else [named_sums(found.intervals.get(each, _NONE)) for each in starts],
        "others": None if found.others is None else {**named_sums(found.others), "series": series(None)},
        "totals": named_sums(found.totals),
    }
    if planned.source == ROWS:
        first = first_row(connection)
        about["rows_since"] = None if first is None else iso_of(first)
    return about


_MEASURES = {"spend": SUMS.index("cost"), **{name: SUMS.index(name) for name in SUMS if name != "cost"}}
_NONE = [0] * len(SUMS)
_NOTHING = _Found((), {}, None, _NONE)
_REQUESTS = SUMS.index("requests")


def _dollars(picodollars: int) -> float:
    return picodollars / 10**12


def _starts(query: UsageQuery) -> list[str]:
    """Return the names of all intervals, as reports name them.

    Raises:
        InvalidRequest: there are too many.
    """
    found: list[str] = []
    for start in _moments(query):
        if len(found) == MAX_INTERVALS:
            raise InvalidRequest(
                f"The time has more than {MAX_INTERVALS} intervals: ask for less time, or longer intervals.",
                param="interval",
            )
        form = "%Y-%m-%dT%H:00:00Z" if query.interval == HOUR else "%Y-%m-%d"
        found.append(moment_of(start).strftime(form))
    return found


def _moments(query: UsageQuery) -> Iterator[int]:
    unit = HOUR_US if query.interval == HOUR else DAY_US
    start = month_start(query.start) if query.interval == MONTH else query.start // unit * unit
    while start < query.end:
        yield start
        start = month_start(start, 1) if query.interval == MONTH else start + unit


def _find(connection: Connection, planned: Plan, top: int, measure: int) -> _Found:
    """Return what a report finds.

    Raises:
        InvalidRequest: it has too many groups to compare.
    """
    groups: dict[tuple[str, ...], dict[str, Sequence[int]]] = {}
    compared = 0
    cursor: Cursor | None = Cursor()
    while cursor is not None:
        page = read_page(connection, planned, cursor)
        compared += len(page.groups)
        if compared > MAX_COMPARED:
            return _by_cost(connection, planned, top, measure)
        for group in page.groups:
            of_group = groups.setdefault(group.values, {})
            # a group may go on on the next page
            before = of_group.get(group.start)
            of_group[group.start] = group.sums if before is None else _added(before, group.sums)
        cursor = page.cursor
    sums = {values: _total(each.values()) for values, each in groups.items()}
    order = sorted(sums, key=lambda values: (-sums[values][measure], -sums[values][_REQUESTS], values))
    first, rest = order[:top], order[top:]
    series: dict[tuple[str, ...] | None, dict[str, int]] = {
        values: {start: each[measure] for start, each in groups[values].items()} for values in first
    }
    others: dict[str, int] = {}
    for values in rest:
        for start, each in groups[values].items():
            others[start] = others.get(start, 0) + each[measure]
    series[None] = others
    everything = _total(sums.values()) if TAG not in planned.query.group_by else _whole(connection, planned.query)
    return _Found(
        [(values, sums[values]) for values in first],
        series,
        _total(sums[values] for values in rest) if rest else None,
        everything,
        None if planned.query.group_by else groups.get((), {}),
    )


def _by_cost(connection: Connection, planned: Plan, top: int, measure: int) -> _Found:
    """Return the same where there are too many groups to compare: the database knows those with the highest cost."""
    query = planned.query
    if planned.source == ROWS:
        raise InvalidRequest(
            f"There are more than {MAX_COMPARED} groups and intervals to compare: ask for less time, longer intervals, "
            "or one group.",
            param="group_by",
        )
    first = [(group.values, list(group.sums)) for group in read_totals(connection, query, top)]
    series: dict[tuple[str, ...] | None, dict[str, int]] = {}
    for values, _ in first:
        one = attrs.evolve(
            query, group_by=(), equals={**query.equals, **dict(zip(query.group_by, values, strict=True))}
        )
        series[values] = _series(read_all(connection, one), measure)
    whole = list(read_all(connection, attrs.evolve(query, group_by=())))
    totals = _total(group.sums for group in whole)
    if TAG in query.group_by:
        # a request may have several: what is left over is no sum
        return _Found(first, series, None, totals)
    others = _series(whole, measure)
    for values, _ in first:
        for start, amount in series[values].items():
            others[start] = others.get(start, 0) - amount
    series[None] = others
    of_first = _total(sums for _, sums in first)
    return _Found(first, series, [whole - part for whole, part in zip(totals, of_first, strict=True)], totals)


def _whole(connection: Connection, query: UsageQuery) -> Sums:
    return _total(group.sums for group in read_all(connection, attrs.evolve(query, group_by=())))


def _series(groups: Iterable[Group], measure: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for group in groups:
        found[group.start] = found.get(group.start, 0) + group.sums[measure]
    return found


def _total(sums: Iterable[Sequence[int]]) -> Sums:
    found = [0] * len(SUMS)
    for each in sums:
        found = _added(found, each)
    return found


def _added(first: Sequence[int], second: Sequence[int]) -> Sums:
    return [one + other for one, other in zip(first, second, strict=True)]
