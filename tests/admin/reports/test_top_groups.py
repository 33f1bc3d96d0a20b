"""``/usage/top``: the groups with the most usage by interval, and all others together."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import Gateway
from tests.admin.reports.usage_rows import id_of, keep, row_at
from twisted_vllm.admin.reports import top_groups

DOLLAR = 10**12


@pytest.fixture
def used(gateway: Gateway) -> Gateway:
    """Five models: the n-th has n requests of n dollars on the first day, and all but the first one on the third."""
    rows = []
    for number in range(1, 6):
        rows += [
            row_at(10 * number + each, "2026-02-01T10:30:00", model=f"m{number}", cost=number * DOLLAR)
            for each in range(number)
        ]
        if number > 1:
            rows.append(row_at(100 + number, "2026-02-03T11:00:00", model=f"m{number}", cost=DOLLAR, total_tokens=0))
    keep(gateway, rows)
    return gateway


def ask(gateway: Gateway, query: str) -> Any:
    answer = gateway.get(f"/usage/top?start=2026-02-01&end=2026-02-03&{query}")
    assert answer.status == 200, answer.body
    return answer.json


@pytest.mark.parametrize("compared", [top_groups.MAX_COMPARED, 1])
def test_the_groups_with_most_stand_alone_and_the_rest_together(
    used: Gateway, monkeypatch: pytest.MonkeyPatch, compared: int
) -> None:
    # of too many the database finds those with the highest cost
    monkeypatch.setattr(top_groups, "MAX_COMPARED", compared)
    found = ask(used, "group_by=model&top=2")
    assert found["starts"] == ["2026-02-01", "2026-02-02", "2026-02-03"]
    assert [(each["model"], each["series"]) for each in found["groups"]] == [
        ("m5", [25.0, 0.0, 1.0]),
        ("m4", [16.0, 0.0, 1.0]),
    ]
    assert found["others"]["series"] == [14.0, 0.0, 2.0]
    assert found["others"]["requests"] == 8
    assert found["totals"]["spend"] == 59.0
    report = used.get("/usage/report?start=2026-02-01&end=2026-02-03&group_by=model").json
    assert found["totals"] == report["totals"]


def test_another_measure_has_another_order_and_hours_are_added_up_from_rows(used: Gateway) -> None:
    found = ask(used, "group_by=model&interval=hour&measure=requests&top=1")
    assert found["source"] == "rows"
    assert len(found["starts"]) == 72
    (first,) = found["groups"]
    filled = {start: count for start, count in zip(found["starts"], first["series"], strict=True) if count}
    assert (first["model"], filled) == ("m5", {"2026-02-01T10:00:00Z": 5, "2026-02-03T11:00:00Z": 1})
    assert sum(found["others"]["series"]) == 13
    assert found["rows_since"] is not None


def test_without_groups_there_is_one_and_no_others(used: Gateway) -> None:
    found = ask(used, "")
    assert [each["series"] for each in found["groups"]] == [[55.0, 0.0, 4.0]]
    assert found["others"] is None
    assert [each["spend"] for each in found["intervals"]] == [55.0, 0.0, 4.0]
    assert [each["requests"] for each in found["intervals"]] == [15, 0, 4]
    assert ask(used, "group_by=model")["intervals"] is None


@pytest.mark.parametrize("compared", [top_groups.MAX_COMPARED, 1])
def test_a_request_with_several_tags_counts_once_in_the_totals(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, compared: int
) -> None:
    monkeypatch.setattr(top_groups, "MAX_COMPARED", compared)
    keep(gateway, [row_at(1, "2026-02-01T10:00:00", tags=("a", "b"), cost=DOLLAR)])
    found = ask(gateway, "group_by=tag&top=1")
    assert [each["spend"] for each in found["groups"]] == [1.0]
    assert found["totals"]["spend"] == 1.0


def test_keys_have_their_names_and_see_themselves(gateway: Gateway) -> None:
    made = gateway.make_key(key_alias="ada", user_id="ada")
    mine = id_of(gateway, made)
    keep(gateway, [row_at(1, "2026-02-01T10:00:00", key_id=mine), row_at(2, "2026-02-01T10:00:00", key_id="0" * 32)])
    assert len(ask(gateway, "group_by=key")["groups"]) == 2
    found = gateway.get("/usage/top?start=2026-02-01&end=2026-02-03&group_by=key", made["key"]).json
    (group,) = found["groups"]
    assert (group["key_id"], group["key_alias"], group["api_key"]) == (mine, "ada", made["token"])
    assert found["totals"]["requests"] == 1
    assert gateway.get("/usage/top?group_by=server", made["key"]).status == 403


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("interval=hour&start=2025-01-01&end=2026-01-01", "interval"),
        ("interval=month&group_by=server", "group_by"),
        ("group_by=colour", "group_by[0]"),
        ("measure=beauty", "measure"),
        ("top=51", "top"),
    ],
)
def test_what_cannot_be_shown_is_refused(gateway: Gateway, query: str, param: str) -> None:
    answer = gateway.get(f"/usage/top?{query}")
    assert (answer.status, answer.error["param"]) == (400, param)
