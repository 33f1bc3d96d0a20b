"""The filters that the pages of usage share: whose, of what and when. They stand in the address."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from urllib.parse import urlencode

import attrs

from twisted_vllm.admin.authorization import token_of

#: a filter of the API, what it is called, and whether only those who see everything have it
FILTERS: tuple[tuple[str, str, bool], ...] = (
    ("model", "Model", False),
    ("api_key", "Key (its hash or id)", False),
    ("user_id", "User", False),
    ("team_id", "Team", False),
    ("end_user", "Customer", False),
    ("tag", "Tag", False),
    ("route", "Route", False),
    ("server", "Server", True),
)

#: the periods to choose from, by their names in the address
PERIODS: tuple[tuple[str, str], ...] = (
    ("24h", "Last 24 hours"),
    ("7d", "Last 7 days"),
    ("30d", "Last 30 days"),
    ("month", "This month"),
    ("last_month", "Last month"),
    ("90d", "Last 90 days"),
    ("365d", "Last 365 days"),
    ("custom", "From … to …"),
)
_DAYS = {"7d": 7, "30d": 30, "90d": 90, "365d": 365}


@attrs.frozen
class Period:
    """A time that somebody chose.

    Attributes:
        name: one of `PERIODS`.
        start: the first day or moment, as the API takes it; empty for none.
        end: the last, included.
        days: about how many days it has; None if that is unknown.
    """

    name: str
    start: str
    end: str
    days: float | None


def period_of(query: Mapping[str, str], now: datetime, default: str = "7d") -> Period:
    """Return the time that an address asks for; dates that are written there stand for ``custom``."""
    start, end = query.get("start_date", ""), query.get("end_date", "")
    name = query.get("period", "") or ("custom" if start or end else default)
    today = now.astimezone(UTC).date()
    if name == "24h":
        hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        return Period(name, _moment(hour - timedelta(hours=23)), _moment(hour + timedelta(hours=1, microseconds=-1)), 1)
    if name in _DAYS:
        first = today - timedelta(days=_DAYS[name] - 1)
        return Period(name, first.isoformat(), today.isoformat(), _DAYS[name])
    if name == "month":
        return Period(name, today.replace(day=1).isoformat(), today.isoformat(), today.day)
    if name == "last_month":
        last = today.replace(day=1) - timedelta(days=1)
        return Period(name, last.replace(day=1).isoformat(), last.isoformat(), last.day)
    return Period("custom", start, end, _days_between(start, end))


def _moment(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _days_between(start: str, end: str) -> float | None:
    try:
        first, last = datetime.fromisoformat(start), datetime.fromisoformat(end)
    except ValueError:
        return None
    if first.tzinfo is None or last.tzinfo is None:
        first, last = first.replace(tzinfo=None), last.replace(tzinfo=None)
    whole_days = len(end) == len("2026-03-01")
    return (last - first) / timedelta(days=1) + whole_days


def span_of_interval(start: str, interval: str) -> dict[str, str]:
    """Return the dates of an interval of a report, for a list of its requests."""
    if interval == "hour":
        last = datetime.fromisoformat(start) + timedelta(hours=1, microseconds=-1)
        return {"start_date": start, "end_date": _moment(last)}
    if interval == "month":
        first = date.fromisoformat(start)
        last_day = (first.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
        return {"start_date": start, "end_date": last_day.isoformat()}
    return {"start_date": start, "end_date": start}


def filters_of(query: Mapping[str, str]) -> dict[str, str]:
    """Return the filters of an address that say something. A key that was typed is shown no more: its hash is."""
    found = {name: value for name, _, _ in FILTERS if (value := query.get(name, "").strip())}
    if found.get("api_key", "").startswith("sk-"):
        found["api_key"] = token_of(found["api_key"])
    return found


def address(path: str, *parts: Mapping[str, str], **more: str) -> str:
    """Return an address with parameters; the later ones win, and empty ones are left out."""
    merged: dict[str, str] = {}
    for each in (*parts, more):
        merged.update(each)
    shown = {name: value for name, value in merged.items() if value}
    return f"{path}?{urlencode(shown)}" if shown else path
