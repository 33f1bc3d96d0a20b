"""Limits and budgets of keys, users, teams and end users: taken, kept, shown and told to whoever enforces them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import Gateway
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance, Limited, ModelBudget

KEY = "sk-custom-0123456789"

FIELDS: dict[str, Any] = {
    "rpm_limit": 0,
    "tpm_limit": 1000,
    "max_parallel_requests": 3,
    "model_rpm_limit": {"qwen": 5, "llama": 0},
    "model_tpm_limit": {"qwen": 500},
    "max_budget": 0.1,
    "soft_budget": 0,
    "budget_duration": "30d",
}
ALLOWANCE = Allowance(
    rpm=0,
    tpm=1000,
    parallel=3,
    model_rpm={"qwen": 5, "llama": 0},
    model_tpm={"qwen": 500},
    max_budget=10**11,
    soft_budget=0,
    budget_duration="30d",
)
NONE = dict.fromkeys(FIELDS)

#: how each is made, changed and seen: the path, the body that names it, where the record stands in the answer
OWNERS: dict[str, dict[str, Any]] = {
    "key": {
        "name": {"key": KEY},
        "new": "/key/generate",
        "update": "/key/update",
        "info": (f"/key/info?key={KEY}", "info"),
    },
    "user": {
        "name": {"user_id": "ada"},
        "new": "/user/new",
        "update": "/user/update",
        "info": ("/user/info?user_id=ada", "user_info"),
    },
    "team": {
        "name": {"team_id": "x"},
        "new": "/team/new",
        "update": "/team/update",
        "info": ("/team/info?team_id=x", "team_info"),
    },
    "end_user": {
        "name": {"user_id": "eve"},
        "new": "/customer/new",
        "update": "/customer/update",
        "info": ("/customer/info?end_user_id=eve", None),
    },
}


class Owner:
    """A key, user, team or end user, and the way to it."""

    def __init__(self, gateway: Gateway, kind: str) -> None:
        self.kind = kind
        self.name: dict[str, str] = OWNERS[kind]["name"]
        self._gateway = gateway

    def new(self, **fields: object) -> Any:
        return self._post(OWNERS[self.kind]["new"], fields)

    def update(self, **fields: object) -> Any:
        answer = self._post(OWNERS[self.kind]["update"], fields)
        return answer.get("data", answer)

    def _post(self, path: str, fields: dict[str, object]) -> Any:
        answer = self._gateway.post(path, {**self.name, **fields})
        assert answer.status == 200, answer.body
        return answer.json

    def info(self) -> Any:
        path, place = OWNERS[self.kind]["info"]
        answer = self._gateway.get(path).json
        return answer if place is None else answer[place]

    def limits(self) -> tuple[Limited, ...]:
        """What requests meet, of a key that belongs to it or asks for it."""
        index = self._gateway.index
        if self.kind == "end_user":
            known = index.end_user("eve")
            return () if known is None or known.limited.allowance == UNLIMITED else (known.limited,)
        fields = {} if self.kind == "key" else self.name
        made = self._gateway.get(f"/key/info?key={KEY}")
        if made.status == 404:
            self._gateway.make_key(key=KEY, **fields)
        found = index.find(self._gateway.get(f"/key/info?key={KEY}").json["info"]["token"])
        assert found is not None
        return found.principal.limited


@pytest.fixture(params=list(OWNERS))
def owner(gateway: Gateway, request: pytest.FixtureRequest) -> Owner:
    return Owner(gateway, request.param)


def limits_in(report: Any) -> dict[str, Any]:
    return {name: report[name] for name in FIELDS}


def test_limits_are_shown_as_they_were_given_and_requests_are_held_to_them(owner: Owner) -> None:
    assert limits_in(owner.new(**FIELDS)) == FIELDS
    assert limits_in(owner.info()) == FIELDS
    [limited] = owner.limits()
    assert (limited.kind, limited.allowance) == (owner.kind, ALLOWANCE)
    if owner.kind != "key":
        assert limited.id in owner.name.values()


def test_a_budget_for_a_model_has_an_amount_and_perhaps_a_period_under_either_of_two_names(owner: Owner) -> None:
    given = {"qwen": {"budget_limit": 0.1, "time_period": "1d"}, "llama": {"max_budget": 2}, "phi": 3}
    expected = {
        "qwen": {"max_budget": 0.1, "budget_limit": 0.1, "budget_duration": "1d", "time_period": "1d"},
        "llama": {"max_budget": 2.0, "budget_limit": 2.0, "budget_duration": None, "time_period": None},
        "phi": {"max_budget": 3.0, "budget_limit": 3.0, "budget_duration": None, "time_period": None},
    }
    assert owner.new(model_max_budget=given)["model_max_budget"] == expected
    assert owner.info()["model_max_budget"] == expected
    [limited] = [each for each in owner.limits() if each.kind == owner.kind]
    assert limited.allowance.model_budgets == {
        "qwen": ModelBudget(10**11, "1d"),
        "llama": ModelBudget(2 * 10**12),
        "phi": ModelBudget(3 * 10**12),
    }
    assert owner.update(model_max_budget=None)["model_max_budget"] == owner.info()["model_max_budget"] == {}
    assert owner.limits() == ()


def test_a_number_without_a_fraction_is_whole(owner: Owner) -> None:
    made = owner.new(rpm_limit=7.0, model_rpm_limit={"a": 8.0})
    assert (made["rpm_limit"], made["model_rpm_limit"]) == (7, {"a": 8})


def test_who_was_given_none_has_none(owner: Owner) -> None:
    assert limits_in(owner.new()) == NONE
    assert owner.limits() == ()


def test_an_update_keeps_what_is_absent_clears_with_null_and_acts_at_once(owner: Owner) -> None:
    owner.new(**FIELDS)
    assert limits_in(owner.update(rpm_limit=7, model_rpm_limit={"b": 1})) == {
        **FIELDS,
        "rpm_limit": 7,
        "model_rpm_limit": {"b": 1},
    }
    assert limits_in(owner.update(blocked=None) if owner.kind != "user" else owner.update(models=None)) == {
        **FIELDS,
        "rpm_limit": 7,
        "model_rpm_limit": {"b": 1},
    }
    [limited] = owner.limits()
    assert (limited.allowance.rpm, limited.allowance.max_budget) == (7, 10**11)
    changed = owner.update(**dict.fromkeys((*FIELDS,)))
    assert limits_in(changed) == limits_in(owner.info()) == NONE
    assert owner.limits() == ()


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("rpm_limit", -1, "rpm_limit"),
        ("rpm_limit", 1.5, "rpm_limit"),
        ("rpm_limit", True, "rpm_limit"),
        ("rpm_limit", "10", "rpm_limit"),
        ("rpm_limit", 2**63, "rpm_limit"),
        ("tpm_limit", -1, "tpm_limit"),
        ("max_parallel_requests", [1], "max_parallel_requests"),
        ("model_rpm_limit", 5, "model_rpm_limit"),
        ("model_rpm_limit", {"a": -1}, "model_rpm_limit[...]"),
        ("model_rpm_limit", {"": 1}, "model_rpm_limit"),
        ("model_tpm_limit", {"a\n": 1}, "model_tpm_limit"),
        ("max_budget", -0.01, "max_budget"),
        ("max_budget", "1", "max_budget"),
        ("max_budget", True, "max_budget"),
        ("max_budget", 1e300, "max_budget"),
        ("max_budget", 10**400, "max_budget"),
        ("soft_budget", -1, "soft_budget"),
        ("budget_duration", "", "budget_duration"),
        ("budget_duration", "0d", "budget_duration"),
        ("budget_duration", "-1", "budget_duration"),
        ("budget_duration", "monthly", "budget_duration"),
        ("budget_duration", "999999d", "budget_duration"),
        ("budget_duration", 30, "budget_duration"),
        ("budget_id", 3, "budget_id"),
        ("model_max_budget", {"a": -1}, "model_max_budget[...]"),
        ("model_max_budget", {"a*": 1}, "model_max_budget"),
        ("model_max_budget", {"a": {}}, "model_max_budget"),
        ("model_max_budget", {"a": {"max_budget": 1, "budget_limit": 1}}, "model_max_budget"),
        ("model_max_budget", {"a": {"max_budget": 1, "time_period": "monthly"}}, "model_max_budget"),
        (
            "model_max_budget",
            {"a": {"max_budget": 1, "time_period": "1d", "budget_duration": "1d"}},
            "model_max_budget",
        ),
        ("model_max_budget", {"a": {"max_budget": 1, "tpm_limit": 1}}, "model_max_budget[...].tpm_limit"),
    ],
)
def test_what_is_no_limit_is_refused_by_its_path_and_changes_nothing(
    gateway: Gateway, owner: Owner, field: str, value: object, param: str
) -> None:
    owner.new(rpm_limit=5)
    answer = gateway.post(OWNERS[owner.kind]["update"], {**owner.name, field: value})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_request", param)
    assert limits_in(owner.info()) == {**NONE, "rpm_limit": 5}


@pytest.mark.parametrize("amount", [0, 1e-12, 0.1, 3, 12.34, 123456.789012, 9_000_000])
def test_a_budget_comes_back_as_the_number_that_was_sent(owner: Owner, amount: float) -> None:
    assert owner.new(max_budget=amount)["max_budget"] == amount
    assert owner.info()["max_budget"] == amount


def test_the_audit_shows_limits_in_the_words_of_the_api(gateway: Gateway, owner: Owner) -> None:
    owner.new(**FIELDS)
    owner.update(max_budget=None)
    [entry] = gateway.get(f"/audit/list?action={OWNERS[owner.kind]['update'][1:]}").json["audit_logs"]
    assert entry["object_type"] == owner.kind
    assert limits_in(entry["before"]) == FIELDS
    assert limits_in(entry["after"]) == {**FIELDS, "max_budget": None}
    assert "allowance" not in entry["before"]


def test_a_key_is_held_to_its_own_limits_then_its_user_s_then_its_team_s(gateway: Gateway) -> None:
    gateway.post("/user/new", {"user_id": "ada", "auto_create_key": False, "rpm_limit": 2})
    gateway.post("/team/new", {"team_id": "x", "max_budget": 3})
    made = gateway.make_key(user_id="ada", team_id="x", tpm_limit=1)
    limited = gateway.principal_of(made["token"]).limited
    assert [(each.kind, each.id) for each in limited[1:]] == [("user", "ada"), ("team", "x")]
    assert [each.allowance for each in limited] == [
        Allowance(tpm=1),
        Allowance(rpm=2),
        Allowance(max_budget=3 * 10**12),
    ]
    # regenerated, it is the same key to whoever counts
    new = gateway.post("/key/regenerate", {"key": made["key"], "rpm_limit": 9}).json
    found = gateway.principal_of(new["token"]).limited
    assert (found[0].id, found[0].allowance) == (limited[0].id, Allowance(rpm=9, tpm=1))


def test_service_accounts_and_bulk_updates_take_limits_as_well(gateway: Gateway) -> None:
    made = gateway.post("/key/service-account/generate", {"team_id": "x", "key": KEY, "rpm_limit": 4}).json
    assert made["rpm_limit"] == 4
    done = gateway.post("/key/bulk_update", {"keys": [{"key": KEY, "tpm_limit": 5}]}).json["successful_updates"]
    assert (done[0]["key_info"]["rpm_limit"], done[0]["key_info"]["tpm_limit"]) == (4, 5)
    [shown] = gateway.get("/key/list?return_full_object=true").json["keys"]
    assert (shown["rpm_limit"], shown["tpm_limit"]) == (4, 5)
    [shown] = gateway.post("/v2/key/info", {"keys": [KEY]}).json["info"]
    assert (shown["rpm_limit"], shown["tpm_limit"]) == (4, 5)
