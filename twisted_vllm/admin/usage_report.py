"""``GET /usage/report``: what was used, by any of eight dimensions and by hour, day or month; of any size.

The groups are read a page at a time in the database's thread, made into bytes there, and written as the client takes
them: the next page is read when the one before was taken.
"""

from __future__ import annotations

from typing import Any, cast

import attrs
from sqlalchemy import Connection
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.logger import Logger
from twisted.web.iweb import IRequest
from zope.interface import implementer

from twisted_vllm.admin.office import AdminContext
from twisted_vllm.admin.queries import parse_query
from twisted_vllm.admin.respond import read_query
from twisted_vllm.admin.spend_access import Caller, caller_of
from twisted_vllm.admin.spend_logs import filters_of
from twisted_vllm.admin.spend_queries import ReportQuery, days_of, span_of
from twisted_vllm.admin.usage_report_format import CsvReport, JsonReport, ReportFormat
from twisted_vllm.errors import GatewayError, InvalidRequest, RouteNotAllowed
from twisted_vllm.storage.usage.queries.plan import (
    DIMENSIONS,
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
from twisted_vllm.storage.usage.queries.reports import Cursor, first_row, read_page
from twisted_vllm.storage.usage.queries.rows import key_labels
from twisted_vllm.storage.usage.tables import DAY_US, KEY, MONTH

#: the days before today of a report that names no first one
_RECENT = {HOUR: 1, "day": 30, MONTH: 365}


@implementer(IPushProducer)
class _Gate:
    """Open while the client takes what is written."""

    def __init__(self) -> None:
        self._waiting: Deferred[None] | None = None
        self._paused = False

    def pauseProducing(self) -> None:
        """Close."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Open."""
        self._paused = False
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    def stopProducing(self) -> None:
        """Stay as it is: the request is cancelled with its client."""

    async def passed(self) -> None:
        """Wait until it is open."""
        if self._paused:
            self._waiting = Deferred(self._forget)
            await self._waiting

    def _forget(self, _cancelled: object) -> None:
        self._waiting = None


@attrs.frozen
class _Opened:
    """A report that can be written, and where it begins."""

    plan: Plan
    format: ReportFormat
    cursor: Cursor | None


class UsageReports:
    """Writes reports of usage."""

    _log = Logger()

    def __init__(self, office: AdminContext) -> None:
        self._office = office

    async def report(self, request: IRequest) -> bytes:
        """Answer ``GET /usage/report``: what was used, by any dimensions and by hour, day or month, of any size."""
        caller = caller_of(self._office, request)
        asked = parse_query(read_query(request), ReportQuery)
        group_by = _group_by(asked.group_by)
        if not caller.principal.may_administer and (SERVER in group_by or asked.server):
            raise RouteNotAllowed("Which server answered is for administrators.")
        opened = await self._office.read(
            lambda transaction: self._open(transaction.connection, caller, asked, group_by)
        )
        request.setHeader(b"content-type", opened.format.content_type)
        request.setHeader(b"cache-control", b"no-store")
        if asked.format == "csv":
            request.setHeader(b"content-disposition", b'attachment; filename="usage.csv"')
            request.setHeader(b"x-usage-source", opened.plan.source.encode())
        gate = _Gate()
        # IRequest is an IConsumer, and does not say so
        consumer = cast(IConsumer, request)
        consumer.registerProducer(gate, True)
        try:
            request.write(opened.format.head())
            await self._write(request, opened, gate)
        except CancelledError:
            # the client is gone, and with it what the producer was registered with
            raise
        except Exception as error:
            # The status is out. What was sent must not look whole.
            if isinstance(error, GatewayError):
                self._log.error("a usage report broke off: {reason}", reason=error.message)
            else:
                self._log.failure("a usage report broke off")
            _cut(request)
            gone: Deferred[bytes] = Deferred()
            return await gone
        consumer.unregisterProducer()
        return opened.format.tail()

    async def _write(self, request: IRequest, opened: _Opened, gate: _Gate) -> None:
        cursor = opened.cursor
        while cursor is not None:
            await gate.passed()
            here = cursor

            def page(connection: Connection, at: Cursor = here) -> tuple[bytes, Cursor | None]:
                found = read_page(connection, opened.plan, at)
                ids: list[str] = []
                if KEY in opened.plan.query.group_by:
                    place = opened.plan.query.group_by.index(KEY)
                    ids = sorted({group.values[place] for group in found.groups} - {""})
                return opened.format.groups(found.groups, key_labels(connection, ids)), found.cursor

            body, cursor = await self._office.read(lambda transaction: page(transaction.connection))
            if body:
                request.write(body)

    def _open(self, connection: Connection, caller: Caller, asked: ReportQuery, group_by: tuple[str, ...]) -> _Opened:
        """Decide how a report is answered, before anything is.

        Raises:
            InvalidRequest: it cannot be.
            RouteNotAllowed: the caller may not see it.
        """
        equals = filters_of(connection, caller, asked)
        start, end = self._span(asked)
        wanted = UsageQuery(group_by, asked.interval, start, end, equals or {})
        for name, value in ((ROUTE, asked.route), (SERVER, asked.server)):
            if value:
                wanted = attrs.evolve(wanted, equals={**wanted.equals, name: value})
        try:
            planned = plan(wanted)
        except Unanswerable as error:
            raise InvalidRequest(str(error), param="group_by") from None
        about: dict[str, Any] = {
            "start": _iso(start),
            "end": _iso(end),
            "interval": asked.interval,
            "group_by": group_by,
            "source": planned.source,
        }
        if planned.source == ROWS:
            first = first_row(connection)
            about["rows_since"] = None if first is None else _iso(first)
        report_format: ReportFormat = CsvReport(planned) if asked.format == "csv" else JsonReport(planned, about)
        return _Opened(planned, report_format, None if equals is None else Cursor())

    def _span(self, asked: ReportQuery) -> tuple[int, int]:
        span = span_of(asked.start, asked.end, ("start", "end"))
        tomorrow = microseconds(self._office.now()) // DAY_US * DAY_US + DAY_US
        end = max(tomorrow, (span.start or 0) + DAY_US) if span.end is None else span.end
        if span.start is not None:
            return span.start, end
        first = days_of("", "", moment_of(end - 1), _RECENT[asked.interval])[0]
        return first, end


def _iso(number: int) -> str:
    return moment_of(number).isoformat().replace("+00:00", "Z")


def _group_by(text: str) -> tuple[str, ...]:
    """Return the dimensions that are named, in their order.

    Raises:
        InvalidRequest: one is none.
    """
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    for number, name in enumerate(names):
        if name not in DIMENSIONS:
            raise InvalidRequest(
                f"`group_by[{number}]` must be one of {', '.join(DIMENSIONS)}.", param=f"group_by[{number}]"
            )
    return tuple(name for name in DIMENSIONS if name in names)


def _cut(request: IRequest) -> None:
    """Cut the connection."""
    abort = getattr(request, "abort", None)
    (abort or cast(Any, request).loseConnection)()
