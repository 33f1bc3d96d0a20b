"""What the API tells of the gateway as a whole, and of spend; and to whom."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred, succeed

from tests.admin.admin_harness import MASTER_KEY, Gateway
from tests.admin.reports.usage_rows import id_of, keep, row_at
from twisted_vllm.admin.overview.models import SpendOverview
from twisted_vllm.ratelimit.allowance import member_id, model_budget_id
from twisted_vllm.ratelimit.used_budget import UsedBudget

DOLLAR = 10**12
DAY = 86_400.0


class Overview:
    """Notes what is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []
        self.used: Sequence[UsedBudget] = ()
        self.looks = 0

    def traffic(self, seconds: int, start: float) -> Deferred[bytes]:
        self.asked.append((seconds, start))
        return succeed(b'{"traffic":1}')

    def problems(self) -> Deferred[bytes]:
        return succeed(b'{"problems":[]}')

    def budgets(self) -> Deferred[Sequence[UsedBudget]]:
        self.looks += 1
        return succeed(self.used)


@pytest.fixture
def overview() -> Overview:
    return Overview()


@pytest.fixture
def gateway(overview: Overview) -> Gateway:
    return Gateway(overview=overview)


# traffic and problems


def test_the_period_is_in_minutes_or_begins_at_a_time(gateway: Gateway, overview: Overview) -> None:
    for query in ("", "?minutes=5", "?minutes=1440", "?since=2026-03-01T11:00:00Z", "?minutes=5&since=2026-03-01"):
        assert gateway.get(f"/gateway/traffic{query}").json == {"traffic": 1}
    assert overview.asked == [(900, 0.0), (300, 0.0), (86_400, 0.0), (0, 1772362800.0), (0, 1772323200.0)]


@pytest.mark.parametrize("query", ["minutes=0", "minutes=1441", "minutes=x", "since=yesterday", "since=2026-03-02"])
def test_a_period_that_is_none_is_refused(gateway: Gateway, query: str) -> None:
    answer = gateway.get(f"/gateway/traffic?{query}")
    assert (answer.status, answer.error["param"]) == (400, query.partition("=")[0])


def test_problems_come_as_they_are(gateway: Gateway) -> None:
    assert gateway.get("/gateway/problems").json == {"problems": []}


@pytest.mark.parametrize("path", ["/gateway/traffic", "/gateway/problems"])
def test_members_learn_nothing_of_the_gateway_as_a_whole(gateway: Gateway, overview: Overview, path: str) -> None:
    gateway.post("/user/new", {"user_id": "ada", "user_role": "internal_user", "auto_create_key": False})
    for key in (gateway.make_key()["key"], gateway.make_key(user_id="ada")["key"]):
        assert gateway.get(path, key).status == 403
    assert gateway.get(path, None).status == 401
    assert overview.asked == []


def test_in_an_app_without_a_data_path_nothing_passes_and_nothing_is_wrong() -> None:
    gateway = Gateway()
    assert gateway.get("/gateway/problems").json["problems"] == []
    found = gateway.get("/gateway/traffic?minutes=5").json
    assert (found["summary"]["requests"], len(found["series"]["time"]), found["models"]) == (0, 59, [])


# spend


@pytest.fixture
def keys(gateway: Gateway) -> dict[str, dict[str, Any]]:
    """Keys of two people; it is the 20th of March."""
    gateway.clock.advance(19 * DAY)
    gateway.post("/team/new", {"team_id": "t1", "team_alias": "red"})
    for name in ("ada", "bob"):
        gateway.post("/user/new", {"user_id": name, "user_role": "internal_user", "auto_create_key": False})
    made = {
        "ada": gateway.make_key(key_alias="ada", user_id="ada", team_id="t1", max_budget=10),
        "ada-2": gateway.make_key(key_alias="ada-2", user_id="ada"),
        "bob": gateway.make_key(key_alias="bob", user_id="bob"),
        "lone": gateway.make_key(key_alias="lone"),
    }
    ada, second, bob, lone = (id_of(gateway, each) for each in made.values())
    keep(
        gateway,
        [
            row_at(1, "2026-03-20T10:00:00", key_id=ada, user_id="ada", team_id="t1", cost=DOLLAR),
            row_at(2, "2026-03-05T10:00:00", key_id=ada, user_id="ada", team_id="t1", model="llama", cost=2 * DOLLAR),
            row_at(3, "2026-03-20T11:00:00", key_id=second, user_id="ada", cost=DOLLAR, status=500),
            row_at(4, "2026-03-20T11:00:00", key_id=bob, user_id="bob", cost=8 * DOLLAR),
            row_at(5, "2026-03-20T11:00:00", key_id=lone, cost=DOLLAR),
            row_at(6, "2026-02-28T11:00:00", key_id=bob, user_id="bob", cost=100 * DOLLAR),
        ],
    )
    return made


def spend(gateway: Gateway, key: str = MASTER_KEY, query: str = "") -> Any:
    answer = gateway.get(f"/spend/overview{query}", key)
    assert answer.status == 200, answer.body
    msgspec.json.decode(answer.body, type=SpendOverview)
    return answer.json


def shown(entries: list[dict[str, Any]], name: str) -> list[tuple[Any, float]]:
    return [(each[name], each["spend"]) for each in entries]


@pytest.mark.usefixtures("keys")
def test_an_administrator_sees_what_everybody_spent_today_and_this_month(gateway: Gateway) -> None:
    found = spend(gateway)
    today, month = found["today"], found["month"]
    assert found["of"] == "everybody"
    assert (today["start"], month["start"]) == ("2026-03-20T00:00:00Z", "2026-03-01T00:00:00Z")
    assert (today["spend"], today["requests"], today["failed"]) == (11.0, 4, 1)
    assert (month["spend"], month["requests"]) == (13.0, 5)
    assert shown(month["keys"], "key_alias")[:2] == [("bob", 8.0), ("ada", 3.0)]
    assert {name for name, _ in shown(month["keys"], "key_alias")[2:]} == {"ada-2", "lone"}
    assert shown(month["models"], "model")[-1] == ("llama", 2.0)
    assert ("red", 3.0) in shown(month["teams"], "team_alias")
    days = {each["date"]: each["spend"] for each in found["days"] if each["spend"]}
    assert days == {"2026-02-28": 100.0, "2026-03-05": 2.0, "2026-03-20": 11.0}
    assert len(found["days"]) == 31 and found["days"][-1]["date"] == "2026-03-20"
    assert [len(spend(gateway, query="?top=1")["month"][each]) for each in ("models", "teams", "keys")] == [1, 1, 1]


def test_a_person_sees_what_its_keys_spent_and_its_own_budgets(gateway: Gateway, keys: dict[str, Any]) -> None:
    found = spend(gateway, keys["ada-2"]["key"])
    assert (found["of"], found["today"]["spend"], found["month"]["spend"]) == ("user", 2.0, 4.0)
    assert shown(found["month"]["keys"], "key_alias") == [("ada", 3.0), ("ada-2", 1.0)]
    assert found["budgets"] == []
    [budget] = spend(gateway, keys["ada"]["key"])["budgets"]
    assert (budget["kind"], budget["name"], budget["max_budget"], budget["resets_at"]) == ("key", "ada", 10.0, None)


def test_a_key_without_a_user_sees_its_own_spend(gateway: Gateway, keys: dict[str, Any]) -> None:
    found = spend(gateway, keys["lone"]["key"])
    assert (found["of"], found["month"]["spend"]) == ("key", 1.0)
    assert shown(found["month"]["keys"], "key_alias") == [("lone", 1.0)]


def test_nobody_s_names_are_in_what_others_see(gateway: Gateway, keys: dict[str, Any], overview: Overview) -> None:
    overview.used = [UsedBudget("key", "k", 9, 10, 0.0, "secret")]
    for name in ("ada", "lone"):
        text = json.dumps(spend(gateway, keys[name]["key"]))
        assert "bob" not in text and "secret" not in text
    assert overview.looks == 0


def test_budgets_have_the_names_of_their_holders_and_come_as_they_are_used(
    gateway: Gateway, overview: Overview, keys: dict[str, Any]
) -> None:
    gateway.post("/organization/new", {"organization_id": "o1", "organization_alias": "acme"})
    overview.used = [
        UsedBudget("key", "k1", 9 * DOLLAR, 10 * DOLLAR, 1_800_000_000.0, "ada"),
        UsedBudget("team", "t1", 8 * DOLLAR, 10 * DOLLAR, float("inf")),
        UsedBudget("member", member_id("t1", "ada"), 7 * DOLLAR, 10 * DOLLAR, float("inf")),
        UsedBudget("organization", "o1", 6 * DOLLAR, 10 * DOLLAR, float("inf")),
        UsedBudget(
            "model_budget", model_budget_id("key", "k1", "qwen"), 5 * DOLLAR, 10 * DOLLAR, float("inf"), "ada", "f" * 64
        ),
        UsedBudget("user", "nobody", 4 * DOLLAR, 10 * DOLLAR, float("inf")),
        UsedBudget("proxy", "proxy", 3 * DOLLAR, 10 * DOLLAR, float("inf")),
    ]
    found = spend(gateway)["budgets"]
    assert [(each["kind"], each["name"], each["percent"]) for each in found] == [
        ("key", "ada", 90.0),
        ("team", "red", 80.0),
        ("member", "red · ada", 70.0),
        ("organization", "acme", 60.0),
        ("model_budget", "qwen of key ada", 50.0),
        ("user", "nobody", 40.0),
        ("proxy", "the whole gateway", 30.0),
    ]
    assert found[0]["resets_at"] == "2027-01-15T08:00:00Z"
    assert found[2]["id"] == "t1/ada"
    assert [each["api_key"] for each in found[3:5]] == [None, "f" * 64]


@pytest.mark.usefixtures("keys")
def test_those_who_look_at_everybody_s_spend_share_an_answer_for_seconds(gateway: Gateway, overview: Overview) -> None:
    for _ in range(3):
        spend(gateway)
    assert (overview.looks, len(gateway.reports.callers)) == (1, 1)
    spend(gateway, query="?top=2")
    gateway.clock.advance(11)
    spend(gateway)
    assert overview.looks == 3
