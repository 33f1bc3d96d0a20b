"""The usage report: usage by any of eight dimensions and by hour, day or month, of any size, as JSON or CSV.

The groups are read a page at a time in a report's thread and encoded there. A page is read when the client has
taken the one before, so a report needs no more memory than a page.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from io import StringIO
from typing import Any, Protocol, cast

import attrs
import msgspec
from sqlalchemy import Connection
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.logger import Logger
from twisted.web.iweb import IRequest
from zope.interface import implementer

from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.limits import money, money_text
from twisted_vllm.admin.models import Json
from twisted_vllm.admin.reports.models import GroupsQuery, ReportQuery
from twisted_vllm.admin.reports.scope import UsageScope, check_servers, days_of, dimensions_of, span_of
from twisted_vllm.errors import GatewayError, InvalidRequest
from twisted_vllm.storage.usage.queries.plan import (
    HOUR,
    ROUTE,
    ROWS,
    SERVER,
    Plan,
    Unanswerable,
    UsageQuery,
    microseconds,
    moment_of,
    plan,
)
from twisted_vllm.storage.usage.queries.reports import Cursor, Group, read_page
from twisted_vllm.storage.usage.queries.rows import KeyLabel, first_row, key_labels
from twisted_vllm.storage.usage.tables import DAY_US, KEY, MONTH, SUMS

#: the days of a report without a start, before today
_RECENT_DAYS = {HOUR: 1, "day": 30, MONTH: 365}

#: the characters that make a spreadsheet take a cell for a formula (OWASP, "CSV Injection")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

#: the sums, and their names in the report
_COST = SUMS.index("cost")
_NAMES = tuple({"cost": "spend", "audio_ms": "audio_ms", "total_us": "duration_us"}.get(name, name) for name in SUMS)
_KEY_NAMES = ("key_id", "api_key", "key_alias")

Labels = Mapping[str, KeyLabel]

_encode = msgspec.json.Encoder().encode
_log = Logger()


async def send_report(call: AdminCall, query: ReportQuery) -> bytes:
    """Write a report to a request and return its end.

    Raises:
        InvalidRequest: what is asked for cannot be reported.
        RouteNotAllowed: the caller may not see it.
    """
    request, scope = call.request, UsageScope.of(call)
    group_by = dimensions_of(query.group_by)
    check_servers(scope, group_by, query.server)
    report = await call.report(lambda transaction: _open(transaction.connection, scope, query, group_by, call.now))
    request.setHeader(b"content-type", report.format.content_type)
    request.setHeader(b"cache-control", b"no-store")
    if query.format == "csv":
        request.setHeader(b"content-disposition", b'attachment; filename="usage.csv"')
        request.setHeader(b"x-usage-source", report.plan.source.encode())
    gate = _Gate()
    # IRequest is an IConsumer, but does not declare it.
    consumer = cast(IConsumer, request)
    consumer.registerProducer(gate, True)
    try:
        request.write(report.format.head())
        await _write_groups(call, report, gate)
    except CancelledError:
        # The client disconnected, and its transport with the producer is gone.
        raise
    except Exception as error:
        # The status was sent. Break the connection, so that the client does not take a part for the whole.
        if isinstance(error, GatewayError):
            _log.error("a usage report broke off: {reason}", reason=error.message)
        else:
            _log.failure("a usage report broke off")
        _abort(request)
        never: Deferred[bytes] = Deferred()
        return await never
    consumer.unregisterProducer()
    return report.format.tail()


@implementer(IPushProducer)
class _Gate:
    """Holds back the next page while the client is slow."""

    def __init__(self) -> None:
        self._waiting: Deferred[None] | None = None
        self._paused = False

    def pauseProducing(self) -> None:
        """Hold back the next page."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Let it pass."""
        self._paused = False
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    def stopProducing(self) -> None:
        """Do nothing: the disconnected client's request is cancelled as well."""

    async def passed(self) -> None:
        """Wait until the next page may be written."""
        if self._paused:
            self._waiting = Deferred(self._forget)
            await self._waiting

    def _forget(self, _cancelled: object) -> None:
        self._waiting = None


@attrs.frozen
class _Report:
    """A report that can be written.

    Attributes:
        plan: the tables that it reads.
        format: how it is written.
        cursor: where it begins; None for an empty report.
    """

    plan: Plan
    format: ReportFormat
    cursor: Cursor | None


def _open(
    connection: Connection, scope: UsageScope, query: ReportQuery, group_by: tuple[str, ...], now: datetime
) -> _Report:
    """Plan a report, before its status is sent.

    Raises:
        InvalidRequest: it cannot be reported.
        RouteNotAllowed: the caller may not see it.
    """
    equals = scope.filters(connection, query)
    start, end = report_span(query, now)
    wanted = usage_query(query, group_by, start, end, equals or {})
    try:
        planned = plan(wanted)
    except Unanswerable as error:
        raise InvalidRequest(str(error), param="group_by") from None
    about: Json = {
        "start": iso_of(start),
        "end": iso_of(end),
        "interval": query.interval,
        "group_by": group_by,
        "source": planned.source,
    }
    if planned.source == ROWS:
        first = first_row(connection)
        about["rows_since"] = None if first is None else iso_of(first)
    report_format: ReportFormat = CsvReport(planned) if query.format == "csv" else JsonReport(planned, about)
    return _Report(planned, report_format, None if equals is None else Cursor())


async def _write_groups(call: AdminCall, report: _Report, gate: _Gate) -> None:
    cursor = report.cursor
    while cursor is not None:
        await gate.passed()
        here = cursor

        def page(connection: Connection, at: Cursor = here) -> tuple[bytes, Cursor | None]:
            found = read_page(connection, report.plan, at)
            ids: list[str] = []
            if KEY in report.plan.query.group_by:
                place = report.plan.query.group_by.index(KEY)
                ids = sorted({group.values[place] for group in found.groups} - {""})
            return report.format.groups(found.groups, key_labels(connection, ids)), found.cursor

        body, cursor = await call.report(lambda transaction: page(transaction.connection), begun=True)
        if body:
            call.request.write(body)


def usage_query(
    query: GroupsQuery, group_by: tuple[str, ...], start: int, end: int, equals: Mapping[str, str]
) -> UsageQuery:
    """Return the query of the stored usage."""
    others = {name: value for name, value in ((ROUTE, query.route), (SERVER, query.server)) if value}
    return UsageQuery(group_by, query.interval, start, end, {**equals, **others})


def report_span(query: GroupsQuery, now: datetime) -> tuple[int, int]:
    """Return the time of a report, in microseconds since 1970, its end excluded.

    Raises:
        InvalidRequest: a date is malformed.
    """
    span = span_of(query.start, query.end, ("start", "end"))
    tomorrow = microseconds(now) // DAY_US * DAY_US + DAY_US
    end = max(tomorrow, (span.start or 0) + DAY_US) if span.end is None else span.end
    if span.start is not None:
        return span.start, end
    first = days_of("", "", moment_of(end - 1), _RECENT_DAYS[query.interval])[0]
    return first, end


def iso_of(moment: int) -> str:
    """Return a moment in microseconds since 1970 as reports write it."""
    return moment_of(moment).isoformat().replace("+00:00", "Z")


def _abort(request: IRequest) -> None:
    abort = getattr(request, "abort", None)
    (abort or cast(Any, request).loseConnection)()


class ReportFormat(Protocol):
    """Encodes a report."""

    content_type: bytes

    def head(self) -> bytes:
        """Return what precedes the first group."""

    def groups(self, found: Sequence[Group], labels: Labels) -> bytes:
        """Return groups."""

    def tail(self) -> bytes:
        """Return what follows the last group."""


class JsonReport:
    """A JSON object: the query and the report's source, ``results``, and their ``totals``."""

    content_type = b"application/json"

    def __init__(self, plan: Plan, about: Mapping[str, Any]) -> None:
        self._columns = plan.query.group_by
        self._about = about
        self._written = False
        self._totals = [0] * len(SUMS)

    def head(self) -> bytes:
        """Return what precedes the first group."""
        return _encode(self._about)[:-1] + b',"results":['

    def groups(self, found: Sequence[Group], labels: Labels) -> bytes:
        """Return groups, and add their sums to the totals."""
        if not found:
            return b""
        results = [
            {
                "start": group.start,
                **named_group(self._columns, group.values, labels),
                **named_sums(group.sums),
            }
            for group in found
        ]
        for place, column in enumerate(zip(*(group.sums for group in found), strict=True)):
            self._totals[place] += sum(column)
        body = _encode(results)[1:-1]
        separator, self._written = (b"," if self._written else b""), True
        return separator + body

    def tail(self) -> bytes:
        """Return the totals."""
        return b'],"totals":' + _encode(named_sums(self._totals)) + b"}\n"


class CsvReport:
    """A line of names and a line for each group (RFC 4180). Spreadsheets take no cell for a formula."""

    content_type = b"text/csv; charset=utf-8; header=present"

    def __init__(self, plan: Plan) -> None:
        self._columns = plan.query.group_by

    def head(self) -> bytes:
        """Return the line of names."""
        columns = [name for column in self._columns for name in (_KEY_NAMES if column == KEY else (column,))]
        return _lines([["start", *columns, *_NAMES]])

    def groups(self, found: Sequence[Group], labels: Labels) -> bytes:
        """Return the lines of groups."""
        return _lines(
            [
                group.start,
                *map(_without_formula, named_group(self._columns, group.values, labels).values()),
                *(money_text(number) if place == _COST else str(number) for place, number in enumerate(group.sums)),
            ]
            for group in found
        )

    def tail(self) -> bytes:
        """Return nothing."""
        return b""


def named_group(columns: Sequence[str], values: Sequence[str], labels: Labels) -> dict[str, str | None]:
    """Return a group's values by name. A key has three names; of a deleted key, only the id is left."""
    found: dict[str, str | None] = {}
    for column, value in zip(columns, values, strict=True):
        if column != KEY:
            found[column] = value or None
            continue
        label = labels.get(value)
        found["key_id"] = value or None
        found["api_key"] = None if label is None else label.token
        found["key_alias"] = None if label is None else label.key_alias or label.key_name
    return found


def named_sums(sums: Sequence[int]) -> Json:
    """Return sums, in the order of `SUMS`, by their names in reports."""
    found: Json = dict(zip(_NAMES, sums, strict=True))
    found["spend"] = money(sums[_COST])
    return found


def _without_formula(value: str | None) -> str:
    text = value or ""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _lines(rows: Iterable[Sequence[str]]) -> bytes:
    text = StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()
