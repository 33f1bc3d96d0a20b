"""What the queries about usage promise, of whichever database."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

import pytest
from sqlalchemy import Connection, event, func, select, update

from tests.builders import usage_row
from tests.storage.ledger_filler import keep
from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.storage.by_spend import keys_by_spend, users_by_spend
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import migrate
from twisted_vllm.storage.usage.partitions import all_partitions, rows_in
from twisted_vllm.storage.usage.queries.days import Entities, page_of_days
from twisted_vllm.storage.usage.queries.lookups import RowFilter, look_ups
from twisted_vllm.storage.usage.queries.names import names_used
from twisted_vllm.storage.usage.queries.plan import DIMENSIONS, Plan, Unanswerable, UsageQuery, plan
from twisted_vllm.storage.usage.queries.reports import (
    Cursor,
    Group,
    read_all,
    read_page,
    read_totals,
)
from twisted_vllm.storage.usage.queries.rows import count_rows, first_row, page_of_rows, rows_of
from twisted_vllm.storage.usage.tables import DAY_US, OTHER, SUMS, usage_lookups, usage_marks
from twisted_vllm.usage.records import UsageRow, payer_of, target_of

START = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
END = int(datetime(2026, 4, 1, tzinfo=UTC).timestamp()) * 1_000_000
_COST = SUMS.index("cost")


def some_rows(count: int = 200) -> list[UsageRow]:
    """Return rows of every kind, over three months."""
    chance = random.Random(3)
    return [
        usage_row(
            number,
            time=chance.randrange(START, END),
            key_id=chance.choice(("k1", "k2", "")),
            user_id=chance.choice(("Ada", "bob", "É", None)),
            team_id=chance.choice(("red", None)),
            end_user=chance.choice(("eve", "tom%", None)),
            tags=chance.choice(((), ("a",), ("a", "b"))),
            model=chance.choice(("qwen", "llama")),
            server=chance.choice(("gpu-1", "gpu-2")),
            **chance.choice(
                ({"outcome": "completed"}, *({"outcome": "refused", "error": each} for each in ("", "busy")))
            ),
            cost=chance.randrange(10**13),
            requests=chance.choice((1, 1, 590)),
            request_tags=chance.choice(((), ("c",), ("a", "c"))),
            status=chance.choice((200, 200, 429)),
            response_id=chance.choice(("", f"answer-{number}")),
        )
        for number in range(count)
    ]


def groups_of(connection: Connection, planned: Plan, limit: int) -> Iterator[Group]:
    """Return a whole report, read in pages of so many groups."""
    cursor: Cursor | None = Cursor()
    while cursor is not None:
        page = read_page(connection, planned, cursor, limit)
        assert len(page.groups) <= limit
        yield from page.groups
        cursor = page.cursor


def has_succeeded(row: UsageRow) -> bool:
    """Return whether a row counts as successful."""
    return row.outcome == "completed" and row.status < 400


def check_that_pages_make_up_the_whole(connection: Connection) -> None:
    """Every report is the same in pages of three, has each group once, in order, and adds up to the rows."""
    rows = some_rows()
    keep(connection, rows)
    whole = sum(row.cost for row in rows)
    requests = sum(row.requests for row in rows)
    successful = sum(row.requests for row in rows if has_succeeded(row))
    for size in (0, 1, 2):
        for group_by in combinations(DIMENSIONS, size):
            for interval in ("hour", "day", "month") if size < 2 else ("day", "month"):
                try:
                    planned = plan(UsageQuery(group_by, interval, START, END))
                except Unanswerable:
                    continue
                found = list(groups_of(connection, planned, 5_000))
                assert list(groups_of(connection, planned, 37)) == found
                names = [(group.start, *group.values) for group in found]
                assert len(set(names)) == len(names)
                assert [name[0] for name in names] == sorted(name[0] for name in names)
                if "tag" not in group_by:
                    assert sum(group.sums[_COST] for group in found) == whole
                    counted = [sum(group.sums[place] for group in found) for place in range(3)]
                    assert counted == [requests, successful, requests - successful]
    assert Counter(len(group.sums) for group in found) == {len(SUMS): len(found)}


def check_that_totals_add_up(connection: Connection) -> None:
    """The totals of a time are the sums of its intervals, the highest cost first, whichever tables they come from."""
    keep(connection, some_rows())
    span = START + 5 * DAY_US, END - 9 * DAY_US
    for group_by in ((), ("key",), ("model",), ("tag",), ("key", "model"), ("team", "user")):
        for equals in ({}, {"key": "k1"}) if "tag" not in group_by else ({},):
            expected: dict[tuple[str, ...], list[int]] = {}
            for group in read_all(connection, UsageQuery(group_by, "day", *span, equals)):
                sums = expected.setdefault(group.values, [0] * len(SUMS))
                expected[group.values] = [a + b for a, b in zip(sums, group.sums, strict=True)]
            found = read_totals(connection, UsageQuery(group_by, "month", *span, equals))
            assert {group.values: list(group.sums) for group in found} == expected
            costs = [group.sums[_COST] for group in found]
            assert costs == sorted(costs, reverse=True)
            assert read_totals(connection, UsageQuery(group_by, "month", *span, equals), 1) == found[:1]
    assert read_totals(connection, UsageQuery((), "month", START - 90 * DAY_US, START - DAY_US)) == []
    with pytest.raises(InvalidRequest, match="too much"):
        list(read_all(connection, UsageQuery(("key",), "day", START, END), 20))


def check_that_keys_of_most_cost_come_first(connection: Connection) -> None:
    """Keys with one payer and keys with several are compared by all that they cost."""
    chance = random.Random(5)
    keep(
        connection,
        [
            usage_row(
                number,
                time=chance.randrange(START, END),
                key_id=f"k{number % 60}",
                # the name of every third key changed meanwhile
                key_name=chance.choice(("before", "after")) if number % 3 == 0 else "name",
                cost=chance.randrange(10**12),
            )
            for number in range(600)
        ],
    )
    for start in (START, START + 17 * DAY_US):
        asked = UsageQuery(("key",), "month", start, END)
        every = read_totals(connection, asked, wanted=("cost", "requests"))
        costs = [(group.values, group.sums[_COST]) for group in every]
        assert len(costs) == 60
        assert len(set(costs)) == 60
        for top in (1, 7, 40, 100):
            found = read_totals(connection, asked, top, wanted=("cost", "requests"))
            assert [(group.values, group.sums[_COST]) for group in found] == costs[:top]


def check_that_an_error_is_looked_up(connection: Connection) -> None:
    """Failures with another error are not read."""
    keep(
        connection,
        [
            *(usage_row(number, time=START + number, outcome="upstream_error", status=500) for number in range(900)),
            *(usage_row(1000 + number, time=START, outcome="refused", status=429, error="busy") for number in range(5)),
        ],
    )
    for error, count in (("429", 5), ("busy", 5), ("500", 900), ("418", 0), ("draining", 0)):
        asked = RowFilter(error=error)
        values = [each.values for each in look_ups(connection.dialect.name, asked) or ()]
        pairs = select(func.count()).select_from(usage_lookups).where(usage_lookups.c.value.in_(values))
        there = rows_in(connection, all_partitions(connection)[0])
        # those with one time are looked up once
        assert there.execute(pairs).scalar() == (1 if count == 5 else count)
        assert count_rows(connection, asked) == count
        assert len(page_of_rows(connection, asked, 0, 1000)) == count


def check_that_rows_come_in_pages(connection: Connection) -> None:
    """Pages of rows make up what a filter leaves, the newest first."""
    rows = some_rows()
    keep(connection, rows)
    for equals, matches in (
        ({}, lambda _: True),
        ({"key": "k1"}, lambda row: payer_of(row.payer).key_id == "k1"),
        ({"key": ""}, lambda row: payer_of(row.payer).key_id == ""),
        (
            {"user": "É", "model": "qwen"},
            lambda row: (payer_of(row.payer).user_id, target_of(row.target).model) == ("É", "qwen"),
        ),
        (
            {"tag": "b", "team": "red"},
            lambda row: "b" in payer_of(row.payer).tags and payer_of(row.payer).team_id == "red",
        ),
        ({"tag": "a"}, lambda row: "a" in (*payer_of(row.payer).tags, *row.request_tags)),
        ({"end_user": "tom%"}, lambda row: row.end_user == "tom%"),
    ):
        start, end = START + 10**12, END - 10**12
        asked = RowFilter(start, end, equals, successful=True)
        inside = [row for row in rows if start <= row.time < end and has_succeeded(row)]
        wanted = sorted((row for row in inside if matches(row)), key=lambda row: (-row.time, row.id))
        got: list[Any] = []
        while page := page_of_rows(connection, asked, len(got), 20):
            got += page
        assert [row.id for row in got] == [row.id for row in wanted]
        assert count_rows(connection, asked) == len(wanted)


def check_that_a_request_is_found_by_its_id(connection: Connection) -> None:
    """A request is known by the id that was made for it, or by its client's, which another may have had as well."""
    rows = [usage_row(number, request_id="") for number in range(4)]
    rows.append(usage_row(4, request_id=rows[1].id))
    # an id that says another second, as those of former versions
    rows.append(usage_row(5, id=f"{1:08x}{5:024x}", request_id=f"{1:08x}{5:024x}"))
    rows += [usage_row(number, request_id="mine") for number in range(6, 10)]
    keep(connection, rows)
    for request_id, wanted in (
        (rows[0].id, [0]),
        (rows[1].id, [4, 1]),
        (rows[5].id, [5]),
        ("mine", [9, 8, 7, 6]),
        ("f" * 32, []),
        ("another", []),
    ):
        asked = RowFilter(request_id=request_id)
        found = [page_of_rows(connection, asked, skip, 2) for skip in (0, 2)]
        assert [row.id for page in found for row in page] == [rows[number].id for number in wanted]
        assert {row.request_id for page in found for row in page} <= {request_id}
        assert count_rows(connection, asked) == len(wanted)
    assert page_of_rows(connection, RowFilter(equals={"key": "k2"}, request_id="mine"), 0, 9) == []
    assert [row.id for row in rows_of(connection, [(1, rows[0].id), (rows[0].time, rows[0].id)])] == [rows[0].id]


def check_that_days_come_in_pages(connection: Connection) -> None:
    """Pages of days make up all of them, the last first."""
    rows = some_rows()
    keep(connection, rows)
    got: list[Any] = []
    while True:
        page, total = page_of_days(connection, Entities("user", ("Ada",)), {}, START, END, len(got), 10)
        if not page:
            break
        got += page
    assert total == len(got)
    assert sum(row[4 + _COST] for row in got) == sum(row.cost for row in rows if payer_of(row.payer).user_id == "Ada")
    assert [row[0] for row in got] == sorted((row[0] for row in got), reverse=True)
    assert keys_by_spend(connection, 0, 10) == []
    assert users_by_spend(connection, 0, 10) == []


def check_that_filters_leave_the_same_rows(connection: Connection) -> None:
    """Whatever is asked, and whichever look-ups answer it, come the rows that a look at each would leave."""
    rows = some_rows(300)
    # a user with more payers than are looked up one by one, and two rows of one payer in the same microsecond
    rows += [
        usage_row(1000 + number, time=START + number, key_id=f"many-{number % 12}", user_id="many")
        for number in range(40)
    ]
    rows += [usage_row(number, time=rows[-1].time, key_id="many-3", user_id="many") for number in (2000, 2001)]
    new = [row for row in rows if row.time >= (START + END) // 2][::2]
    keep(connection, [row for row in rows if row not in new])
    # Their look-ups are not written yet.
    keep(connection, new, summed=False)
    unsettle(connection)
    chance = random.Random(5)
    choices: dict[str, tuple[str, ...]] = {
        "key": ("k1", "", "many-3", "none"),
        "user": ("many", "Ada", "É"),
        "team": ("red",),
        "end_user": ("eve", "tom%"),
        "tag": ("a", "b", "c"),
        "model": ("qwen",),
        "server": ("gpu-2",),
    }
    for _ in range(150):
        equals = {name: chance.choice(choices[name]) for name in chance.sample(sorted(choices), chance.randrange(3))}
        start, end = sorted(chance.randrange(START, END) for _ in range(2))
        asked = RowFilter(
            chance.choice((None, start)),
            chance.choice((None, end)),
            equals,
            successful=chance.choice((None, None, True, False)),
            error=chance.choice(("", "", "429", "200", "busy")),
            costs=chance.choice((None, None, (10**12, 10**13))),
        )
        wanted = sorted(((row.time, row.id) for row in rows if matches(row, asked)), reverse=True)
        skip, limit = chance.choice((0, 3, 40)), chance.choice((1, 7, 100))
        found = page_of_rows(connection, asked, skip, limit)
        assert [(row.time, row.id) for row in found] == wanted[skip : skip + limit], asked
        assert count_rows(connection, asked) == len(wanted), asked


def unsettle(connection: Connection) -> None:
    """Have rows from the middle of the time on be too new to be looked up."""
    connection.execute(update(usage_marks).values(moved_at=(START + END) // 2))


def matches(row: UsageRow, asked: RowFilter) -> bool:
    """Return whether a filter leaves a row."""
    payer, target = payer_of(row.payer), target_of(row.target)
    values = {
        "key": (payer.key_id,),
        "user": (payer.user_id or "",),
        "team": (payer.team_id or "",),
        "end_user": (row.end_user or "",),
        "tag": (*payer.tags, *row.request_tags),
        "model": (target.model,),
        "server": (target.server,),
    }
    return (
        all(value in values[name] for name, value in asked.equals.items())
        and (asked.start or 0) <= row.time < (asked.end or END)
        and asked.successful in (None, has_succeeded(row))
        and asked.error in ("", str(row.status), row.error)
        and (asked.costs is None or asked.costs[0] <= row.cost <= asked.costs[1])
    )


def check_that_many_partitions_are_one(connection: Connection) -> None:
    """A report reads more partitions than are attached at once, and adds up to the rows."""
    rows = [
        usage_row(number, time=START + number * DAY_US // 4 + number, server=f"gpu-{number % 3}", cost=number)
        for number in range(100)
    ]
    keep(connection, rows, by_day=True)
    for interval in ("hour", "day"):
        planned = plan(UsageQuery(("server",), interval, START - DAY_US, END))
        found = list(groups_of(connection, planned, 7))
        assert sum(group.sums[_COST] for group in found) == sum(row.cost for row in rows)
        assert len({(group.start, group.values) for group in found}) == len(found)
    found_rows = page_of_rows(connection, RowFilter(equals={"server": "gpu-1"}), 3, 1000)
    assert [row.id for row in found_rows] == [row.id for row in rows[::-1] if row.cost % 3 == 1][3:]
    assert count_rows(connection, RowFilter(equals={"key": "k1"})) == len(rows)
    assert first_row(connection) == START


def check_that_sums_tell_of_rows(connection: Connection) -> None:
    """What is added up from rows, with a filter or without, is what the sums have."""
    rows = some_rows()
    keep(connection, rows)
    for name, value in (
        ("user", "Ada"),
        ("team", "red"),
        ("key", "k2"),
        ("end_user", "eve"),
        ("tag", "a"),
        ("model", "qwen"),
    ):
        for group_by in ((), (name,), ("model",)):
            span = START + 3 * DAY_US, END - 2 * DAY_US
            summed = {
                group.values: group.sums
                for group in read_totals(connection, UsageQuery(group_by, "month", *span, {name: value}))
            }
            by_rows: dict[tuple[str, ...], list[int]] = {}
            for group in groups_of(connection, plan(UsageQuery(group_by, "hour", *span, {name: value})), 50):
                sums = by_rows.setdefault(group.values, [0] * len(SUMS))
                by_rows[group.values] = [a + b for a, b in zip(sums, group.sums, strict=True)]
            assert {values: tuple(sums) for values, sums in by_rows.items()} == summed, (name, group_by)


def check_that_the_rest_has_a_name(connection: Connection) -> None:
    """Only some end users have sums of their own; all sums together are those of all rows."""
    rows = [usage_row(number, end_user=f"e{number % 10}", cost=number % 10) for number in range(100)]
    keep(connection, rows, top=4)
    span = rows[0].time // DAY_US * DAY_US, rows[0].time // DAY_US * DAY_US + DAY_US
    found = read_totals(connection, UsageQuery(("end_user",), "month", *span))
    assert len(found) == 5
    assert OTHER in {group.values[0] for group in found}
    assert sum(group.sums[_COST] for group in found) == sum(row.cost for row in rows)
    assert OTHER not in names_used(connection, "end_user", 100)
    assert names_used(connection, "end_user", 100, ["e0", "e1", "none", OTHER]) == names_used(connection, "end_user", 2)
    page, total = page_of_days(connection, Entities("end_user"), {}, *span, 0, 100)
    assert {tuple(row)[1] for row in page} == {group.values[0] for group in found}
    assert total == 5


def check_that_counts_of_days_stay_true(connection: Connection) -> None:
    """Counts that are kept are not used for days that have more requests meanwhile."""
    rows = some_rows()
    for some in (rows[:50], rows[50:51], rows[51:]):
        keep(connection, some)
        for entities in (
            Entities("user"),
            Entities("team", ("red",)),
            Entities("user", None, ("Ada",)),
            Entities("tag"),
        ):
            page, total = page_of_days(connection, entities, {}, START, END, 0, 10_000)
            assert total == len(page)
            again, counted = page_of_days(connection, entities, {}, START, END, 2, 3)
            assert ([tuple(row) for row in again], counted) == ([tuple(row) for row in page[2:5]], total)


def plans_of(connection: Connection, work: Any) -> list[str]:
    """Return how the database would run each statement of some work."""
    statements: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    try:
        work()
    finally:
        event.remove(connection, "before_cursor_execute", note)
    explain = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    plans = []
    for statement, parameters in statements:
        lines = [str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {statement}", parameters)]
        plans.append("\n".join(["limited" if " LIMIT " in statement.replace("\n", " ") else "all", *lines]))
    return plans


def check_that_indexes_are_used(connection: Connection) -> None:
    """No query that is asked often reads a whole table."""
    keep(connection, some_rows())
    if connection.dialect.name == "postgresql":
        # so few rows are read faster without
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    plans = []
    for group_by in ((), ("key",), ("user", "model"), ("tag",), ("end_user",), ("model",), ("key", "user", "team")):
        for interval in ("day", "month"):
            planned = plan(UsageQuery(group_by, interval, START, END))
            plans += plans_of(connection, lambda planned=planned: list(groups_of(connection, planned, 10)))
    for equals in ({"key": "k1"}, {"user": "Ada"}, {"team": "red"}, {"end_user": "eve"}, {"tag": "a"}):
        planned = plan(UsageQuery(("model",), "hour", START, END, equals))
        plans += plans_of(connection, lambda planned=planned: read_page(connection, planned, Cursor()))
        asked = RowFilter(equals=equals)
        plans += plans_of(connection, lambda asked=asked: page_of_rows(connection, asked, 0, 10))
        plans += plans_of(connection, lambda asked=asked: count_rows(connection, asked))
    for asked in (RowFilter(), RowFilter(request_id="f" * 32), RowFilter(equals={"model": "qwen"})):
        plans += plans_of(connection, lambda asked=asked: page_of_rows(connection, asked, 0, 10))
    plans += plans_of(connection, lambda: page_of_days(connection, Entities("user", ("Ada",)), {}, START, END, 0, 10))
    assert len(plans) > 40
    for found in plans:
        check_plan(found)


#: tables that grow with requests or with names
_LARGE = ("usage", "usage_lookups", "usage_sums", "usage_payers", "usage_payer_tags", "usage_names")
_TABLE = re.compile(r"\bvllm_passthrough_(\w+?)(?:_[0-9]{4}_[0-9]{2})?(?:_pkey)?\b")


def in_order_of(lines: list[str]) -> bool:
    """Return whether rows are read in the order that is asked for, and only as many as are."""
    return lines[0] == "limited" and not any("TEMP B-TREE" in line or "Sort" in line for line in lines)


def check_plan(found: str) -> None:
    """Check that a statement reads no large table as a whole."""
    lines = found.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        table = _TABLE.search(line)
        if table is None or table[1] not in _LARGE:
            continue
        # the rows themselves are read in the order of time where that order is asked for
        in_order = table[1] == "usage" and in_order_of(lines)
        assert "Seq Scan" not in line, found
        assert not line.startswith("SCAN") or in_order, found
        if table[1] in ("usage_sums", "usage_lookups") and "Scan" in line:
            assert following.strip().startswith("Index Cond") or "Bitmap Heap Scan" in line, found
        if line.startswith("SEARCH") and table[1] == "usage_sums":
            assert "(kind=? AND start" in line or in_order_of(lines), found
        if line.startswith("SEARCH") and table[1] == "usage_lookups":
            assert "(value=?" in line, found


#: what the queries promise on every database
CHECKS = (
    check_that_keys_of_most_cost_come_first,
    check_that_an_error_is_looked_up,
    check_that_pages_make_up_the_whole,
    check_that_totals_add_up,
    check_that_rows_come_in_pages,
    check_that_a_request_is_found_by_its_id,
    check_that_days_come_in_pages,
    check_that_filters_leave_the_same_rows,
    check_that_many_partitions_are_one,
    check_that_sums_tell_of_rows,
    check_that_the_rest_has_a_name,
    check_that_counts_of_days_stay_true,
    check_that_indexes_are_used,
)


@contextmanager
def empty_database(url: str) -> Iterator[Connection]:
    """Yield a transaction on an empty database that was migrated."""
    engine = make_engine(parse_url(Secret(url)))
    migrate(engine)
    with engine.begin() as connection:
        yield connection
    engine.dispose()
