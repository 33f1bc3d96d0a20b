"""``/spend/logs`` shows the ledger's rows in LiteLLM's shape, to each caller what it may see."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from tests.admin.admin_harness import MASTER_KEY, Gateway
from tests.admin.reports.usage_rows import id_of, keep, row_at


@pytest.fixture
def ada(gateway: Gateway) -> dict[str, Any]:
    """A key of a user and a team, with three requests; another key has one."""
    made = gateway.make_key(key_alias="ada", user_id="ada", team_id="red")
    other = gateway.make_key(key_alias="bob", user_id="bob")
    mine = {"key_id": id_of(gateway, made), "user_id": "ada", "team_id": "red"}
    keep(
        gateway,
        [
            row_at(1, "2026-02-26T10:00:00", **mine, tags=("a", "b"), end_user="eve"),
            row_at(2, "2026-02-27T23:59:59.999999", **mine, model="llama", cost=1),
            row_at(3, "2026-02-28T00:00:00", **mine, status=500),
            row_at(4, "2026-02-27T12:00:00", key_id=id_of(gateway, other), user_id="bob", tags=("b",)),
            row_at(5, "2026-02-25T12:00:00", kind="master", key_hash="", key_name="master"),
        ],
    )
    return made


def ids(answer: Any) -> list[int]:
    assert answer.status == 200, answer.body
    rows = answer.json if isinstance(answer.json, list) else answer.json["data"]
    return [int(row["request_id"].removeprefix("request-")) for row in rows]


@pytest.mark.usefixtures("ada")
def test_rows_come_newest_first(gateway: Gateway) -> None:
    assert ids(gateway.get("/spend/logs")) == [3, 2, 4, 1, 5]
    assert ids(gateway.get("/spend/logs?page_size=2&page=2")) == [4, 1]


def test_a_row_has_litellm_s_columns_and_all_digits_of_its_cost(gateway: Gateway, ada: dict[str, Any]) -> None:
    answer = gateway.get("/spend/logs?request_id=request-1")
    [row] = json.loads(answer.body, parse_float=Decimal)
    assert row["spend"] == Decimal("0.000123456789")
    assert (row["api_key"], row["user"], row["team_id"], row["end_user"]) == (ada["token"], "ada", "red", "eve")
    assert (row["startTime"], row["endTime"]) == ("2026-02-26T10:00:00.000000Z", "2026-02-26T10:00:01.500000Z")
    assert row["completionStartTime"] == "2026-02-26T10:00:00.020000Z"
    assert (row["request_tags"], row["status"], row["model"], row["model_group"]) == (
        ["a", "b"],
        "success",
        "qwen",
        "qwen",
    )
    assert (row["prompt_tokens"], row["completion_tokens"], row["total_tokens"]) == (10, 5, 15)
    assert row["metadata"]["user_api_key_alias"] == "alias"


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("user_id=ada", [3, 2, 1]),
        ("team_id=red", [3, 2, 1]),
        ("end_user=eve", [1]),
        ("tag=b", [4, 1]),
        ("tag=b&user_id=bob", [4]),
        ("model=llama", [2]),
        ("model=unknown", []),
        ("user_id=ada&model=qwen", [3, 1]),
        ("start_date=2026-02-27", [3, 2, 4]),
        ("end_date=2026-02-27", [2, 4, 1, 5]),
        ("start_date=2026-02-27&end_date=2026-02-27&summarize=false", [2, 4]),
        ("start_date=2026-02-27T12:00:00Z&end_date=2026-02-28T00:00:00Z&summarize=false", [3, 2, 4]),
        ("start_date=2026-02-27+13:00:00", [3, 2]),
        ("api_key=sk-nobody-0123456789", []),
        ("start_date=2026-02-28&end_date=2026-02-26&summarize=false", []),
        ("page=1002", []),
        (f"api_key={MASTER_KEY}", [5]),
    ],
)
@pytest.mark.usefixtures("ada")
def test_filters_hold_together_and_both_dates_count(gateway: Gateway, query: str, found: list[int]) -> None:
    assert ids(gateway.get(f"/spend/logs?{query}")) == found


def test_a_key_is_found_by_itself_its_hash_its_id_and_its_former_value(gateway: Gateway, ada: dict[str, Any]) -> None:
    for name in (ada["key"], ada["token"], id_of(gateway, ada)):
        assert ids(gateway.get(f"/spend/logs?api_key={name}")) == [3, 2, 1]
    gateway.post("/key/regenerate", {"key": ada["key"], "grace_period": "1h"})
    assert ids(gateway.get(f"/spend/logs?api_key={ada['token']}")) == [3, 2, 1]


@pytest.mark.usefixtures("ada")
def test_pages_say_how_many_there_are(gateway: Gateway) -> None:
    answer = gateway.get("/spend/logs/v2?page_size=2&page=3&start_date=2026-02-01&end_date=2026-03-01")
    assert ids(answer) == [5]
    around = {name: value for name, value in answer.json.items() if name != "data"}
    assert around == {"total": 5, "page": 3, "page_size": 2, "total_pages": 3, "total_is_capped": False}
    assert ids(gateway.get("/spend/logs/v2?status_filter=failure")) == [3]
    assert ids(gateway.get("/spend/logs/v2?status_filter=success&user_id=ada")) == [2, 1]


def test_pages_are_filtered_by_key_cost_and_error(gateway: Gateway, ada: dict[str, Any]) -> None:
    def asked(query: str) -> list[int]:
        answer = gateway.get(f"/spend/logs/v2?{query}")
        assert answer.json["total"] == len(answer.json["data"])
        return ids(answer)

    assert asked("key_alias=ada") == [3, 2, 1]
    assert asked(f"key_alias=ada&api_key={ada['token']}&model=llama") == [2]
    assert asked("key_alias=bob&user_id=ada") == asked("key_alias=gone") == asked("key_alias=bob&api_key=sk-gone") == []
    assert asked("max_spend=0.0001") == [2]
    assert asked("min_spend=0.0001&key_alias=ada") == [3, 1]
    assert asked("error_code=500") == [3]
    assert asked("error_code=budget_exceeded") == []
    assert asked("search=request-4") == [4]
    assert ids(gateway.get("/spend/logs/v2?key_alias=ada", ada["key"])) == [3, 2, 1]
    others = [gateway.get(f"/spend/logs/v2?key_alias={name}", ada["key"]) for name in ("bob", "gone")]
    assert others[0].status == others[1].status == 403
    assert others[0].error == others[1].error
    for query in ("min_spend=-1", "min_spend=nan", "max_spend=x"):
        assert gateway.get(f"/spend/logs/v2?{query}").status == 400


def test_both_dates_add_up_each_day_and_fill_up_the_last_ones(gateway: Gateway, ada: dict[str, Any]) -> None:
    answer = gateway.get("/spend/logs?user_id=ada&start_date=2026-02-26&end_date=2026-03-01")
    days = json.loads(answer.body, parse_float=Decimal)
    assert days[0] == {
        ada["token"]: Decimal("0.000123456789"),
        "startTime": "2026-02-26",
        "spend": Decimal("0.000123456789"),
        "users": {"ada": Decimal("0.000123456789")},
        "models": {"qwen": Decimal("0.000123456789")},
    }
    assert (days[1]["startTime"], days[1]["models"]) == ("2026-02-27", {"llama": Decimal("0.000000000001")})
    assert days[3] == {"startTime": "2026-03-01", "spend": 0, "users": {}, "models": {}}
    assert len(days) == 4
    by_tag = gateway.get("/spend/logs?tag=b&start_date=2026-02-26&end_date=2026-02-27").json
    assert [day["spend"] for day in by_tag] == [0.000123456789] * 2
    assert gateway.get("/spend/logs?user_id=nobody&start_date=2026-02-26&end_date=2026-03-01").json == []


def test_a_key_sees_its_own_rows_and_no_server(gateway: Gateway, ada: dict[str, Any]) -> None:
    key = ada["key"]
    assert ids(gateway.get("/spend/logs", key)) == [3, 2, 1]
    assert ids(gateway.get("/spend/logs/v2?model=qwen", key)) == [3, 1]
    assert ids(gateway.get(f"/spend/logs?api_key={ada['token']}&user_id=ada&team_id=red", key)) == [3, 2, 1]
    assert ids(gateway.get("/spend/logs?request_id=request-4", key)) == []
    assert gateway.get("/spend/logs", key).json[0]["api_base"] is None
    assert gateway.get("/spend/logs").json[0]["api_base"] == "gpu-1"
    days = gateway.get("/spend/logs?start_date=2026-02-27&end_date=2026-02-27", key).json
    assert days[0]["users"] == {"ada": 1e-12}


@pytest.mark.parametrize("query", ["user_id=bob", "team_id=blue", "api_key=sk-other-0123456789", f"api_key={'0' * 32}"])
def test_a_key_is_refused_what_is_others(gateway: Gateway, ada: dict[str, Any], query: str) -> None:
    for path in ("/spend/logs", "/spend/logs/v2", "/usage/report"):
        answer = gateway.get(f"{path}?{query}", ada["key"])
        assert (answer.status, answer.error["code"]) == (403, "route_not_allowed")


def test_a_key_that_administers_sees_everybody_s_rows(gateway: Gateway, ada: dict[str, Any]) -> None:
    manager = gateway.make_key(allowed_routes=["management"])
    assert ids(gateway.get("/spend/logs", manager["key"])) == [3, 2, 4, 1, 5]
    assert ids(gateway.get(f"/spend/logs?api_key={ada['token']}", manager["key"])) == [3, 2, 1]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("start_date=yesterday", "start_date"),
        ("end_date=2026-02-30", "end_date"),
        ("start_date=0001-01-01", "start_date"),
        ("end_date=9999-12-31", "end_date"),
        ("page=0", "page"),
        ("page_size=1001", "page_size"),
        ("summarize=perhaps", "summarize"),
        ("users=ada", "users"),
    ],
)
def test_a_fault_in_the_query_is_named(gateway: Gateway, query: str, param: str) -> None:
    answer = gateway.get(f"/spend/logs?{query}")
    assert (answer.status, answer.error["param"]) == (400, param)


def test_what_litellm_knows_and_the_gateway_does_not_is_refused_by_name(gateway: Gateway) -> None:
    answer = gateway.get("/spend/logs/v2?error_message=x")
    assert (answer.status, answer.error["param"]) == (400, "error_message")


def test_who_administers_a_team_sees_all_of_its_usage(gateway: Gateway, ada: dict[str, Any]) -> None:
    for user_id in ("ada", "carl"):
        assert gateway.post("/user/new", {"user_id": user_id, "auto_create_key": False}).status == 200
    roles = [{"user_id": "carl", "role": "admin"}, {"user_id": "ada"}]
    assert gateway.post("/team/new", {"team_id": "red", "members_with_roles": roles}).status == 200
    carls = gateway.make_key(user_id="carl")["key"]
    assert ids(gateway.get("/spend/logs?team_id=red", carls)) == [3, 2, 1]
    assert ids(gateway.get("/spend/logs", carls)) == []
    assert gateway.get("/spend/logs?team_id=blue", carls).status == 403
    # a member sees its own
    keep(gateway, [row_at(6, "2026-02-28T01:00:00", key_id="f" * 32, user_id="carl", team_id="red")])
    assert ids(gateway.get("/spend/logs?team_id=red", ada["key"])) == [3, 2, 1]
    assert ids(gateway.get("/spend/logs?team_id=red", carls)) == [6, 3, 2, 1]
