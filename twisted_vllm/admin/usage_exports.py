"""The export of the ledger: which days are exported, and to have one exported again."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

import msgspec
from sqlalchemy import Row

from twisted_vllm.admin.access import Access
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.models import Body, Json, Query, Response
from twisted_vllm.admin.routing import Routes
from twisted_vllm.errors import Conflict, InvalidRequest
from twisted_vllm.storage.transaction import Transaction
from twisted_vllm.storage.usage.exports import EXPORTED, ask, days_before, is_claimed, state_of
from twisted_vllm.usage.days import date_of, number_of

_PATH = "/usage/exports"

#: the JSON Schema of a day
_DAY_PATTERN = "2[0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"


class ExportsQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /usage/exports``."""

    before: Annotated[
        str,
        msgspec.Meta(
            description="Only days before this one: the last day of the page before.",
            extra_json_schema={"pattern": f"^({_DAY_PATTERN})?$"},
        ),
    ] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=366, description="The most days.")] = 31


class ExportRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /usage/exports``."""

    day: Annotated[
        str,
        msgspec.Meta(description="A day (UTC), as in 2026-03-01.", extra_json_schema={"pattern": f"^{_DAY_PATTERN}$"}),
    ]


class ExportedDay(Response, kw_only=True):
    """A day that is exported, or is to be."""

    day: str
    state: Annotated[
        Literal["waiting", "exporting", "exported", "failed"],
        msgspec.Meta(description="`failed`: the last attempt failed, and another one follows."),
    ]
    files: int
    rows: int
    bytes: int
    times_written: Annotated[int, msgspec.Meta(description="More than once: rows came late, or somebody asked.")]
    finished_at: datetime | None
    error: str | None


class ExportReport(Response, kw_only=True):
    """The days, and how far the export is."""

    enabled: bool
    target: Annotated[str | None, msgspec.Meta(description="The directory, or the bucket with the prefix.")]
    exported_until: Annotated[str | None, msgspec.Meta(description="All days up to this one are exported.")]
    next_day: Annotated[str | None, msgspec.Meta(description="The first day that is not.")]
    next_at: Annotated[datetime | None, msgspec.Meta(description="When its export is due.")]
    last_error: str | None
    last_error_day: str | None
    days: tuple[ExportedDay, ...]


class ExportAsked(Response, kw_only=True):
    """A day that will be exported."""

    status: Literal["success"]
    day: str


routes = Routes()


@routes.get(_PATH, query=ExportsQuery, access=Access.READER, response=ExportReport, errors=(400,))
async def list_exports(call: AdminCall, query: ExportsQuery) -> Json:
    """Return which days of the ledger are exported, the latest first, which is next, and the last error."""
    before = _day_of(query.before, "before") if query.before else None
    exports = call.context.exports
    now = _microseconds(call)

    def work(transaction: Transaction) -> Json:
        connection = transaction.connection
        state = state_of(connection, exports.schedule)
        is_on = exports.enabled
        return {
            "enabled": is_on,
            "target": exports.target if is_on else None,
            "exported_until": _shown(state.exported_until),
            "next_day": _shown(state.next) if is_on else None,
            "next_at": _moment(state.due) if is_on else None,
            "last_error": state.error,
            "last_error_day": _shown(state.error_day),
            "days": [_report(row, now) for row in days_before(connection, before, query.limit)],
        }

    return await call.read(work)


@routes.post(_PATH, body=ExportRequest, response=ExportAsked, errors=(409,))
async def export_day(call: AdminCall, body: ExportRequest) -> Json:
    """Export a closed day again, or at once. It takes the place of the files that are there when it is complete."""
    exports = call.context.exports
    if not exports.enabled:
        raise Conflict("Nothing is exported: set passthrough.ledger.usage_export.")
    day, now = _day_of(body.day, "day"), _microseconds(call)

    def work(transaction: Transaction) -> None:
        ask(transaction.connection, day, now, exports.schedule)
        call.audit.record(transaction, "usage_export", body.day, None, {"day": body.day})

    await call.change(work)
    exports.look_soon()
    return {"status": "success", "day": body.day}


def _report(row: Row[Any], now: int) -> Json:
    state = row.state
    if is_claimed(row, now):
        state = "exporting"
    elif state != EXPORTED and row.error is not None:
        state = "failed"
    return {
        "day": _shown(row.day),
        "state": state,
        "files": row.files,
        "rows": row.rows,
        "bytes": row.bytes,
        "times_written": row.times_written,
        "finished_at": _moment(row.finished_at),
        "error": row.error,
    }


def _day_of(text: str, name: str) -> int:
    try:
        return number_of(date.fromisoformat(text))
    except ValueError:
        raise InvalidRequest(f"`{name}` must be a day, as in 2026-03-01.", param=name) from None


def _shown(day: int | None) -> str | None:
    return None if day is None else date_of(day).isoformat()


def _moment(microseconds: int | None) -> str | None:
    return None if microseconds is None else datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat()


def _microseconds(call: AdminCall) -> int:
    return int(call.now.timestamp() * 1e6)
