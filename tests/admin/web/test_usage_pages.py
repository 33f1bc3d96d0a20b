"""The pages of usage and requests, over an app in memory."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from html import unescape
from typing import Any

import msgspec
import pytest

from tests.admin.admin_harness import MASTER_KEY, value_of
from tests.admin.reports.test_requests import row_id
from tests.admin.reports.usage_rows import at, id_of, keep, row_at
from tests.admin.web.web_harness import ConsoleGateway, words
from twisted_vllm.admin.web.pages.requests import MOST_MESSAGES, MOST_TEXT, parts_of, shown_contents
from twisted_vllm.admin.web.pages.usage_filters import Period, address, period_of, span_of_interval
from twisted_vllm.storage.request_contents import KeptContents, write_contents

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
DOLLAR = 10**12
MARKUP = "<script>alert(1)</script>"
ROW = row_id(1, "2026-02-28T10:00:00")


@pytest.fixture
def gateway() -> ConsoleGateway:
    gateway = ConsoleGateway()
    rows = [
        row_at(10 + number, "2026-02-28T09:00:00", model=f"model-{number}", cost=(number + 1) * DOLLAR, key_id="0" * 32)
        for number in range(8)
    ]
    keep(gateway, rows)
    return gateway


def chart_of(body: bytes) -> Any:
    found = re.search(r'data-chart="([^"]*)"', body.decode())
    assert found is not None
    return json.loads(unescape(found[1]))


def test_the_chart_has_the_first_groups_and_the_table_all_of_them(gateway: ConsoleGateway) -> None:
    answer = gateway.browser(MASTER_KEY).get("/ui/usage?start_date=2026-02-27&end_date=2026-03-01")
    chart = chart_of(answer.body)
    assert [each["name"] for each in chart["series"]] == [*(f"model-{n}" for n in (7, 6, 5, 4, 3)), "All others"]
    assert chart["series"][0]["values"] == [0, 8, 0]
    assert chart["series"][-1]["values"] == [0, 6, 0]
    assert chart["times"][0] == at("2026-02-27") // 10**6
    shown = words(answer)
    assert all(f"model-{number}" in shown for number in range(8))
    assert "$36.00" in shown
    # a row leads to its requests, of the same time
    assert b"/ui/requests?start_date=2026-02-27&amp;end_date=2026-03-01&amp;model=model-7" in answer.body


def test_without_prices_tokens_are_shown(gateway: ConsoleGateway) -> None:
    bare = ConsoleGateway()
    keep(bare, [row_at(1, "2026-03-01T10:00:00", cost=0)])
    answer = bare.browser(MASTER_KEY).get("/ui/usage")
    assert b'<option value="total_tokens" selected>' in answer.body
    assert chart_of(answer.body)["series"][0]["values"][-1] == 15


def test_time_alone_shows_each_interval(gateway: ConsoleGateway) -> None:
    browser = gateway.browser(MASTER_KEY)
    answer = browser.get("/ui/usage?group_by=time&interval=hour&start_date=2026-02-28&end_date=2026-02-28")
    assert "2026-02-28 09:00" in words(answer)
    assert b"start_date=2026-02-28T09%3A00%3A00Z&amp;end_date=2026-02-28T09%3A59%3A59.999999Z" in answer.body


def test_a_file_has_all_groups_of_the_same_report(gateway: ConsoleGateway) -> None:
    browser = gateway.browser(MASTER_KEY)
    answer = browser.get("/ui/usage/csv?start_date=2026-02-27&end_date=2026-03-01&group_by=model&model=model-7")
    assert answer.headers["content-type"].startswith("text/csv")
    lines = answer.body.decode().splitlines()
    assert lines[0].startswith("start,model,requests")
    assert [line.split(",")[:2] for line in lines[1:]] == [["2026-02-28", "model-7"]]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/ui/usage?start_date=yesterday&end_date=2026-03-01", "must be a date"),
        ("/ui/usage?group_by=server&interval=month", "Months are kept"),
        ("/ui/usage?interval=hour&start_date=2024-01-01&end_date=2026-01-01", "intervals"),
        ("/ui/requests?start_date=yesterday", "must be a date"),
        ("/ui/requests?page=0", "page"),
        ("/ui/audit?start_date=yesterday", "must be a date"),
    ],
)
def test_what_cannot_be_shown_is_told_above_the_form(gateway: ConsoleGateway, path: str, says: str) -> None:
    answer = gateway.browser(MASTER_KEY).get(path)
    assert answer.status == 400
    assert says in words(answer)
    assert b'<button class="main">Show</button>' in answer.body


def test_requests_come_in_pages_that_keep_the_filters(gateway: ConsoleGateway) -> None:
    keep(gateway, [row_at(100 + n, "2026-02-28T11:00:00", model="many", status=500, error="x") for n in range(60)])
    browser = gateway.browser(MASTER_KEY)
    path = "/ui/requests?model=many&status_filter=failure&period=30d"
    first = browser.get(path)
    assert "60 requests , page 1 of 2" in words(first) or "60 requests, page 1 of 2" in words(first)
    following = re.search(rb'<a href="([^"]*)" rel="next">', first.body)
    assert following is not None
    second = browser.get(unescape(following[1].decode()))
    assert second.body.count(b'<th scope="row"') == 10
    assert b'value="many"' in second.body


def test_one_request_shows_its_contents_as_text(gateway: ConsoleGateway) -> None:
    made = gateway.make_key(key_alias="ada")
    keep(
        gateway,
        [
            row_at(
                1,
                "2026-02-28T10:00:00",
                id=ROW,
                key_id=id_of(gateway, made),
                end_user=MARKUP,
                details='{"queued_us":5000}',
                attempts="gpu-9 status_503",
            )
        ],
    )
    contents = {
        "mode": "full",
        "input": [{"role": MARKUP, "content": MARKUP}],
        "output": {"text": "y" * (MOST_TEXT + 7), "tool_calls": [{"name": MARKUP}], "finish_reasons": ["stop"]},
        "truncated": True,
    }

    def write(transaction: Any) -> None:
        write_contents(transaction.connection, [KeptContents(ROW, 0, msgspec.json.encode(contents))])

    value_of(gateway.store.change(write))
    browser = gateway.browser(made["key"])
    answer = browser.get(f"/ui/requests/{ROW}")
    assert answer.status == 200
    assert b"<script>alert" not in answer.body
    shown = words(answer)
    for text in ("Waited for a busy server", "5 ms", "15 ms", "status_503", "7 more characters", "shortened", "stop"):
        assert text in shown, text
    # whose key it is no administrator sees no server
    assert "gpu-9" not in shown
    whole = browser.get(f"/ui/requests/{ROW}/contents")
    assert whole.json == contents
    assert whole.headers["content-disposition"] == f'attachment; filename="{ROW}.json"'


def test_of_what_was_not_kept_there_is_no_file(gateway: ConsoleGateway) -> None:
    keep(gateway, [row_at(1, "2026-02-28T10:00:00", id=ROW)])
    browser = gateway.browser(MASTER_KEY)
    assert "No prompt and no answer are kept" in words(browser.get(f"/ui/requests/{ROW}"))
    assert browser.get(f"/ui/requests/{ROW}/contents").status == 404


@pytest.mark.parametrize(
    ("timings", "parts"),
    [
        ((None, 20, 100), [("first", 0, 200), ("answer", 200, 800)]),
        ((10, 20, 100), [("queue", 0, 100), ("first", 100, 100), ("answer", 200, 800)]),
        ((10, None, 40), [("queue", 0, 250), ("first", 250, 750)]),
        # clocks are no proof
        ((200, 20, 100), [("queue", 0, 1000)]),
        ((None, None, 0), [("first", 0, 0)]),
    ],
)
def test_the_bar_has_the_parts_of_the_time(
    timings: tuple[int | None, int | None, int], parts: list[tuple[str, float, float]]
) -> None:
    names = ("queued_us", "first_byte_us", "total_us")
    found = parts_of(dict(zip(names, timings, strict=True)))
    assert [(each.kind, each.start, each.width) for each in found] == parts


def test_of_many_messages_the_middle_is_left_out() -> None:
    messages = [{"role": "user", "content": str(number)} for number in range(MOST_MESSAGES + 50)]
    shown = shown_contents({"input": messages})["asked"]
    assert len(shown) == MOST_MESSAGES + 1
    assert (shown[0].text, shown[-1].text) == ("0", str(MOST_MESSAGES + 49))
    assert shown[MOST_MESSAGES // 2].title == "50 messages that are not shown here"


@pytest.mark.parametrize(
    "contents",
    [
        {},
        {"input": None, "output": None},
        {"input": "text", "output": "text"},
        {"input": [1, {}], "output": {"x": [1]}},
    ],
)
def test_contents_of_any_shape_are_shown(contents: dict[str, Any]) -> None:
    assert isinstance(shown_contents(contents), dict)


@pytest.mark.parametrize(
    ("query", "period"),
    [
        ({}, Period("7d", "2026-02-23", "2026-03-01", 7)),
        ({"period": "24h"}, Period("24h", "2026-02-28T13:00:00Z", "2026-03-01T12:59:59.999999Z", 1)),
        ({"period": "month"}, Period("month", "2026-03-01", "2026-03-01", 1)),
        ({"period": "last_month"}, Period("last_month", "2026-02-01", "2026-02-28", 28)),
        ({"start_date": "2026-01-01", "end_date": "2026-01-02"}, Period("custom", "2026-01-01", "2026-01-02", 2)),
        ({"start_date": "2026-01-01"}, Period("custom", "2026-01-01", "", None)),
        ({"period": "for ever"}, Period("custom", "", "", None)),
    ],
)
def test_a_period_is_written_as_dates(query: dict[str, str], period: Period) -> None:
    assert period_of(query, NOW) == period


@pytest.mark.parametrize("path", ["/ui/usage", "/ui/requests"])
def test_a_key_that_was_typed_is_not_shown_again(gateway: ConsoleGateway, path: str) -> None:
    made = gateway.make_key(key_alias="ada")
    answer = gateway.browser(MASTER_KEY).get(f"{path}?api_key={made['key']}")
    assert answer.status == 200
    assert made["key"].encode() not in answer.body
    assert made["token"].encode() in answer.body


def test_an_interval_has_its_requests() -> None:
    assert span_of_interval("2026-02-01", "month") == {"start_date": "2026-02-01", "end_date": "2026-02-28"}
    assert span_of_interval("2026-02-01", "day") == {"start_date": "2026-02-01", "end_date": "2026-02-01"}


def test_an_address_leaves_out_what_is_empty() -> None:
    assert address("/ui/x", {"a": "1", "b": ""}, {"a": "ü&"}) == "/ui/x?a=%C3%BC%26"
    assert address("/ui/x", {}) == "/ui/x"
