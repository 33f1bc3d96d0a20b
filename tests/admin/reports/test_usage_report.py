"""``/usage/report`` adds up what was used by any dimensions, to the picodollar."""

from __future__ import annotations

import csv
import io
import json
import random
from collections import Counter
from decimal import Decimal
from itertools import combinations
from typing import Any

import pytest

from tests.admin.admin_harness import Gateway
from tests.admin.reports.usage_rows import id_of, keep, row_at
from twisted_vllm.storage.usage.queries.plan import moment_of
from twisted_vllm.usage.records import UsageRow, payer_of, target_of

DIMENSIONS = ("key", "user", "team", "end_user", "tag", "model", "route", "server")
KEYS = ("0" * 31 + "1", "0" * 31 + "2", "")
WIDTHS = {"hour": 13, "day": 10, "month": 7}


def some_rows(count: int = 120) -> list[UsageRow]:
    """Return rows of every kind, over three months."""
    chance = random.Random(7)
    rows = []
    for number in range(count):
        key = chance.choice(KEYS)
        day = f"2026-{chance.choice(('01', '02', '03'))}-{chance.randint(1, 28):02d}"
        rows.append(
            row_at(
                number,
                f"{day}T{chance.randint(0, 23):02d}:30:00",
                key_id=key,
                user_id=chance.choice(("ada", "bob")) if key else None,
                team_id=chance.choice(("red", None)),
                end_user=chance.choice(("eve", "tom", None)),
                tags=chance.choice(((), ("a",), ("a", "b"))),
                model=chance.choice(("qwen", "llama")),
                route=chance.choice(("/v1/chat/completions", "/v1/embeddings")),
                server=chance.choice(("gpu-1", "gpu-2")),
                cost=chance.randint(0, 10**13),
                status=chance.choice((200, 200, 500)),
            )
        )
    return rows


def values_of(row: UsageRow, name: str) -> tuple[str | None, ...]:
    """Return what stands for a row in a dimension: of tags it may be several, or none."""
    if name == "tag":
        return payer_of(row.payer).tags
    field = {"key": "key_id", "user": "user_id", "team": "team_id"}.get(name, name)
    [holder] = [each for each in (row, payer_of(row.payer), target_of(row.target)) if hasattr(each, field)]
    return (getattr(holder, field) or None,)


def expected(rows: list[UsageRow], group_by: tuple[str, ...], interval: str) -> dict[Any, tuple[int, int]]:
    """Return requests and picodollars of each group, added up one by one."""
    requests: Counter[Any] = Counter()
    cost: Counter[Any] = Counter()
    for row in rows:
        start = moment_of(row.time).isoformat()[: WIDTHS[interval]]
        groups: list[tuple[str | None, ...]] = [(start,)]
        for name in group_by:
            groups = [(*group, value) for group in groups for value in values_of(row, name)]
        for group in groups:
            requests[group] += 1
            cost[group] += row.cost
    return {group: (count, cost[group]) for group, count in requests.items()}


def found(answer: Any, group_by: tuple[str, ...], interval: str) -> dict[Any, tuple[int, int]]:
    """Return the same of an answer."""
    assert answer.status == 200, answer.body
    columns = ["key_id" if name == "key" else name for name in group_by]
    return {
        (group["start"][: WIDTHS[interval]], *(group[column] for column in columns)): (
            group["requests"],
            int(group["spend"].scaleb(12)),
        )
        for group in json.loads(answer.body, parse_float=Decimal)["results"]
    }


ONE_AND_TWO = [group for size in (0, 1, 2) for group in combinations(DIMENSIONS, size)]


@pytest.mark.parametrize("interval", WIDTHS)
@pytest.mark.parametrize("group_by", [*ONE_AND_TWO, ("key", "user", "team", "model"), DIMENSIONS], ids=",".join)
def test_every_report_equals_the_sums_of_the_rows(interval: str, group_by: tuple[str, ...]) -> None:
    gateway, rows = Gateway(), some_rows()
    keep(gateway, rows)
    answer = gateway.get(
        f"/usage/report?group_by={','.join(group_by)}&interval={interval}&start=2026-01-01&end=2026-03-31"
    )
    if answer.status == 400:
        assert interval == "month"
        assert "interval=day" in answer.error["message"]
        assert len(set(group_by) - {"model"}) > 1 or {"route", "server"} & set(group_by)
        return
    assert found(answer, group_by, interval) == expected(rows, group_by, interval)
    if "tag" not in group_by:
        totals = json.loads(answer.body, parse_float=Decimal)["totals"]
        assert (totals["requests"], totals["spend"]) == (
            len(rows),
            Decimal(sum(row.cost for row in rows)).scaleb(-12),
        )


@pytest.mark.parametrize("interval", ["hour", "day"])
@pytest.mark.parametrize(
    ("query", "matches"),
    [
        ("user_id=ada", lambda row: payer_of(row.payer).user_id == "ada"),
        (
            "user_id=ada&model=qwen",
            lambda row: (payer_of(row.payer).user_id, target_of(row.target).model) == ("ada", "qwen"),
        ),
        ("tag=b", lambda row: "b" in payer_of(row.payer).tags),
        ("tag=b&team_id=red", lambda row: "b" in payer_of(row.payer).tags and payer_of(row.payer).team_id == "red"),
        (
            "end_user=eve&route=/v1/embeddings",
            lambda row: (row.end_user, target_of(row.target).route) == ("eve", "/v1/embeddings"),
        ),
        ("server=gpu-2", lambda row: target_of(row.target).server == "gpu-2"),
        (
            f"api_key={KEYS[0]}&team_id=red",
            lambda row: (payer_of(row.payer).key_id, payer_of(row.payer).team_id) == (KEYS[0], "red"),
        ),
    ],
)
def test_filters_hold_together(interval: str, query: str, matches: Any) -> None:
    gateway, rows = Gateway(), some_rows()
    keep(gateway, rows)
    answer = gateway.get(f"/usage/report?group_by=model&interval={interval}&start=2026-01-01&end=2026-03-31&{query}")
    assert found(answer, ("model",), interval) == expected([row for row in rows if matches(row)], ("model",), interval)


@pytest.mark.parametrize(
    ("start", "end"), [("2026-01-05", "2026-03-20"), ("2026-02-01", "2026-03-31"), ("2026-02-10", "2026-02-12")]
)
@pytest.mark.parametrize("group_by", [("key",), ("key", "user"), ()], ids=",".join)
def test_months_that_are_cut_off_count_only_their_days(start: str, end: str, group_by: tuple[str, ...]) -> None:
    gateway, rows = Gateway(), some_rows()
    keep(gateway, rows)
    answer = gateway.get(f"/usage/report?interval=month&group_by={','.join(group_by)}&start={start}&end={end}")
    inside = [row for row in rows if start <= moment_of(row.time).date().isoformat() <= end]
    assert found(answer, group_by, "month") == expected(inside, group_by, "month")


def test_moments_within_a_day_are_answered_from_the_rows(gateway: Gateway) -> None:
    keep(gateway, [row_at(number, f"2026-02-01T{number:02d}:30:00") for number in range(24)])
    answer = gateway.get("/usage/report?start=2026-02-01T06:00:00Z&end=2026-02-01T07:30:00Z").json
    assert (answer["source"], answer["totals"]["requests"]) == ("rows", 2)
    assert answer["rows_since"] == "2026-02-01T00:30:00Z"
    assert gateway.get("/usage/report?start=2026-02-01&end=2026-02-01").json["source"] == "totals"


def test_without_dates_a_report_tells_of_the_last_days(gateway: Gateway) -> None:
    keep(gateway, [row_at(1, "2026-03-01T11:00:00"), row_at(2, "2025-03-02T00:00:00")])
    assert [each["start"] for each in gateway.get("/usage/report").json["results"]] == ["2026-03-01"]
    assert [each["start"] for each in gateway.get("/usage/report?interval=hour").json["results"]] == [
        "2026-03-01T11:00:00Z"
    ]
    months = gateway.get("/usage/report?interval=month").json["results"]
    assert [each["start"] for each in months] == ["2025-03-01", "2026-03-01"]


def test_an_empty_report_is_a_whole_one(gateway: Gateway) -> None:
    answer = gateway.get("/usage/report?group_by=key,model").json
    assert (answer["results"], answer["totals"]["spend"], answer["totals"]["requests"]) == ([], 0.0, 0)
    assert gateway.get("/usage/report?api_key=sk-nobody-0123456789").json["results"] == []


def test_a_table_has_a_line_for_each_group_and_no_formula(gateway: Gateway) -> None:
    made = gateway.make_key(key_alias="+ada")
    keep(
        gateway,
        [
            row_at(1, "2026-02-01T00:00:00", key_id=id_of(gateway, made), end_user='=HYPERLINK("x")', cost=10**12),
            row_at(2, "2026-02-01T00:00:00", key_id=id_of(gateway, made), end_user='@sum, "1"\n', cost=5),
        ],
    )
    answer = gateway.get("/usage/report?group_by=key&format=csv&start=2026-02-01")
    assert answer.headers["content-type"].startswith("text/csv")
    lines = list(csv.DictReader(io.StringIO(answer.body.decode(), newline="")))
    assert [(line["api_key"], line["key_alias"], line["spend"], line["requests"]) for line in lines] == [
        (made["token"], "'+ada", "1.000000000005", "2")
    ]
    answer = gateway.get("/usage/report?group_by=end_user&format=csv&start=2026-02-01")
    lines = list(csv.DictReader(io.StringIO(answer.body.decode(), newline="")))
    assert [line["end_user"] for line in lines] == ['\'=HYPERLINK("x")', '\'@sum, "1"\n']


def test_a_deleted_key_keeps_its_id_in_reports(gateway: Gateway) -> None:
    made = gateway.make_key(key_alias="ada")
    key_id = id_of(gateway, made)
    keep(gateway, [row_at(1, "2026-02-01T00:00:00", key_id=key_id)])
    gateway.post("/key/delete", {"keys": [made["key"]]})
    [group] = gateway.get("/usage/report?group_by=key&start=2026-02-01").json["results"]
    assert (group["key_id"], group["api_key"], group["key_alias"]) == (key_id, None, None)
    assert gateway.get(f"/usage/report?start=2026-02-01&api_key={key_id}").json["totals"]["requests"] == 1


def test_a_key_reports_on_itself_and_names_no_server(gateway: Gateway) -> None:
    made = gateway.make_key(user_id="ada")
    keep(
        gateway,
        [
            row_at(1, "2026-02-01T00:00:00", key_id=id_of(gateway, made), user_id="ada"),
            row_at(2, "2026-02-01T00:00:00", key_id="0" * 32, user_id="ada"),
        ],
    )
    answer = gateway.get("/usage/report?group_by=user&start=2026-02-01", made["key"]).json
    assert answer["totals"]["requests"] == 1
    assert gateway.get("/usage/report?group_by=server", made["key"]).status == 403
    assert gateway.get("/usage/report?server=gpu-1", made["key"]).status == 403


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("group_by=key,colour", "group_by[1]"),
        ("interval=week", "interval"),
        ("format=xml", "format"),
        ("start=tomorrow", "start"),
        ("interval=month&group_by=tag,route", "group_by"),
        ("interval=month&start=2026-02-01T01:00:00Z", "group_by"),
    ],
)
def test_a_fault_in_the_query_is_named(gateway: Gateway, query: str, param: str) -> None:
    answer = gateway.get(f"/usage/report?{query}")
    assert (answer.status, answer.error["param"]) == (400, param)


def test_nobody_without_a_key_gets_a_report(gateway: Gateway) -> None:
    assert gateway.get("/usage/report", None).status == 401
