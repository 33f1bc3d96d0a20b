"""What a hostile tenant tries with the things that people may do for themselves: sequences of acts, each harmless."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import NOW, Gateway, value_of
from tests.admin.test_self_service import People, refused
from twisted_vllm.admin.self_service import OwnScope, SelfService
from twisted_vllm.auth.records import KeyRecord, Principal
from twisted_vllm.errors import RouteNotAllowed
from twisted_vllm.ratelimit.allowance import member_id


@pytest.fixture
def people(gateway: Gateway) -> People:
    return People(gateway)


# a key without a user, of a team that the user administers


def test_a_key_of_a_team_alone_does_not_escape_the_limits_of_its_maker(people: People) -> None:
    people.user("dora", max_budget=5)
    people.team("lab", "dora")
    dora = people.key(user_id="dora")
    assert "`max_budget`" in refused(people.post("/key/service-account/generate", dora, team_id="lab"))
    # nor does one that an administrator made, in the hands of who administers the team
    service = people.key(team_id="lab")
    assert "`max_budget`" in refused(people.post("/key/regenerate", dora, key=service))
    people.gateway.post("/team/update", {"team_id": "lab", "max_budget": 50})
    assert people.post("/key/service-account/generate", dora, team_id="lab").status == 200


def test_a_key_of_a_team_alone_does_not_escape_the_limits_of_its_maker_in_the_team(people: People) -> None:
    people.team("lab", "ada")
    answer = people.gateway.post("/team/member_update", {"team_id": "lab", "user_id": "ada", "max_budget_in_team": 5})
    assert answer.status == 200
    assert "`max_budget`" in refused(people.post("/key/service-account/generate", team_id="lab"))
    assert people.post("/key/generate", team_id="lab").status == 200


def test_a_key_of_a_team_alone_does_not_escape_the_models_of_its_maker(people: People) -> None:
    people.user("dora", models=["qwen*"])
    people.team("lab", "dora")
    dora = people.key(user_id="dora")
    refused(people.post("/key/service-account/generate", dora, team_id="lab"), "models")
    refused(people.post("/key/service-account/generate", dora, team_id="lab", models=["llama"]), "models")
    service = people.key(team_id="lab", models=["llama"])
    refused(people.post("/key/regenerate", dora, key=service), "models")
    made = people.post("/key/service-account/generate", dora, team_id="lab", models=["qwen-small"])
    assert made.status == 200, made.body
    refused(people.post("/key/update", dora, key=made.json["key"], models=["llama"]), "models")


def test_the_key_of_another_member_is_not_widened_beyond_the_limits_of_who_asks(people: People) -> None:
    people.user("dora", max_budget=5, models=["qwen"])
    people.team("lab", "dora", users=("bob",))
    people.gateway.post("/user/update", {"user_id": "bob", "max_budget": 1000})
    dora = people.key(user_id="dora")
    bobs = people.key(user_id="bob", team_id="lab", rpm_limit=1, models=["qwen"])
    assert "`max_budget`" in refused(people.post("/key/update", dora, key=bobs, rpm_limit=None))
    refused(people.post("/key/update", dora, key=bobs, models=["qwen", "llama"]), "models")
    people.gateway.post("/team/update", {"team_id": "lab", "max_budget": 50})
    assert people.post("/key/update", dora, key=bobs, rpm_limit=None).status == 200


# members


def test_a_member_with_limits_does_not_lose_them_by_leaving_and_returning(people: People) -> None:
    people.team("lab", "ada", users=("bob",))
    limits = {"team_id": "lab", "user_id": "bob", "max_budget_in_team": 5}
    assert people.gateway.post("/team/member_update", limits).status == 200
    refused(people.post("/team/member_delete", team_id="lab", user_id="bob"), "user_id")
    assert people.gateway.post("/team/member_delete", {"team_id": "lab", "user_id": "bob"}).status == 200


def test_a_member_who_leaves_and_returns_has_spent_what_it_spent(people: People) -> None:
    people.team("lab", "ada", users=("bob",), team_member_budget=5)
    member = member_id("lab", "bob")

    def spend(transaction: Any) -> int:
        found: int = transaction.spend.of("member", [member])[member].spend
        return found

    value_of(people.gateway.store.change(lambda transaction: transaction.spend.set("member", member, 3, 0)))
    assert people.post("/team/member_delete", team_id="lab", user_id="bob").status == 200
    assert people.post("/team/member_add", team_id="lab", member={"user_id": "bob"}).status == 200
    assert value_of(people.gateway.store.read(spend)) == 3


def test_who_administers_a_team_does_not_learn_who_else_is_known(people: People) -> None:
    people.team("lab", "ada")
    people.user("zoe", user_email="zoe@example.com")
    for path in ("/team/member_update", "/team/member_delete"):
        for known, unknown in (
            ({"user_id": "zoe"}, {"user_id": "nobody"}),
            ({"user_email": "zoe@example.com"}, {"user_email": "nobody@example.com"}),
        ):
            answers = [people.post(path, team_id="lab", role="user", **each) for each in (known, unknown)]
            assert answers[0].status == answers[1].status
            messages = [each.error["message"].replace("nobody", "zoe") for each in answers]
            assert messages[0] == messages[1]


# limits of a budget


def test_a_key_does_not_keep_the_limits_of_its_budget_when_these_shrink(people: People) -> None:
    people.gateway.post("/budget/new", {"budget_id": "small", "rpm_limit": 100, "max_budget": 50})
    people.user("dora", rpm_limit=1000, max_budget=500)
    dora = people.key(user_id="dora", budget_id="small")
    made = people.post("/key/generate", dora)
    assert made.status == 200, made.body
    for key in (dora, made.json["key"]):
        for limits in ({"rpm_limit": 100}, {"rpm_limit": 60}, {"max_budget": 50}):
            refused(people.post("/key/update", dora, key=key, **limits), next(iter(limits)))
    refused(people.post("/key/generate", dora, rpm_limit=100), "rpm_limit")
    assert people.post("/key/update", dora, key=dora, tpm_limit=100).status == 200
    people.gateway.post("/budget/update", {"budget_id": "small", "rpm_limit": 1})
    for key in (dora, made.json["key"]):
        info = people.gateway.get(f"/key/info?key={key}").json["info"]
        assert info["litellm_budget_table"]["rpm_limit"] == 1


# callers with tokens of a login service


def _made_by(people: People, principal: Principal) -> KeyRecord:
    scope = OwnScope(principal, None, SelfService(), NOW, lambda count: b"x" * count)
    record = KeyRecord("a" * 64, "sk-...aaaa", NOW, NOW, "user:ada")
    made: KeyRecord = value_of(
        people.gateway.store.read(lambda transaction: scope.new_key(transaction, record, {}, False))
    )
    return made


def test_the_organization_of_a_token_is_that_of_the_keys_that_it_makes(people: People) -> None:
    people.gateway.post("/organization/new", {"organization_id": "acme", "organization_alias": "Acme", "max_budget": 5})
    principal = Principal("key", "ada", key_id="t" * 32, user_id="ada", role="internal_user", organization_id="acme")
    assert _made_by(people, principal).organization_id == "acme"


def test_a_token_for_one_end_user_makes_no_keys_that_are_for_none(people: People) -> None:
    principal = Principal("key", "ada", key_id="t" * 32, user_id="ada", role="internal_user", end_user_id="kid")
    with pytest.raises(RouteNotAllowed, match="end user"):
        _made_by(people, principal)


# what was deleted, and made again with the same id


def test_who_is_made_again_has_spent_nothing(people: People) -> None:
    budgets = {"model_max_budget": {"qwen": 5}}
    people.user("dora", **budgets)
    people.team("lab", "ada", users=("dora",), **budgets)
    people.gateway.post("/customer/new", {"user_id": "shop", **budgets})
    people.gateway.post("/organization/new", {"organization_id": "acme", "organization_alias": "Acme", **budgets})
    key = people.key(user_id="ada", **budgets)
    key_id = people.record(key).key_id
    spenders = [
        ("member", member_id("lab", "dora")),
        *(
            ("model_budget", f"{kind}\x1f{name}\x1fqwen")
            for kind, name in (
                *(("user", "dora"), ("team", "lab"), ("end_user", "shop"), ("organization", "acme")),
                *(("key", key_id), ("member", member_id("lab", "dora"))),
            )
        ),
    ]

    def set_all(transaction: Any) -> None:
        for kind, name in spenders:
            transaction.spend.set(kind, name, 3, 0)

    def spent(transaction: Any) -> dict[tuple[str, str], int]:
        return {(kind, name): transaction.spend.of(kind, [name])[name].spend for kind, name in spenders}

    value_of(people.gateway.store.change(set_all))
    assert set(value_of(people.gateway.store.read(spent)).values()) == {3}
    for path, body in (
        ("/key/delete", {"keys": [key]}),
        ("/user/delete", {"user_ids": ["dora"]}),
        ("/team/delete", {"team_ids": ["lab"]}),
        ("/customer/delete", {"user_ids": ["shop"]}),
    ):
        assert people.gateway.post(path, body).status == 200
    answer = people.gateway.call("DELETE", "/organization/delete", body={"organization_ids": ["acme"]})
    assert answer.status == 200, answer.body
    left = {name: value for name, value in value_of(people.gateway.store.read(spent)).items() if value}
    assert left == {}
