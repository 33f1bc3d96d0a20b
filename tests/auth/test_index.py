from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

from twisted_vllm.auth.authenticator import hash_key, name_key
from twisted_vllm.auth.grants import Changes, EndUser, FormerKey, KeyGrant, Snapshot, TeamGrant, UserGrant
from twisted_vllm.auth.key_index import IndexedKey, KeyIndex
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.field_policy.rules import NO_RULES, rules_of
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance, Limited

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


def test_a_key_is_joined_once() -> None:
    index = KeyIndex([made()])
    assert index.find(TOKEN) is index.find(TOKEN)


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
    kept = index.find(TOKEN)
    eve = EndUser(Limited("end_user", "eve", UNLIMITED), blocked=True)
    index.apply(Changes(end_users={"eve": eve}))
    assert (index.end_user("eve"), index.end_user("ada")) == (eve, None)
    assert index.find(TOKEN) is kept
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
