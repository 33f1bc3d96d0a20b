"""What the queries about usage may hold, and the dates in them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import attrs
import msgspec

from twisted_vllm.admin.queries import MOMENT, PageNumber, Query
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.storage.usage.queries.plan import DIMENSIONS, microseconds, moment_of
from twisted_vllm.storage.usage.tables import DAY_US

#: the days of which LiteLLM's reports without dates tell, today besides
RECENT_DAYS = 30

_DATE_LENGTH = len("2026-03-01")
_LARGEST_PAGE = 1000
_WHEN = "a date, as in 2026-03-01, or a moment, as in 2026-03-01T12:00:00Z; in UTC unless it says otherwise"

Flag = Literal["", "false", "true", "0", "1"]
Start = Annotated[str, msgspec.Meta(description=f"The first day or moment: {_WHEN}.", extra_json_schema=MOMENT)]
End = Annotated[
    str, msgspec.Meta(description="The last day or moment, which still counts; likewise.", extra_json_schema=MOMENT)
]
_DAY = {"pattern": "^2[0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])$"}
_NAMES = "|".join(DIMENSIONS)
StartDay = Annotated[
    str, msgspec.Meta(description="The first day.", extra_json_schema={"pattern": f"({_DAY['pattern']})|^$"})
]
EndDay = Annotated[
    str, msgspec.Meta(description="The last day.", extra_json_schema={"pattern": f"({_DAY['pattern']})|^$"})
]
KeyName = Annotated[str, msgspec.Meta(description="A key, its hash, or its lasting id.")]
BigPage = Annotated[int, msgspec.Meta(ge=1, le=_LARGEST_PAGE, description="How many entries a page holds.")]
TopCount = Annotated[int, msgspec.Meta(ge=1, le=_LARGEST_PAGE, description="How many at the most.")]


class Filters(Query, frozen=True, kw_only=True):
    """Whose usage is meant."""

    api_key: KeyName = ""
    user_id: str = ""
    team_id: str = ""
    end_user: str = ""
    model: str = ""
    tag: str = ""


class LogsQuery(Filters, frozen=True, kw_only=True):
    """The query of ``GET /spend/logs``."""

    request_id: str = ""
    start_date: Start = ""
    end_date: End = ""
    summarize: Annotated[Flag, msgspec.Meta(description="With both dates: sums of each day, unless `false`.")] = ""
    page: PageNumber = 1
    page_size: BigPage = 100


class PagedLogsQuery(Filters, frozen=True, kw_only=True):
    """The query of ``GET /spend/logs/v2``."""

    request_id: str = ""
    start_date: Start = ""
    end_date: End = ""
    status_filter: Literal["", "success", "failure"] = ""
    page: PageNumber = 1
    page_size: BigPage = 50


class SpendListQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /spend/keys``."""

    page: PageNumber = 1
    page_size: BigPage = 100


class SpendUsersQuery(SpendListQuery, frozen=True, kw_only=True):
    """The query of ``GET /spend/users``."""

    user_id: str = ""


class DatesQuery(Query, frozen=True, kw_only=True):
    """The query of what is told of some days."""

    start_date: StartDay = ""
    end_date: EndDay = ""


class ActivityQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /global/activity``."""

    start_date: Annotated[str, msgspec.Meta(min_length=1, description="The first day.", extra_json_schema=_DAY)]
    end_date: Annotated[str, msgspec.Meta(min_length=1, description="The last day.", extra_json_schema=_DAY)]


class KeyReportQuery(DatesQuery, frozen=True, kw_only=True):
    """The query of ``GET /key/spend/report``."""

    api_key: KeyName = ""


class GlobalLogsQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /global/spend/logs``."""

    api_key: KeyName = ""


class TopQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /global/spend/models`` and ``/global/spend/keys``."""

    limit: TopCount = 10


class DailyActivityQuery(DatesQuery, frozen=True, kw_only=True):
    """The query of ``GET /user/daily/activity``."""

    api_key: KeyName = ""
    user_id: str = ""
    model: str = ""
    page: PageNumber = 1
    page_size: BigPage = 50


class ReportQuery(Filters, frozen=True, kw_only=True):
    """The query of ``GET /usage/report``."""

    group_by: Annotated[
        str,
        msgspec.Meta(
            description=f"Some of {', '.join(DIMENSIONS)}, with commas between.",
            extra_json_schema={"pattern": f"^(({_NAMES})(,({_NAMES}))*)?$"},
        ),
    ] = ""
    interval: Literal["hour", "day", "month"] = "day"
    start: Start = ""
    end: End = ""
    format: Literal["json", "csv"] = "json"
    route: str = ""
    server: str = ""


#: parameters of LiteLLM's of ``/spend/logs/v2`` and ``/user/daily/activity`` that are not done here
LOGS_DEFAULTS: dict[str, Any] = dict.fromkeys(
    ("min_spend", "max_spend", "key_alias", "error_code", "error_message", "model_id", "sort_by", "sort_order")
)
ACTIVITY_DEFAULTS: dict[str, Any] = {"timezone": "0"}


@attrs.frozen
class Span:
    """A stretch of time, in microseconds since 1970; the end does not belong to it any more. None is open."""

    start: int | None
    end: int | None


def span_of(start: str, end: str, names: tuple[str, str] = ("start_date", "end_date")) -> Span:
    """Return the stretch between two dates or moments, both of which count; an end before the start leaves nothing.

    Raises:
        InvalidRequest: one of them is none.
    """
    first, last = _moment(start, names[0]), _moment(end, names[1])
    if last is not None:
        last += DAY_US if len(end) == _DATE_LENGTH else 1
    if first is not None and last is not None:
        last = max(first, last)
    return Span(first, last)


def days_of(start: str, end: str, now: datetime, recent: int = RECENT_DAYS) -> tuple[int, int]:
    """Return the whole days between two dates, both of which count; those that are left out are the most recent.

    Raises:
        InvalidRequest: one of them is none.
    """
    for name, text in (("start_date", start), ("end_date", end)):
        if text and len(text) != _DATE_LENGTH:
            raise InvalidRequest(f"`{name}` must be a date, as in 2026-03-01.", param=name)
    span = span_of(start, end)
    last = span.end
    if last is None:
        last = microseconds(now) // DAY_US * DAY_US + DAY_US
        if span.start is not None:
            last = max(last, span.start + DAY_US)
    first = last - (recent + 1) * DAY_US if span.start is None else span.start
    return max(first, 0), last


def iso(number: int) -> str:
    """Return a moment, given in microseconds since 1970, as LiteLLM writes it."""
    return moment_of(number).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _moment(text: str, name: str) -> int | None:
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
        if found + timedelta(days=32) < found or found.year < 1970:
            raise ValueError
    except (ValueError, OverflowError):
        raise InvalidRequest(f"`{name}` must be {_WHEN}.", param=name) from None
    return microseconds(found)
