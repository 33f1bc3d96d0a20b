"""The first page, as whoever signs in gets it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred, succeed

from tests.admin.admin_harness import MASTER_KEY
from tests.admin.reports.usage_rows import id_of, keep, row_at
from tests.admin.web.web_harness import ConsoleGateway, words
from twisted_vllm.observability.problems.facts import Problem, ProblemsReport
from twisted_vllm.observability.traffic.report import make_report
from twisted_vllm.observability.traffic.ring import FINE, History
from twisted_vllm.observability.traffic.steps import ModelStep, Step
from twisted_vllm.ratelimit.used_budget import UsedBudget

NOW = 1_772_366_400.0
MARKUP = "<img src=x onerror=alert(1)>"
DOLLAR = 10**12


def problem(code: str = "server_down", subject: str = "gpu-1", **fields: Any) -> Problem:
    found: dict[str, Any] = {
        "severity": "warning",
        "subject_type": "server",
        "message": f"Server {subject} gets no requests.",
        "advice": "Look at it.",
        "since": datetime(2026, 3, 1, 11, 0, tzinfo=UTC),
        "runbook": "docs/alerts.md#serverdead",
        **fields,
    }
    return Problem(code=code, subject=subject, **found)


class Overview:
    """Figures and problems that a test sets."""

    def __init__(self) -> None:
        self.history = History(NOW - 600)
        self.found: list[Problem] = []
        self.used: list[UsedBudget] = []
        self.now = NOW

    def traffic(self, seconds: int, start: float) -> Deferred[bytes]:
        return succeed(msgspec.json.encode(make_report(self.history, NOW - seconds, NOW)))

    def problems(self) -> Deferred[bytes]:
        now = datetime.fromtimestamp(self.now, UTC)
        return succeed(msgspec.json.encode(ProblemsReport(problems=self.found, looked_at=now, watched_since=now)))

    def budgets(self) -> Deferred[list[UsedBudget]]:
        return succeed(self.used)


@pytest.fixture
def overview() -> Overview:
    return Overview()


@pytest.fixture
def gateway(overview: Overview) -> ConsoleGateway:
    return ConsoleGateway(overview=overview)


def test_an_administrator_sees_figures_and_problems_at_once(gateway: ConsoleGateway, overview: Overview) -> None:
    number = int(NOW // FINE) - 2
    model = ModelStep(300, 30, 6_000, 0, 9_000, 0, {8: 20}, {11: 20})
    overview.history.add(Step(number, 7, {"budget_exceeded": 30}, {MARKUP: model}))
    overview.found = [problem(subject=MARKUP)]
    answer = gateway.browser(MASTER_KEY).get("/ui")
    text = words(answer)
    assert answer.status == 200
    for expected in (
        "What is wrong: 1",
        f"Server {MARKUP} gets no requests.",
        "Look at it. Since 2026-03-01 11:00:00 UTC.",
        "Requests a second 10",
        "Failed 10 %",
        "budget_exceeded gateway 30",
        f"{MARKUP} 300 30",
        "The last 15 minutes",
    ):
        assert expected in text, expected
    assert b"<img" not in answer.body


def test_the_period_is_chosen_by_the_address(gateway: ConsoleGateway) -> None:
    browser = gateway.browser(MASTER_KEY)
    assert "The last 6 hours" in words(browser.get("/ui?minutes=360"))
    assert "The last 15 minutes" in words(browser.get("/ui?minutes=7"))
    series = json.loads(browser.get("/ui/overview/traffic?minutes=5", accept="application/json").body)["series"]
    assert len(series["time"]) == 59
    assert browser.get("/ui/overview/traffic?minutes=0", accept="application/json").status == 400


def test_the_list_of_problems_comes_again_only_if_there_is_news(gateway: ConsoleGateway, overview: Overview) -> None:
    browser = gateway.browser(MASTER_KEY)
    assert "Nothing is wrong" in words(browser.get("/ui"))
    first = browser.get("/ui/overview/problems", hx_request="true")
    shown = first.body.decode().partition("?shown=")[2][:16]
    assert browser.get(f"/ui/overview/problems?shown={shown}", hx_request="true").status == 204
    overview.found = [problem(severity="critical", message="It waits for 5 minutes.")]
    changed = browser.get(f"/ui/overview/problems?shown={shown}", hx_request="true")
    assert (changed.status, "critical" in words(changed)) == (200, True)
    shown = changed.body.decode().partition("?shown=")[2][:16]
    overview.found = [problem(severity="critical", message="It waits for 6 minutes.")]
    assert browser.get(f"/ui/overview/problems?shown={shown}", hx_request="true").status == 204
    overview.now += 60
    later = browser.get(f"/ui/overview/problems?shown={shown}", hx_request="true")
    assert (later.status, "6 minutes" in words(later)) == (200, True)


def test_what_everybody_spent_is_there_with_the_budgets(gateway: ConsoleGateway, overview: Overview) -> None:
    ada = id_of(gateway, gateway.make_key(key_alias=MARKUP))
    keep(gateway, [row_at(1, "2026-03-01T10:00:00", key_id=ada, model=MARKUP, cost=3 * DOLLAR)])
    overview.used = [
        UsedBudget("team", "a/b", 9 * DOLLAR, 10 * DOLLAR, NOW + 60),
        UsedBudget("key", ada, 8 * DOLLAR, 10 * DOLLAR, float("inf"), MARKUP),
    ]
    answer = gateway.browser(MASTER_KEY).get("/ui/overview/spend?of=today", hx_request="true")
    text = words(answer)
    row = "team a/b 90 % $9.00 $10.00 2026-03-01 12:01:00 UTC"
    for expected in ("Spend of everybody", "$3.00", f"{MARKUP} $3.00", row):
        assert expected in text, (expected, text)
    assert "never" in text and b"<img" not in answer.body
    assert b'aria-pressed="true"' in answer.body


def test_a_member_sees_its_own_spend_and_nothing_of_the_gateway(gateway: ConsoleGateway, overview: Overview) -> None:
    overview.found = [problem()]
    overview.used = [UsedBudget("team", "t9", 9 * DOLLAR, 10 * DOLLAR, NOW)]
    gateway.post("/user/new", {"user_id": "ada", "user_role": "internal_user", "auto_create_key": False})
    made, other = gateway.make_key(key_alias="mine", user_id="ada", max_budget=5), gateway.make_key(key_alias="hers")
    keep(
        gateway,
        [
            row_at(1, "2026-03-01T10:00:00", key_id=id_of(gateway, made), user_id="ada", cost=2 * DOLLAR),
            row_at(2, "2026-03-01T10:00:00", key_id=id_of(gateway, other), cost=7 * DOLLAR),
        ],
    )
    browser = gateway.browser(made["key"])
    page = browser.get("/ui")
    assert page.status == 200 and "Overview" in words(page)
    assert "wrong" not in words(page) and "In flight" not in words(page)
    text = words(browser.get("/ui/overview/spend", hx_request="true"))
    assert "Spend of your keys" in text and "mine $2.00" in text
    assert "hers" not in text and "t9" not in text and "$7.00" not in text
    for path in ("/ui/overview/traffic", "/ui/overview/problems"):
        assert browser.get(path).status == 403
