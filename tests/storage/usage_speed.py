"""How long reports over a year of usage take."""

from __future__ import annotations

import os
import time

import attrs
from sqlalchemy import Connection

from tests.storage.usage_year import END, REQUESTS, START, analyse, fill_rare, fill_rows, fill_sums
from twisted_vllm.storage.usage.queries.lookups import RowFilter
from twisted_vllm.storage.usage.queries.plan import UsageQuery, plan
from twisted_vllm.storage.usage.queries.reports import Cursor, read_page
from twisted_vllm.storage.usage.queries.rows import count_rows, page_of_rows
from twisted_vllm.storage.usage.tables import DAY_US

#: ten million requests and more, or a few
FULL = bool(os.environ.get("FULL_LOAD"))
KEYS, MODELS, ROWS = (500, 5, 1_000_000) if FULL else (10, 3, 2_000)

#: seconds that a report over the year may take, of up to some thousand groups
SOON = 0.2


@attrs.frozen
class Timed:
    """What a report took.

    Attributes:
        groups: how many came.
        requests: of how many it tells.
        seconds: the whole of it, at its best of three times: what else the machine does is not meant.
    """

    groups: int
    requests: int
    seconds: float


def fill(connection: Connection) -> None:
    """Write a year."""
    fill_sums(connection, KEYS, MODELS)
    fill_rows(connection, ROWS, KEYS, MODELS)
    fill_rare(connection)
    analyse(connection)


def timed(connection: Connection, asked: UsageQuery) -> Timed:
    """Read a whole report."""
    best = float("inf")
    for _ in range(3):
        groups = requests = 0
        began = time.perf_counter()
        cursor: Cursor | None = Cursor()
        planned = plan(asked)
        while cursor is not None:
            page = read_page(connection, planned, cursor)
            cursor = page.cursor
            groups += len(page.groups)
            requests += sum(group.sums[0] for group in page.groups)
        best = min(best, time.perf_counter() - began)
    return Timed(groups, requests, best)


def check_a_year(connection: Connection) -> list[str]:
    """Hold the reports that are asked often to their time, where the year is a full one; return what each took."""
    whole = KEYS * MODELS * 365 * REQUESTS
    key = {"key": "key-7"}
    told = []
    of_a_year: tuple[tuple[tuple[str, ...], str, dict[str, str], int], ...] = (
        ((), "month", {}, whole),
        ((), "day", {}, whole),
        (("model",), "day", {}, whole),
        (("team", "model"), "month", {}, whole),
        (("key",), "month", {}, whole),
        (("model",), "day", key, whole // KEYS),
        (("model",), "month", key, whole // KEYS),
    )
    for group_by, interval, equals, requests in of_a_year:
        took = timed(connection, UsageQuery(group_by, interval, START, END, equals))
        assert took.requests == requests
        told.append(
            f"{','.join(group_by) or 'all'} by {interval} {equals}: {took.groups} in {took.seconds * 1e3:.0f} ms"
        )
        assert not FULL or took.seconds < SOON, told
    finer: tuple[tuple[tuple[str, ...], str, int], ...] = (
        (("key", "model"), "month", END),
        (("key", "user", "team", "model"), "month", END),
        (("key",), "hour", START + 30 * DAY_US),
    )
    for group_by, interval, end in finer:
        took = timed(connection, UsageQuery(group_by, interval, START, end))
        assert not FULL or interval != "month" or took.seconds < SOON
        told.append(f"{','.join(group_by)} by {interval}: {took.groups} in {took.seconds * 1e3:.0f} ms")
    for asked, skip, rows in (
        (RowFilter(), 0, 100),
        (RowFilter(equals=key), 0, 100),
        (RowFilter(equals=key), 100, 100),
        (RowFilter(equals={"key": "rare"}), 0, 3),
        (RowFilter(equals={"key": "rare"}), 3, 0),
        (RowFilter(equals={"tag": "everybody"}), 0, 100),
        (RowFilter(equals={"tag": "everybody"}), 1000, 100),
        (RowFilter(equals={"model": "model-1"}), 0, 100),
        (RowFilter(equals={"end_user": "end-7"}), 0, min(100, ROWS // 1000)),
        (RowFilter(equals={"key": "rare"}, request_id="request-1"), 0, 1),
        (RowFilter(request_id="f" * 32), 0, 0),
    ):
        began = time.perf_counter()
        assert len(page_of_rows(connection, asked, skip, 100)) == rows
        paged = time.perf_counter()
        count_rows(connection, asked)
        counted = time.perf_counter() - paged
        told.append(
            f"newest rows {dict(asked.equals)} {asked.request_id} from {skip}: {(paged - began) * 1e3:.0f} ms, "
            f"counted in {counted * 1e3:.0f} ms"
        )
        assert not FULL or paged - began < SOON, told
    return told
