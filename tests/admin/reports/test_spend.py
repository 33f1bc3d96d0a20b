"""What keys, users, teams, tags and models spent, in LiteLLM's shapes."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from tests.admin.admin_harness import NOW, Gateway, value_of
from tests.admin.reports.usage_rows import id_of, keep, row_at
from twisted_vllm.config.settings import Settings
from twisted_vllm.storage.transaction import Transaction

DOLLAR = 10**12


@pytest.fixture
def keys(gateway: Gateway) -> dict[str, dict[str, Any]]:
    """Two keys that spent something within the last days, and long ago."""
    gateway.post("/team/new", {"team_id": "t1", "team_alias": "red"})
    gateway.post("/user/new", {"user_id": "ada", "auto_create_key": False})
    made = {
        "ada": gateway.make_key(key_alias="ada", user_id="ada", team_id="t1"),
        "bob": gateway.make_key(key_alias="bob"),
        "idle": gateway.make_key(key_alias="idle"),
    }
    ada, bob = id_of(gateway, made["ada"]), id_of(gateway, made["bob"])
    keep(
        gateway,
        [
            row_at(1, "2026-02-27T10:00:00", key_id=ada, user_id="ada", team_id="t1", tags=("a", "b"), cost=DOLLAR),
            row_at(2, "2026-02-28T10:00:00", key_id=ada, user_id="ada", team_id="t1", model="llama", cost=1),
            row_at(3, "2026-02-28T11:00:00", key_id=bob, tags=("b",), cost=3 * DOLLAR, status=500),
            row_at(4, "2025-06-01T11:00:00", key_id=bob, tags=("b",), cost=DOLLAR),
        ],
    )
    return made


def exact(answer: Any) -> Any:
    """Return an answer's JSON with all digits of its numbers."""
    assert answer.status == 200, answer.body
    return json.loads(answer.body, parse_float=Decimal)


def test_keys_come_in_the_order_of_their_spend(gateway: Gateway, keys: dict[str, Any]) -> None:
    found = exact(gateway.get("/spend/keys"))
    assert [(each["key_alias"], each["spend"]) for each in found] == [
        ("bob", Decimal(4)),
        ("ada", Decimal("1.000000000001")),
        ("idle", Decimal(0)),
    ]
    assert found[0]["token"] == keys["bob"]["token"]
    assert [each["key_alias"] for each in gateway.get("/spend/keys?page_size=1&page=2").json] == ["ada"]


@pytest.mark.usefixtures("keys")
def test_users_come_in_the_order_of_their_spend(gateway: Gateway) -> None:
    gateway.post("/user/new", {"user_id": "carol", "auto_create_key": False})
    found = exact(gateway.get("/spend/users"))
    assert [(each["user_id"], each["spend"]) for each in found] == [("ada", Decimal("1.000000000001")), ("carol", 0)]
    assert [each["user_id"] for each in gateway.get("/spend/users?user_id=carol").json] == ["carol"]
    assert gateway.get("/spend/users?user_id=nobody").json == []


@pytest.mark.usefixtures("keys")
def test_tags_come_with_their_requests(gateway: Gateway) -> None:
    assert exact(gateway.get("/spend/tags")) == [
        {"individual_request_tag": "b", "log_count": 3, "total_spend": 5},
        {"individual_request_tag": "a", "log_count": 1, "total_spend": 1},
    ]
    assert exact(gateway.get("/spend/tags?start_date=2026-02-28&end_date=2026-02-28")) == [
        {"individual_request_tag": "b", "log_count": 1, "total_spend": 3},
    ]


@pytest.mark.usefixtures("keys")
def test_everybody_s_spend_is_that_of_the_last_thirty_days(gateway: Gateway) -> None:
    assert exact(gateway.get("/global/spend")) == {"spend": Decimal("4.000000000001"), "max_budget": None}
    assert exact(gateway.get("/global/spend/logs")) == [
        {"date": "2026-02-27", "spend": 1},
        {"date": "2026-02-28", "spend": Decimal("3.000000000001")},
    ]


def test_with_a_budget_of_all_everybody_s_spend_is_that_of_its_period() -> None:
    gateway = Gateway(settings_in_effect=lambda: Settings(max_budget=Decimal("12.5"), budget_duration="1d"))
    assert exact(gateway.get("/global/spend")) == {"spend": 0, "max_budget": Decimal("12.5")}
    today = int(NOW.timestamp()) // 86_400 * 86_400

    def spent(period_start: int) -> None:
        def work(transaction: Transaction) -> None:
            transaction.spend.set("proxy", "proxy", 2 * DOLLAR, period_start)

        value_of(gateway.store.change(work))

    spent(today)
    assert exact(gateway.get("/global/spend"))["spend"] == 2
    spent(today - 86_400)
    assert exact(gateway.get("/global/spend"))["spend"] == 0


def test_a_key_s_spend_is_told_by_day(gateway: Gateway, keys: dict[str, Any]) -> None:
    token = keys["bob"]["token"]
    for name in (token, keys["bob"]["key"]):
        assert exact(gateway.get(f"/global/spend/logs?api_key={name}")) == [
            {"date": "2026-02-28", "spend": 3, "api_key": token}
        ]
    assert gateway.get("/global/spend/logs?api_key=sk-nobody-0123456789").json == []


def test_those_that_spent_the_most_come_first(gateway: Gateway, keys: dict[str, Any]) -> None:
    [first, second] = exact(gateway.get("/global/spend/keys"))
    name = f"sk-...{keys['bob']['key'][-4:]}"
    assert first == {"api_key": keys["bob"]["token"], "key_alias": "bob", "key_name": name, "total_spend": 3}
    assert second["key_alias"] == "ada"
    assert len(gateway.get("/global/spend/keys?limit=1").json) == 1
    assert exact(gateway.get("/global/spend/models")) == [
        {"model": "qwen", "total_spend": 4, "total_tokens": 30},
        {"model": "llama", "total_spend": Decimal("0.000000000001"), "total_tokens": 15},
    ]
    assert exact(gateway.get("/global/spend/teams")) == {
        "daily_spend": [
            {"date": "2026-02-27", "red": 1},
            {"date": "2026-02-28", "Unassigned": 3, "red": Decimal("0.000000000001")},
        ],
        "teams": ["red", "Unassigned"],
        "total_spend_per_team": [
            {"team_id": "Unassigned", "total_spend": 3},
            {"team_id": "red", "total_spend": Decimal("1.000000000001")},
        ],
    }


@pytest.mark.usefixtures("keys")
def test_activity_counts_requests_and_tokens(gateway: Gateway) -> None:
    dates = "start_date=2026-02-27&end_date=2026-02-28"
    assert gateway.get(f"/global/activity?{dates}").json == {
        "daily_data": [
            {"date": "Feb 27", "api_requests": 1, "total_tokens": 15},
            {"date": "Feb 28", "api_requests": 2, "total_tokens": 30},
        ],
        "sum_api_requests": 3,
        "sum_total_tokens": 45,
    }
    found = gateway.get(f"/global/activity/model?{dates}").json
    assert [(each["model"], each["sum_api_requests"]) for each in found] == [("qwen", 2), ("llama", 1)]
    answer = gateway.get("/global/activity?start_date=2026-02-27")
    assert (answer.status, answer.error["param"]) == (400, "end_date")


def test_a_key_s_report_tells_of_its_models(gateway: Gateway, keys: dict[str, Any]) -> None:
    token = keys["ada"]["token"]
    mine = {
        "api_key": token,
        "model_details": [
            {"model": "llama", "total_cost": Decimal("1E-12"), "total_input_tokens": 10, "total_output_tokens": 5},
            {"model": "qwen", "total_cost": 1, "total_input_tokens": 10, "total_output_tokens": 5},
        ],
        "total_cost": Decimal("1.000000000001"),
        "total_input_tokens": 20,
        "total_output_tokens": 10,
    }
    assert exact(gateway.get("/key/spend/report", keys["ada"]["key"])) == [mine]
    assert exact(gateway.get(f"/key/spend/report?api_key={token}")) == [mine]
    assert [each["total_cost"] for each in gateway.get("/key/spend/report").json] == [3.0, 1.000000000001]
    assert gateway.get("/key/spend/report?start_date=2026-03-01", keys["ada"]["key"]).json == []
    assert gateway.get(f"/key/spend/report?api_key={token}", keys["bob"]["key"]).status == 403


def test_daily_activity_breaks_each_day_down(gateway: Gateway, keys: dict[str, Any]) -> None:
    answer = exact(gateway.get("/user/daily/activity?start_date=2026-02-27&end_date=2026-02-28"))
    assert [day["date"] for day in answer["results"]] == ["2026-02-28", "2026-02-27"]
    last = answer["results"][0]
    assert (last["metrics"]["spend"], last["metrics"]["api_requests"]) == (Decimal("3.000000000001"), 2)
    assert (last["metrics"]["successful_requests"], last["metrics"]["failed_requests"]) == (1, 1)
    assert set(last["breakdown"]["models"]) == {"qwen", "llama"}
    assert last["breakdown"]["models"]["qwen"]["api_key_breakdown"][keys["bob"]["token"]]["metrics"]["spend"] == 3
    assert last["breakdown"]["api_keys"][keys["ada"]["token"]]["metadata"] == {
        "key_alias": "ada",
        "team_id": "t1",
        "user_id": "ada",
        "user_email": None,
        "key_exists": True,
    }
    assert answer["metadata"]["total_spend"] == Decimal("4.000000000001")
    assert (answer["metadata"]["page"], answer["metadata"]["has_more"]) == (1, False)
    second = gateway.get("/user/daily/activity?page_size=2&page=2").json
    assert (second["metadata"]["total_pages"], second["metadata"]["total_api_requests"]) == (2, 1)


def test_a_key_sees_the_daily_activity_of_its_user(gateway: Gateway, keys: dict[str, Any]) -> None:
    second = gateway.make_key(user_id="ada")
    for key in (keys["ada"]["key"], second["key"]):
        found = gateway.get("/user/daily/activity?start_date=2026-02-27", key).json
        assert found["metadata"]["total_api_requests"] == 2
    assert gateway.get("/user/daily/activity?user_id=bob", keys["ada"]["key"]).status == 403
    own = gateway.get("/user/daily/activity?start_date=2026-02-27", keys["bob"]["key"]).json
    assert own["metadata"]["total_api_requests"] == 1


@pytest.mark.parametrize(
    "path",
    [
        "/spend/keys",
        "/spend/users",
        "/spend/tags",
        "/global/spend",
        "/global/spend/logs",
        "/global/spend/keys",
        "/global/spend/teams",
        "/global/spend/models",
        "/global/activity?start_date=2026-02-27&end_date=2026-02-28",
        "/global/activity/model?start_date=2026-02-27&end_date=2026-02-28",
    ],
)
def test_what_concerns_everybody_is_for_administrators(gateway: Gateway, keys: dict[str, Any], path: str) -> None:
    assert gateway.get(path, keys["ada"]["key"]).status == 403
    assert gateway.get(path, None).status == 401
    assert gateway.get(path, gateway.make_key(allowed_routes=["management"])["key"]).status == 200
