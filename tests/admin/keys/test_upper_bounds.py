"""``litellm_settings.upperbound_key_generate_params``: no key gets more than the operator allows, whoever asks."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tests.admin.admin_harness import Gateway
from twisted_vllm.config.settings import KeyUpperBounds

BOUNDS = KeyUpperBounds(
    max_budget=Decimal("10.5"),
    budget_duration="30d",
    duration="1mo",
    max_parallel_requests=4,
    tpm_limit=1000,
    rpm_limit=0,
)
#: what a key has that asks for nothing, and its time
FILLED: dict[str, Any] = {
    "max_budget": 10.5,
    "budget_duration": "30d",
    "max_parallel_requests": 4,
    "tpm_limit": 1000,
    "rpm_limit": 0,
    "expires": "2026-04-01T12:00:00Z",
}
#: what is too much, and the most that the refusal names
TOO_MUCH = [
    ("max_budget", 10.500000000001, "10.5"),
    ("budget_duration", "31d", "30d"),
    ("budget_duration", "1mo", "30d"),
    ("duration", "32d", "1mo"),
    ("duration", "-1", "1mo"),
    ("duration", -1, "1mo"),
    ("max_parallel_requests", 5, "4"),
    ("tpm_limit", 1001, "1000"),
    ("rpm_limit", 1, "0"),
]
KEY = "sk-custom-0123456789"


@pytest.fixture
def bounded() -> Gateway:
    return Gateway(key_bounds=BOUNDS)


def bounds_in(report: Any) -> dict[str, Any]:
    return {name: report[name] for name in FILLED}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/key/generate", {}),
        ("/key/generate", {"max_budget": None, "duration": None}),
        ("/key/service-account/generate", {"team_id": "lab"}),
        ("/user/new", {"user_id": "ada"}),
    ],
)
def test_a_new_key_that_asks_for_nothing_gets_the_bounds(bounded: Gateway, path: str, fields: dict[str, Any]) -> None:
    made = bounded.post(path, fields)
    assert made.status == 200, made.body
    info = bounded.get(f"/key/info?key={made.json['key']}").json["info"]
    assert bounds_in(info) == FILLED


def test_a_new_key_gets_what_it_asks_for_up_to_the_bounds(bounded: Gateway) -> None:
    asked = {"max_budget": 10.5, "budget_duration": "1d", "max_parallel_requests": 0, "tpm_limit": 7, "rpm_limit": 0}
    made = bounded.make_key(**asked, duration="1mo")
    assert bounds_in(made) == {**asked, "expires": FILLED["expires"]}


@pytest.mark.parametrize(("name", "value", "most"), TOO_MUCH)
@pytest.mark.parametrize("path", ["/key/generate", "/key/update", "/key/regenerate", "/key/service-account/generate"])
def test_more_is_refused_and_changes_nothing(bounded: Gateway, path: str, name: str, value: object, most: str) -> None:
    bounded.make_key(key=KEY)
    named: dict[str, object] = {"team_id": "lab"} if path.endswith("generate") else {"key": KEY}
    if path == "/key/regenerate":
        named["key"] = KEY
    if path == "/key/generate":
        named = {}
    answer = bounded.post(path, {**named, name: value})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_request", name)
    assert f"at most {most} (litellm_settings.upperbound_key_generate_params)" in answer.error["message"]
    assert len(bounded.records()) == 1
    assert bounds_in(bounded.get(f"/key/info?key={KEY}").json["info"]) == FILLED


def test_the_key_of_a_new_user_is_held_to_the_bounds(bounded: Gateway) -> None:
    answer = bounded.post("/user/new", {"user_id": "ada", "duration": "32d"})
    assert (answer.status, answer.error["param"]) == (400, "duration")


@pytest.mark.parametrize("name", ["max_budget", "budget_duration", "max_parallel_requests", "tpm_limit", "rpm_limit"])
@pytest.mark.parametrize("path", ["/key/update", "/key/regenerate"])
def test_an_update_cannot_take_a_limit_away(bounded: Gateway, path: str, name: str) -> None:
    key = bounded.make_key(max_budget=1, budget_duration="1d", max_parallel_requests=1, tpm_limit=1)["key"]
    answer = bounded.post(path, {"key": key, name: None})
    assert answer.status == 200, answer.body
    assert answer.json[name] == FILLED[name]


def test_an_update_cannot_make_a_key_last_for_ever(bounded: Gateway) -> None:
    key = bounded.make_key(duration="1d")["key"]
    assert bounded.post("/key/update", {"key": key, "duration": None}).json["expires"] == FILLED["expires"]


def test_a_bulk_update_is_held_to_the_bounds_key_by_key(bounded: Gateway) -> None:
    keys = [bounded.make_key()["key"] for _ in range(2)]
    body = {"keys": [{"key": keys[0], "tpm_limit": 1001}, {"key": keys[1], "tpm_limit": 5}]}
    answer = bounded.post("/key/bulk_update", body).json
    assert [each["index"] for each in answer["failed_updates"]] == [0]
    assert [each["key_info"]["tpm_limit"] for each in answer["successful_updates"]] == [5]


def test_an_update_of_something_else_leaves_an_older_key_as_it_is() -> None:
    before = Gateway()
    key = before.make_key(tpm_limit=9999)["key"]
    after = Gateway(store=before.store, key_bounds=BOUNDS)
    answer = after.post("/key/update", {"key": key, "key_alias": "old"})
    assert (answer.status, answer.json["tpm_limit"], answer.json["expires"]) == (200, 9999, None)


def test_without_bounds_a_key_may_have_anything(gateway: Gateway) -> None:
    made = gateway.make_key()
    assert bounds_in(made) == dict.fromkeys(FILLED)
