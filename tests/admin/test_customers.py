from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import Gateway, value_of
from twisted_vllm.auth.grants import EndUser
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance, Limited


@pytest.fixture(params=["customer", "end_user"])
def base(request: pytest.FixtureRequest) -> str:
    """Both names that LiteLLM has for the routes."""
    return f"/{request.param}"


def new(gateway: Gateway, **fields: object) -> Any:
    answer = gateway.post("/customer/new", fields)
    assert answer.status == 200, answer.body
    return answer.json


def is_blocked(gateway: Gateway, user_id: str) -> bool:
    found = gateway.index.end_user(user_id)
    assert found is not None
    return found.blocked


def test_a_customer_lives_from_its_making_to_its_deletion(gateway: Gateway, base: str) -> None:
    made = gateway.post(f"{base}/new", {"user_id": "eve", "alias": "Eve", "max_budget": 5, "budget_duration": "1mo"})
    assert made.status == 200
    expected = {
        "user_id": "eve",
        "alias": "Eve",
        "blocked": False,
        "spend": 0.0,
        "max_budget": 5.0,
        "budget_reset_at": "2026-04-01T00:00:00Z",
        "allowed_model_region": None,
        "default_model": None,
        "litellm_budget_table": {
            "budget_id": None,
            "model_max_budget": {},
            "max_budget": 5.0,
            "soft_budget": None,
            "max_parallel_requests": None,
            "tpm_limit": None,
            "rpm_limit": None,
            "budget_duration": "1mo",
        },
        "created_by": "master",
    }
    assert {name: made.json[name] for name in expected} == expected
    assert gateway.get(f"{base}/info?end_user_id=eve").json == made.json
    assert gateway.get(f"{base}/list").json == [made.json]

    changed = gateway.post(f"{base}/update", {"user_id": "eve", "alias": None, "rpm_limit": 3}).json
    assert (changed["alias"], changed["rpm_limit"], changed["max_budget"]) == (None, 3, 5)
    assert gateway.index.end_user("eve") == EndUser(
        Limited("end_user", "eve", Allowance(rpm=3, max_budget=5 * 10**12, budget_duration="1mo"))
    )
    gone = gateway.post(f"{base}/delete", {"user_ids": ["eve"]})
    assert (gone.status, gone.json["deleted_customers"]) == (200, 1)
    assert gateway.index.end_user("eve") is None
    assert gateway.get(f"{base}/info?end_user_id=eve").status == 404
    actions = [entry["action"] for entry in gateway.get("/audit/list?object_id=eve").json["audit_logs"]]
    assert actions == ["customer/delete", "customer/update", "customer/new"]


def test_a_block_holds_from_the_next_request_on_also_for_whom_nobody_made(gateway: Gateway, base: str) -> None:
    new(gateway, user_id="eve", rpm_limit=3)
    answer = gateway.post(f"{base}/block", {"user_ids": ["eve", "bob", "eve"]})
    assert [(each["user_id"], each["blocked"]) for each in answer.json["blocked_users"]] == [
        ("eve", True),
        ("bob", True),
    ]
    assert gateway.index.end_user("eve") == EndUser(Limited("end_user", "eve", Allowance(rpm=3)), blocked=True)
    assert gateway.index.end_user("bob") == EndUser(Limited("end_user", "bob", UNLIMITED), blocked=True)
    answer = gateway.post(f"{base}/unblock", {"user_ids": ["bob"]})
    assert [each["blocked"] for each in answer.json["unblocked_users"]] == [False]
    known = gateway.index.end_user("bob")
    assert known is None or not known.blocked
    assert is_blocked(gateway, "eve")


def test_a_customer_can_be_made_blocked(gateway: Gateway) -> None:
    assert new(gateway, user_id="eve", blocked=True)["blocked"] is True
    assert is_blocked(gateway, "eve")


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("new", {"user_id": "eve"}, 409, "user_id"),
        ("new", {}, 400, "user_id"),
        ("new", {"user_id": ""}, 400, "user_id"),
        ("new", {"user_id": "a\nb"}, 400, "user_id"),
        ("new", {"user_id": "sk-a-key-in-the-wrong-place"}, 400, "user_id"),
        ("new", {"user_id": "bob", "alias": "sk-looks-like-a-key"}, 400, "alias"),
        ("new", {"user_id": "bob", "budget_id": "b"}, 404, "budget_id"),
        ("new", {"user_id": "bob", "default_model": "a"}, 400, "default_model"),
        ("new", {"user_id": "bob", "allowed_model_region": "eu"}, 400, "allowed_model_region"),
        ("new", {"user_id": "bob", "max_budgte": 1}, 400, "max_budgte"),
        ("update", {"user_id": "bob", "alias": "Bob"}, 404, "user_id"),
        ("update", {"alias": "Bob"}, 400, "user_id"),
        ("delete", {"user_ids": []}, 400, "user_ids"),
        ("delete", {"user_ids": ["eve", "bob"]}, 404, "user_ids"),
        ("unblock", {"user_ids": ["eve", "bob"]}, 404, "user_ids"),
        ("block", {"user_ids": ["bob", "sk-a-key-in-the-wrong-place"]}, 400, "user_ids[1]"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_changes_nothing(
    gateway: Gateway, path: str, body: dict[str, object], status: int, param: str
) -> None:
    new(gateway, user_id="eve", blocked=True)
    before = gateway.get("/customer/list").json
    answer = gateway.post(f"/customer/{path}", body)
    assert (answer.status, answer.error["param"]) == (status, param)
    assert gateway.get("/customer/list").json == before


def test_litellms_fields_that_ask_for_nothing_are_taken(gateway: Gateway) -> None:
    fields = {"budget_id": None, "default_model": None, "allowed_model_region": None, "spend": 0.0}
    assert new(gateway, user_id="eve", **fields)["user_id"] == "eve"


def test_one_that_nobody_made_is_shown_with_what_it_spent(gateway: Gateway) -> None:
    assert gateway.get("/customer/info?end_user_id=eve").status == 404
    assert gateway.get("/customer/info").error["param"] == "end_user_id"

    def spend(transaction: Any) -> None:
        transaction.spend.set("end_user", "eve", 5, 0)
        transaction.connection.exec_driver_sql("UPDATE vllm_passthrough_spend SET total_spend = 10000000000000")

    value_of(gateway.store.change(spend))
    found = gateway.get("/customer/info?end_user_id=eve").json
    assert (found["user_id"], found["total_spend"], found["created_at"], found["max_budget"]) == ("eve", 10, None, None)
    assert set(found) == set(new(gateway, user_id="bob"))
    assert [each["user_id"] for each in gateway.get("/customer/list").json] == ["bob"]


def test_many_customers_are_listed_by_page_and_never_cut_in_silence(gateway: Gateway) -> None:
    for batch in range(3):
        users = [f"{number:04}" for number in range(batch * 400, batch * 400 + 400)]
        assert gateway.post("/customer/block", {"user_ids": users}).status == 200
    refused = gateway.get("/customer/list")
    assert (refused.status, refused.error["param"]) == (400, "page")
    assert "1200" in refused.error["message"]
    pages = [gateway.get(f"/customer/list?page={page}&page_size=500").json for page in (1, 2, 3, 4)]
    assert [len(page) for page in pages] == [500, 500, 200, 0]
    assert [each["user_id"] for page in pages for each in page] == [f"{number:04}" for number in range(1200)]
    assert gateway.get("/customer/list?page_size=1001").error["param"] == "page_size"


def test_customers_are_for_administrators(gateway: Gateway, base: str) -> None:
    key = gateway.make_key()["key"]
    for path in ("new", "update", "delete", "block", "unblock"):
        assert gateway.post(f"{base}/{path}", {"user_id": "eve"}, key).error["code"] == "route_not_allowed"
    for path in ("info?end_user_id=eve", "list"):
        assert gateway.get(f"{base}/{path}", key).error["code"] == "route_not_allowed"
    assert gateway.get(f"{base}/list", None).status == 401
    manager = gateway.make_key(key_type="management")["key"]
    assert gateway.post(f"{base}/new", {"user_id": "eve"}, manager).status == 200
