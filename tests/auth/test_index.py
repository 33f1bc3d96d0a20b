from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

from twisted_vllm.auth.authenticator import hash_key, name_key
from twisted_vllm.auth.grants import (
    Changes,
    EndUser,
    FormerKey,
    KeyGrant,
    OrganizationGrant,
    Snapshot,
    TeamGrant,
    UserGrant,
)
from twisted_vllm.auth.key_index import GatewayLimits, IndexedKey, KeyIndex
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.field_policy.rules import NO_RULES, rules_of
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance, Limited, ModelBudget, member_id, model_budget_id

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SECONDS = NOW.timestamp()
TOKEN = hash_key("sk-tenant-0123456789abcd")


def made(**changes: Any) -> KeyRecord:
    record = KeyRecord(token=TOKEN, key_name=name_key("sk-abcd"), created_at=NOW, updated_at=NOW, created_by="master")
    return attrs.evolve(record, **changes)


def indexed(index: KeyIndex, token: str = TOKEN) -> IndexedKey:
    found = index.find(token)
    assert found is not None
    return found


def test_a_key_is_found_until_it_is_gone() -> None:
    index = KeyIndex([made()])
    assert (len(index), TOKEN in index) == (1, True)
    assert index.find(TOKEN) is not None
    index.apply(Changes(keys={TOKEN: None, "0" * 64: None}))
    assert (len(index), TOKEN in index, index.find(TOKEN)) == (0, False, None)


def test_a_change_acts_on_a_key_that_was_used_before() -> None:
    index = KeyIndex([made(key_alias="old")])
    assert indexed(index).principal.name == "old"
    index.add(made(key_alias="new", blocked=True))
    found = indexed(index)
    assert (found.principal.name, found.blocked) == ("new", True)


def test_a_key_stays_current_while_others_change() -> None:
    index = KeyIndex([made(user_id="ada", team_id="x")])
    found = indexed(index)
    index.add(made(token="1" * 64, user_id="bob", team_id="y"))
    index.apply(Changes(users={"bob": UserGrant(models=("a",))}, teams={"y": TeamGrant(blocked=True)}))
    index.apply(Changes(members={member_id("x", "bob"): Allowance(rpm=1), member_id("y", "ada"): Allowance(rpm=1)}))
    index.apply(Changes(organizations={"acme": OrganizationGrant()}, former={"2" * 64: None}))
    assert index.is_current(found)


def test_replacing_all_forgets_what_is_not_there_any_more() -> None:
    index = KeyIndex([made()])
    assert index.find(TOKEN) is not None
    other = made(token="1" * 64)
    index.replace_all(Snapshot(keys=[KeyGrant.of(other)]))
    assert index.find(TOKEN) is None
    assert len(index) == 1


def test_the_principal_carries_what_requests_need() -> None:
    record = made(
        models=("a",),
        allowed_routes=("inference",),
        aliases={"gpt-4": "qwen"},
        priority=5,
        granted_headers=("x-session-id",),
        user_id="ada",
        team_id="x",
        key_id="7" * 32,
        tags=("blue",),
        allowance=Allowance(rpm=1),
        cache_salt="salt",
        fields=rules_of(("background",)),
    )
    principal = indexed(KeyIndex([record])).principal
    assert principal == attrs.evolve(
        principal,
        kind="key",
        name="sk-...abcd",
        hash_prefix=TOKEN[:8],
        models=("a",),
        allowed_routes=("inference",),
        aliases={"gpt-4": "qwen"},
        priority=5,
        granted_headers=frozenset({b"x-session-id"}),
        user_id="ada",
        team_id="x",
        key_id="7" * 32,
        tags=("blue",),
        limited=(Limited("key", "7" * 32, Allowance(rpm=1)),),
        cache_salt="salt",
        key_fields=rules_of(("background",)),
        team_fields=NO_RULES,
    )
    assert "'salt'" not in repr(principal) + repr(record)


def test_a_key_is_held_to_the_limits_of_itself_its_user_and_its_team_in_this_order() -> None:
    of_key, of_user, of_team = Allowance(rpm=0), Allowance(model_tpm={"a": 9}), Allowance(max_budget=10**12)
    index = KeyIndex([made(user_id="ada", team_id="x", allowance=of_key)])
    assert indexed(index).principal.limited == (Limited("key", TOKEN[:32], of_key),)
    index.apply(Changes(users={"ada": UserGrant(allowance=of_user)}, teams={"x": TeamGrant(allowance=of_team)}))
    assert indexed(index).principal.limited == (
        Limited("key", TOKEN[:32], of_key),
        Limited("user", "ada", of_user),
        Limited("team", "x", of_team),
    )
    index.add(made(user_id="ada", team_id="x"))
    index.apply(Changes(users={"ada": None}))
    assert indexed(index).principal.limited == (Limited("team", "x", of_team),)


def test_limits_are_found_by_what_a_ledger_row_names() -> None:
    of_key, of_user = Allowance(budget_duration="1d"), Allowance(max_budget=1)
    index = KeyIndex([made(allowance=of_key), made(token="1" * 64)])
    index.apply(
        Changes(
            users={"ada": UserGrant(allowance=of_user)},
            teams={"x": TeamGrant(allowance=of_user)},
            end_users={"eve": EndUser(Limited("end_user", "eve", of_user))},
        )
    )
    for kind, name, allowance in (
        ("key", TOKEN[:32], of_key),
        ("key", "1" * 32, UNLIMITED),
        ("user", "ada", of_user),
        ("team", "x", of_user),
        ("end_user", "eve", of_user),
    ):
        assert index.allowance_of(kind, name) == allowance
        assert index.allowance_of(kind, "nobody") == UNLIMITED
    regenerated = made(token="2" * 64, key_id=TOKEN[:32], allowance=of_user)
    index.apply(Changes(keys={"2" * 64: KeyGrant.of(regenerated), TOKEN: None}))
    assert index.allowance_of("key", TOKEN[:32]) == of_user
    index.apply(Changes(keys={"2" * 64: None}))
    assert index.allowance_of("key", TOKEN[:32]) == UNLIMITED


def test_who_has_no_limits_is_not_looked_at() -> None:
    index = KeyIndex([made(user_id="ada", allowance=Allowance())])
    index.apply(Changes(users={"ada": UserGrant(models=("a",))}))
    principal = indexed(index).principal
    assert (principal.limited, principal.tags, principal.cache_salt) == ((), (), "")


def test_an_end_user_is_known_while_there_is_something_to_know() -> None:
    index = KeyIndex([made()])
    kept = indexed(index)
    eve = EndUser(Limited("end_user", "eve", UNLIMITED), blocked=True)
    index.apply(Changes(end_users={"eve": eve}))
    assert (index.end_user("eve"), index.end_user("ada")) == (eve, None)
    assert index.is_current(kept)
    index.apply(Changes(end_users={"eve": None}))
    assert index.end_user("eve") is None
    index.replace_all(Snapshot(end_users={"eve": eve}))
    assert index.end_user("eve") is eve


def test_a_key_has_the_models_and_the_block_of_its_user_and_team_where_these_exist() -> None:
    index = KeyIndex([made(user_id="ada", team_id="x")])
    assert not indexed(index).principal.restricts_models
    index.apply(Changes(users={"ada": UserGrant(models=("a",))}, teams={"x": TeamGrant(models=("b",), blocked=True)}))
    found = indexed(index)
    assert (found.principal.user_models, found.principal.team_models, found.team_blocked) == (("a",), ("b",), True)
    assert found.principal.restricts_models
    index.apply(Changes(users={"ada": None}, teams={"x": None}))
    assert not indexed(index).team_blocked
    assert not indexed(index).principal.restricts_models


def test_a_former_value_acts_as_the_key_until_its_end_and_not_longer_than_the_key() -> None:
    old = "2" * 64
    index = KeyIndex([made(key_alias="team")])
    index.apply(Changes(former={old: FormerKey(old, TOKEN, SECONDS + 60)}))
    found = indexed(index, old)
    successor = indexed(index).principal
    assert (found.token, found.replaced) == (TOKEN, True)
    assert found.principal == attrs.evolve(successor, expires=SECONDS + 60)
    index.add(made(expires=NOW + timedelta(seconds=30)))
    assert indexed(index, old).principal.expires == SECONDS + 30
    index.apply(Changes(keys={TOKEN: None}))
    assert index.find(old) is None


def test_who_may_use_certain_models_only_is_not_granted_the_headers_that_choose_another() -> None:
    granted = ("x-session-id", "x-amzn-sagemaker-adapter-identifier")
    index = KeyIndex([made(granted_headers=granted, team_id="x")])
    assert len(indexed(index).principal.granted_headers) == 2
    index.apply(Changes(teams={"x": TeamGrant(models=("a",))}))
    assert indexed(index).principal.granted_headers == {b"x-session-id"}


def test_the_limits_of_a_membership_an_organization_and_the_gateway_hold_for_a_key() -> None:
    one, two, three = Allowance(max_budget=1), Allowance(rpm=2), Allowance(max_budget=3)
    index = KeyIndex([made(user_id="ada", team_id="x")])
    assert indexed(index).principal.limited == ()
    index.apply(Changes(teams={"x": TeamGrant(organization_id="acme", aliases={"mine": "m", "own": "n"})}))
    index.apply(Changes(organizations={"acme": OrganizationGrant(("m*",), two)}))
    index.apply(Changes(members={member_id("x", "ada"): one, member_id("x", "bob"): two}))
    index.reconfigure(GatewayLimits(proxy=three))
    principal = indexed(index).principal
    assert principal.limited == (
        Limited("member", member_id("x", "ada"), one),
        Limited("organization", "acme", two),
        Limited("proxy", "proxy", three),
    )
    assert (principal.organization_id, principal.organization_models) == ("acme", ("m*",))
    assert principal.restricts_models
    assert index.of_everybody == (Limited("proxy", "proxy", three),)
    for kind, id, allowance in (("organization", "acme", two), ("proxy", "proxy", three)):
        assert index.allowance_of(kind, id) == allowance
    index.apply(Changes(members={member_id("x", "ada"): None}, organizations={"acme": None}))
    assert indexed(index).principal.limited == (Limited("proxy", "proxy", three),)


def test_an_organization_of_the_keys_own_wins_over_that_of_its_team() -> None:
    index = KeyIndex([made(team_id="x", organization_id="own")])
    index.apply(Changes(teams={"x": TeamGrant(organization_id="acme")}))
    assert indexed(index).principal.organization_id == "own"


def test_a_teams_names_of_models_are_those_of_its_keys_whose_own_win() -> None:
    index = KeyIndex([made(team_id="x", aliases={"own": "mine"})])
    index.apply(Changes(teams={"x": TeamGrant(aliases={"own": "teams", "fast": "qwen"})}))
    assert indexed(index).principal.aliases == {"own": "mine", "fast": "qwen"}


def test_the_role_is_that_of_the_user() -> None:
    index = KeyIndex([made(user_id="ada"), made(token="1" * 64)])
    assert indexed(index).principal.role == "internal_user"
    index.apply(Changes(users={"ada": UserGrant(role="proxy_admin")}))
    assert indexed(index).principal.role == "proxy_admin"
    nobody = index.find("1" * 64)
    assert nobody is not None and nobody.principal.role == ""


def test_end_users_without_limits_of_their_own_have_those_of_the_settings() -> None:
    index = KeyIndex()
    assert index.end_user("eve") is None and not index.has_end_users
    index.apply(Changes(shared={"small": Allowance(rpm=1, max_budget=5)}))
    index.reconfigure(GatewayLimits(end_user=Allowance(max_budget=7), end_user_budget="small"))
    limits = Allowance(rpm=1, max_budget=7)
    assert index.end_user("eve") == EndUser(Limited("end_user", "eve", limits))
    assert index.has_end_users
    assert index.allowance_of("end_user", "eve") == limits
    known = EndUser(Limited("end_user", "bob", UNLIMITED), blocked=True)
    index.apply(Changes(end_users={"bob": known}))
    assert index.end_user("bob") == known
    index.apply(Changes(end_users={"bob": EndUser(Limited("end_user", "bob", UNLIMITED))}))
    assert index.allowance_of("end_user", "bob") == limits
    index.apply(Changes(shared={"small": None}))
    assert index.allowance_of("end_user", "eve") == Allowance(max_budget=7)


def test_budgets_for_one_model_pay_for_its_requests_by_any_of_its_names() -> None:
    daily = ModelBudget(5, "1d")
    index = KeyIndex([made(allowance=Allowance(model_budgets={"fast": daily, "other": daily}))])
    index.reconfigure(GatewayLimits(model_aliases={"fast": "qwen"}))
    limited = indexed(index).principal.limited
    id = model_budget_id("key", TOKEN[:32], "fast")
    [found] = index.model_budgets(limited, "qwen")
    assert found == Limited("model_budget", id, Allowance(max_budget=5, budget_duration="1d"))
    assert index.allowance_of("model_budget", id) == found.allowance
    assert index.also_pay([("key", TOKEN[:32])], "qwen") == [("model_budget", id)]
    assert index.also_pay([("key", TOKEN[:32])], "unknown") == []
    assert index.budgets() == {(found.kind, model_budget_id("key", TOKEN[:32], name)) for name in ("fast", "other")}


def test_the_budgets_of_a_membership_and_of_the_gateway_pay_while_there_are_some() -> None:
    index, payers = KeyIndex(), [("user", "ada"), ("team", "x")]
    assert index.also_pay(payers, "m") == []
    index.reconfigure(GatewayLimits(proxy=Allowance(max_budget=1)))
    index.apply(Changes(members={member_id("x", "ada"): Allowance(max_budget=1)}))
    assert index.also_pay(payers, "m") == [("proxy", "proxy"), ("member", member_id("x", "ada"))]
    index.apply(Changes(members={member_id("x", "ada"): Allowance(rpm=1)}))
    assert index.also_pay(payers, "m") == [("proxy", "proxy")]
