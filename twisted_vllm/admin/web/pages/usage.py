"""The usage of a time as a chart and a table, by anything it may be grouped by, and as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from twisted_vllm.admin.web.page import PageCall, Pages
from twisted_vllm.admin.web.pages.usage_filters import (
    FILTERS,
    PERIODS,
    Period,
    address,
    filters_of,
    period_of,
    span_of_interval,
)
from twisted_vllm.errors import GatewayError

pages = Pages()

#: what usage may be grouped by: the name in the address, the words, the dimension of the API, whether it is for those
#: who see everything
GROUPS: tuple[tuple[str, str, str, bool], ...] = (
    ("model", "Model", "model", False),
    ("team", "Team", "team", False),
    ("key", "Key", "key", False),
    ("user", "User", "user", False),
    ("customer", "Customer", "end_user", False),
    ("tag", "Tag", "tag", False),
    ("route", "Route", "route", False),
    ("server", "Server", "server", True),
    ("time", "Time only", "", False),
)
_BY_NAME = {name: (words, dimension) for name, words, dimension, _ in GROUPS}

#: what a chart may show, and how its numbers are written
MEASURES: tuple[tuple[str, str, str], ...] = (
    ("spend", "Spend", "money"),
    ("requests", "Requests", "number"),
    ("failed", "Failed requests", "number"),
    ("total_tokens", "Tokens", "short"),
    ("prompt_tokens", "Prompt tokens", "short"),
    ("cached_tokens", "Cached prompt tokens", "short"),
    ("completion_tokens", "Generated tokens", "short"),
)
_FORMATS = {name: form for name, _, form in MEASURES}

INTERVALS = (("", "Automatic"), ("hour", "Hour"), ("day", "Day"), ("month", "Month"))

#: groups of the table, and series of the chart before the others are put together
MOST_ROWS, MOST_SERIES = 50, 5

#: the filter of requests that a group's value is
_FILTER_OF = {
    "model": "model",
    "team": "team_id",
    "key": "api_key",
    "user": "user_id",
    "end_user": "end_user",
    "tag": "tag",
    "route": "route",
    "server": "server",
}


@pages.get("/ui/usage", needs="GET /usage/top", title="Usage", group="Usage")
async def show(call: PageCall) -> bytes:
    """Show the report that the address asks for."""
    chosen = _Chosen(call)
    found: dict[str, Any] | None = None
    problem = ""
    status = 200
    try:
        found = await chosen.ask(call)
    except GatewayError as error:
        problem, status = error.message, error.status
    return call.render(
        "usage/report.html",
        status=status,
        chosen=chosen,
        found=found,
        problem=problem,
        rows=[] if found is None else chosen.rows(found),
        chart="" if found is None else chosen.chart(found),
        filters=[each for each in FILTERS if call.reads_everything or not each[2]],
        groups=[(name, words) for name, words, _, every in GROUPS if call.reads_everything or not every],
        measures=[(name, words) for name, words, _ in MEASURES],
        intervals=INTERVALS,
        periods=PERIODS,
    )


@pages.get("/ui/usage/csv", needs="GET /usage/report")
async def download(call: PageCall) -> bytes:
    """Send the same report as CSV, with all groups: the API's own file."""
    chosen = _Chosen(call)
    return await call.file("/usage/report", format="csv", **chosen.query)


class _Chosen:
    """What an address asks for.

    Attributes:
        group: what is grouped by, as in `GROUPS`.
        measure: what the chart shows.
        interval: as written: empty for an automatic one.
        period: the time.
        filters: the filters, by their names in the API.
        query: the parameters of the API that all reports share.
    """

    def __init__(self, call: PageCall) -> None:
        given = call.query
        self.group = given.get("group_by", "") if given.get("group_by") in _BY_NAME else "model"
        self.measure = given.get("measure", "") if given.get("measure") in _FORMATS else ""
        written = given.get("interval", "")
        self.interval = written if written in dict(INTERVALS) else ""
        self.period: Period = period_of(given, call.context.now())
        self.filters = filters_of(given)
        self.dimension = _BY_NAME[self.group][1]
        self.query: dict[str, str | None] = {
            **self.filters,
            "group_by": self.dimension or None,
            "interval": self.interval or self._automatic(),
            "start": self.period.start or None,
            "end": self.period.end or None,
        }

    @property
    def group_words(self) -> str:
        """What is grouped by."""
        return _BY_NAME[self.group][0] if self.dimension else "Time"

    @property
    def format(self) -> str:
        """How the numbers of the chart are written."""
        return _FORMATS[self.measure]

    @property
    def measure_words(self) -> str:
        """What the chart shows."""
        return next(words for name, words, _ in MEASURES if name == self.measure)

    @property
    def csv(self) -> str:
        """The address of the file."""
        return address("/ui/usage/csv", self.filters, self._dates(), group_by=self.group, interval=self.interval)

    def _automatic(self) -> str:
        days = self.period.days
        if days is None:
            return "day"
        return "hour" if days <= 2 else "day" if days <= 100 or self.dimension in ("route", "server") else "month"

    def _dates(self) -> dict[str, str]:
        if self.period.name != "custom":
            return {"period": self.period.name}
        return {"start_date": self.period.start, "end_date": self.period.end}

    async def ask(self, call: PageCall) -> dict[str, Any]:
        """Return what is found; without a choice, tokens in place of money where nothing has a price.

        Raises:
            GatewayError: as the API answers.
        """
        chosen = self.measure
        self.measure = chosen or "spend"
        found: dict[str, Any] = await call.get("/usage/top", **self.query, top=MOST_ROWS, measure=self.measure)
        if not chosen and not found["totals"]["spend"] and found["totals"]["requests"]:
            self.measure = "total_tokens"
            found = await call.get("/usage/top", **self.query, top=MOST_ROWS, measure=self.measure)
        return found

    def rows(self, found: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of the table: the groups and the others, or the intervals with the newest first."""
        if not self.dimension:
            pairs = list(zip(found["starts"], found["intervals"] or (), strict=False))[::-1]
            return [
                {**sums, "name": start.replace("T", " ").removesuffix(":00Z"), "link": self._requests_at(start, found)}
                for start, sums in pairs
                if sums["requests"]
            ]
        whole = found["totals"][self.measure] or 0
        rows = [
            {
                **group,
                "name": self.name_of(group),
                "link": self._requests_of(group),
                "share": group[self.measure] / whole if whole else None,
            }
            for group in found["groups"]
        ]
        others = found["others"]
        if others is not None:
            share = others[self.measure] / whole if whole else None
            rows.append({**others, "name": "All others", "link": "", "share": share})
        return rows

    def name_of(self, group: Mapping[str, Any]) -> str:
        """Return what a group is called."""
        if self.dimension == "key":
            return str(group["key_alias"] or group["key_id"] or "master key")
        if self.dimension == "team":
            return str(group["team_alias"] or group["team"] or "no team")
        return str(group[self.dimension] or f"no {self.group_words.lower()}")

    def _requests_of(self, group: Mapping[str, Any]) -> str:
        value = group["key_id"] if self.dimension == "key" else group[self.dimension]
        if not value:
            return ""
        return address("/ui/requests", self.filters, self._dates(), {_FILTER_OF[self.dimension]: value})

    def _requests_at(self, start: str, found: Mapping[str, Any]) -> str:
        return address("/ui/requests", self.filters, span_of_interval(start, found["interval"]))

    def chart(self, found: Mapping[str, Any]) -> str:
        """Return the options of the chart as JSON."""
        groups: Sequence[Mapping[str, Any]] = found["groups"]
        if self.dimension:
            series = [{"name": self.name_of(each), "values": each["series"]} for each in groups[:MOST_SERIES]]
            rest = [each["series"] for each in groups[MOST_SERIES:]]
            if found["others"] is not None:
                rest.append(found["others"]["series"])
            if rest:
                series.append({"name": "All others", "values": [sum(column) for column in zip(*rest, strict=True)]})
        else:
            series = [{"name": self.measure_words, "values": each["series"]} for each in groups]
        times = [
            int(datetime.fromisoformat(each + ("" if "T" in each else "T00:00:00Z")).timestamp())
            for each in found["starts"]
        ]
        words = f"{self.measure_words} by {found['interval']}"
        words += f" and {self.group_words.lower()}" if self.dimension else ""
        options = {
            "times": times,
            "series": series,
            "format": self.format,
            "stacked": True,
            "summary": f"{words}; the table below has the same numbers.",
        }
        return msgspec.json.encode(options).decode()
