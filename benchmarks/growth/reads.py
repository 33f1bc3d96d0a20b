"""How long the lists and reports of the admin API take, while requests go through."""

from __future__ import annotations

import http.client
import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from urllib.parse import urlencode

import attrs
import msgspec

from benchmarks.growth.population import MODELS, TAGS, Population
from benchmarks.measure import percentile

#: seconds that an answer may take; the gateway itself ends reports before
_PATIENCE = 120.0
#: a route is asked no longer than so many seconds, once at least
_LONGEST = 15.0

Query = dict[str, object]


class ReadCost(msgspec.Struct, frozen=True):
    """How long a route took.

    Attributes:
        route: what was asked.
        times: how often.
        p50, p99: milliseconds; of fewer than a hundred answers, p99 is the longest.
        kilobytes: of the largest answer.
        failed: the first status that was none of success, if any.
        whole: whether it is everything, of any size, and not what a page shows.
    """

    route: str
    times: int
    p50: float
    p99: float
    kilobytes: float
    failed: int | None = None
    whole: bool = False


@attrs.frozen
class Read:
    """A route, and with what it is asked.

    Attributes:
        path: the route's path.
        words: what is asked of it, in words.
        query: makes the parameters, each time others.
        body: whether they are the body of a POST.
        whole: as in `ReadCost`.
    """

    path: str
    words: str
    query: Callable[[], Query]
    body: bool = False
    whole: bool = False

    @property
    def name(self) -> str:
        """What the report calls it."""
        return f"{self.path} {self.words}".rstrip()


class Asked:
    """Chooses whom the reads ask about.

    Args:
        population: who there is.
        today: the last day with rows.
        chance: the source of randomness.
        request_ids: ids of requests in the ledger.
    """

    def __init__(
        self, population: Population, today: date, chance: random.Random, request_ids: list[str] | None = None
    ) -> None:
        self.population = population
        self.today = today
        self.chance = chance
        self.request_ids = request_ids or []

    def key(self) -> int:
        """Return the number of a key."""
        return self.chance.randrange(self.population.size.keys)

    def page(self, total: int, size: int) -> int:
        """Return the number of a page, as often an early one as a late one."""
        return 1 + self.chance.randrange(max(total // size, 1))

    def days(self, days: int) -> Query:
        """Return the last days."""
        return {"start_date": str(self.today - timedelta(days=days)), "end_date": str(self.today)}


def reads(asked: Asked) -> Iterator[Read]:
    """Return all reads: each list and report that the console or a script asks for."""
    population, size = asked.population, asked.population.size
    month, year = 30, 364

    def fixed(**query: object) -> Callable[[], Query]:
        return lambda: query

    def dated(days: int, **query: object) -> Callable[[], Query]:
        return lambda: {**asked.days(days), **query}

    def paged(total: int, page_size: int, name: str = "page_size", **query: object) -> Callable[[], Query]:
        return lambda: {"page": asked.page(total, page_size), name: page_size, **query}

    yield Read("/key/list", "first page", fixed(size=50, return_full_object="true"))
    yield Read("/key/list", "any page", paged(size.keys, 50, "size", return_full_object="true"))
    yield Read("/key/list", "by spend", fixed(size=50, return_full_object="true", sort_by="spend"))
    yield Read("/key/list", "of a team", lambda: {"team_id": population.team(asked.key()) or "", "size": 50})
    yield Read("/key/list", "by alias", lambda: {"key_alias": f"key {asked.key()}", "size": 50})
    yield Read("/key/aliases", "search", lambda: {"search": str(asked.key()), "size": 50})
    yield Read("/key/info", "", lambda: {"key": population.token(asked.key())})
    yield Read("/user/list", "first page", fixed(page_size=50))
    yield Read("/user/list", "any page", paged(size.users, 50))
    yield Read("/user/info", "", lambda: {"user_id": population.user(asked.key()) or ""})
    yield Read("/team/list", "whole", fixed())
    yield Read("/team/list", "first page", fixed(page=1, page_size=50))
    yield Read("/v2/team/list", "any page", paged(size.teams, 50))
    yield Read("/team/info", "", lambda: {"team_id": population.team(asked.key()) or ""})
    yield Read("/organization/list", "", fixed())
    yield Read("/customer/list", "", fixed())
    yield Read("/customer/info", "", lambda: {"end_user_id": population.end_user(asked.key() % max(size.end_users, 1))})
    yield Read("/spend/logs", "newest", fixed(page_size=50))
    yield Read("/spend/logs", "sums of 30 days", dated(month))
    yield Read("/spend/logs", "sums of 30 days of a key", lambda: {**asked.days(month), "api_key": _key(asked)})
    yield Read("/spend/logs", "of a request", lambda: {"request_id": _request(asked)})
    for days, words in ((1, "a day"), (month, "30 days"), (year, "12 months")):
        yield Read("/spend/logs/v2", words, dated(days))
    yield Read("/spend/logs/v2", "page 100", dated(month, page=100))
    yield Read("/spend/logs/v2", "of a key", lambda: {**asked.days(year), "api_key": _key(asked)})
    yield Read(
        "/spend/logs/v2", "of a user", lambda: {**asked.days(year), "user_id": population.user(asked.key()) or ""}
    )
    yield Read(
        "/spend/logs/v2", "of a team", lambda: {**asked.days(year), "team_id": population.team(asked.key()) or ""}
    )
    yield Read("/spend/logs/v2", "of an end user", lambda: {**asked.days(year), "end_user": _end_user(asked)})
    yield Read("/spend/logs/v2", "failures", dated(year, status_filter="failure"))
    yield Read("/spend/logs/v2", "by status code", dated(year, error_code="500"))
    yield Read("/spend/logs/v2", "of a model", dated(year, model=MODELS[-1]))
    yield Read("/spend/logs/v2", "of a tag", lambda: {**asked.days(year), "tag": f"tag-{asked.key() % TAGS:02d}"})
    yield Read("/spend/logs/v2", "by cost", dated(year, min_spend=0.0002))
    yield Read("/spend/logs/v2", "of a request", lambda: {**asked.days(year), "request_id": _request(asked)})
    yield Read("/spend/keys", "", fixed(page_size=50))
    yield Read("/spend/users", "", fixed(page_size=50))
    yield Read("/spend/tags", "30 days", dated(month))
    yield Read("/spend/tags", "all time", fixed())
    yield Read("/key/spend/report", "of a key", lambda: {**asked.days(month), "api_key": _key(asked)})
    yield Read(
        "/user/spend/report", "of a user", lambda: {**asked.days(month), "user_id": population.user(asked.key()) or ""}
    )
    yield Read(
        "/team/spend/report", "of a team", lambda: {**asked.days(month), "team_id": population.team(asked.key()) or ""}
    )
    yield Read("/global/spend", "", fixed())
    yield Read("/global/spend/logs", "", fixed())
    yield Read("/global/spend/logs", "of a key", lambda: {"api_key": _key(asked)})
    yield Read("/global/spend/keys", "", fixed())
    yield Read("/global/spend/teams", "", fixed())
    yield Read("/global/spend/models", "", fixed())
    yield Read("/global/spend/tags", "", fixed())
    yield Read("/global/spend/all_tag_names", "", fixed())
    yield Read("/global/spend/provider", "", fixed())
    yield Read("/global/spend/report", "by team", dated(month, group_by="team"), whole=True)
    yield Read("/global/spend/report", "by customer", dated(month, group_by="customer"), whole=True)
    yield Read("/global/spend/report", "by key", dated(month, group_by="api_key"), whole=True)
    yield Read("/global/spend/end_users", "", fixed(), body=True)
    yield Read("/global/all_end_users", "", fixed())
    for days, words in ((month, "30 days"), (year, "12 months")):
        yield Read("/global/activity", words, dated(days))
        yield Read("/global/activity/model", words, dated(days))
        for kind in ("user", "team", "organization", "customer", "tag"):
            yield Read(f"/{kind}/daily/activity", words, dated(days))
        yield Read(
            "/user/daily/activity",
            f"{words} of a user",
            lambda days=days: {**asked.days(days), "user_id": population.user(asked.key()) or ""},  # type: ignore[misc] # a default is not inferred
        )
        yield Read(
            "/team/daily/activity",
            f"{words} of a team",
            lambda days=days: {**asked.days(days), "team_ids": population.team(asked.key()) or ""},  # type: ignore[misc] # likewise
        )
    yield Read(
        "/user/daily/activity/aggregated",
        "30 days of a user",
        lambda: {**asked.days(month), "user_id": population.user(asked.key()) or ""},
    )
    yield Read(
        "/team/daily/activity/aggregated",
        "30 days of a team",
        lambda: {**asked.days(month), "team_ids": population.team(asked.key()) or ""},
    )
    for group_by, interval, days in (
        ("", "day", month),
        ("model", "day", month),
        ("team", "month", year),
        ("team,model", "day", month),
        ("user", "month", month),
        ("end_user", "month", month),
        ("tag", "month", year),
    ):
        span = {"start": str(asked.today - timedelta(days=days)), "end": str(asked.today)}
        yield Read(
            "/usage/report",
            f"by {group_by or 'nothing'} and {interval}, {days} days",
            fixed(group_by=group_by, interval=interval, **span),
            whole=group_by not in ("", "model"),
        )
    yield Read(
        "/usage/report",
        "of a key by model and day, 364 days",
        lambda: {
            "group_by": "model",
            "api_key": _key(asked),
            "start": str(asked.today - timedelta(days=year)),
            "end": str(asked.today),
        },
    )
    yield Read("/audit", "", fixed(page_size=50))
    yield Read("/audit/list", "", fixed(page_size=50))


def _key(asked: Asked) -> str:
    return asked.population.token(asked.key())


def _end_user(asked: Asked) -> str:
    return asked.population.end_user(asked.chance.randrange(max(asked.population.size.end_users, 1)))


def _request(asked: Asked) -> str:
    return asked.chance.choice(asked.request_ids) if asked.request_ids else "none"


def some_request_ids(port: int, key: str, today: date) -> list[str]:
    """Return ids of requests of the last month."""
    query = urlencode({"start_date": str(today - timedelta(days=30)), "end_date": str(today), "page_size": 100})
    _, body = _ask(port, key, f"/spend/logs/v2?{query}", None)
    return [entry["request_id"] for entry in msgspec.json.decode(body).get("data", ())]


def time_read(read: Read, port: int, key: str, times: int) -> ReadCost:
    """Ask for a route so many times, one after the other, but not for longer than some seconds."""
    took: list[float] = []
    largest, failed = 0, None
    end = time.monotonic() + _LONGEST
    while len(took) < times and (not took or time.monotonic() < end):
        query = {name: value for name, value in read.query().items() if value != ""}
        began = time.perf_counter()
        if read.body:
            status, body = _ask(port, key, read.path, msgspec.json.encode(query))
        else:
            status, body = _ask(port, key, f"{read.path}?{urlencode(query)}" if query else read.path, None)
        took.append((time.perf_counter() - began) * 1000)
        largest = max(largest, len(body))
        if status != 200:
            failed = failed or status
    p50, p99 = percentile(took, 50), percentile(took, 99)
    assert p50 is not None and p99 is not None
    return ReadCost(read.name, len(took), p50, p99, largest / 1000, failed, read.whole)


def _ask(port: int, key: str, path: str, body: bytes | None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    try:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request("GET" if body is None else "POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def today() -> date:
    """Return the day (UTC)."""
    return datetime.now(UTC).date()
