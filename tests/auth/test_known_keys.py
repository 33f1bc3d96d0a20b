"""The keys in use, by their credential: only authenticated ones, current ones, and no more than there is room for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_vllm.auth import known_keys
from twisted_vllm.auth.authenticator import Authenticator, hash_key
from twisted_vllm.auth.grants import (
    Changes,
    FormerKey,
    KeyGrant,
    OrganizationGrant,
    Snapshot,
    TeamGrant,
    UserGrant,
)
from twisted_vllm.auth.key_index import GatewayLimits, IndexedKey, KeyIndex
from twisted_vllm.auth.known_keys import LONGEST_CREDENTIAL, KnownKeys
from twisted_vllm.auth.records import MASTER, Principal
from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import MissingApiKey
from twisted_vllm.ratelimit.allowance import Allowance, member_id

NOW = 1_000.0
MASTER_KEY = "sk-master-0123456789"


def grant(key: str, **values: Any) -> KeyGrant:
    token = hash_key(key)
    return KeyGrant(token, token[:32], "sk-...0000", **values)


def headers(key: str) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + key.encode()}


class Harness:
    """An authenticator of some keys."""

    def __init__(self, *grants: KeyGrant, **others: Any) -> None:
        self.index = KeyIndex()
        self.index.replace_all(Snapshot(keys=grants, **others))
        self.authenticator = Authenticator(Secret(MASTER_KEY), self.index)

    def authenticate(self, key: str, now: float = NOW) -> Principal:
        return self.authenticator.authenticate(headers(key), now)

    def refuses(self, key: str, now: float = NOW) -> bool:
        try:
            self.authenticate(key, now)
        except MissingApiKey:
            return True
        return False


def test_a_key_in_use_is_found_by_its_credential() -> None:
    harness = Harness(grant("sk-a"))
    principal = harness.authenticate("sk-a")
    known = harness.authenticator.known(b"sk-a")
    assert known is not None
    assert known.principal is principal
    assert harness.authenticate("sk-a") is principal
    assert harness.authenticator.keys_in_use == 1


def test_nobody_else_is_kept() -> None:
    harness = Harness(grant("sk-blocked", blocked=True), grant("sk-old", expires=NOW), grant("sk-team", team_id="x"))
    harness.index.apply(Changes(teams={"x": TeamGrant(blocked=True)}))
    for key in ("sk-unknown", "sk-blocked", "sk-old", "sk-team"):
        assert harness.refuses(key)
    assert harness.authenticate(MASTER_KEY) is MASTER
    assert harness.authenticator.keys_in_use == 0


def test_an_open_gateway_keeps_keys_and_no_strangers() -> None:
    harness = Harness(grant("sk-a"))
    harness.authenticator.reconfigure(None)
    assert harness.authenticate("sk-a").kind == "key"
    assert harness.authenticate("sk-stranger").kind == "anonymous"
    assert harness.authenticator.keys_in_use == 1
    # a key that is made now is no stranger any more
    harness.index.apply(Changes(keys={hash_key("sk-stranger"): grant("sk-stranger", blocked=True)}))
    assert harness.refuses("sk-stranger")


@pytest.mark.parametrize(
    "changes",
    [
        Changes(keys={hash_key("sk-a"): None}),
        Changes(keys={hash_key("sk-a"): grant("sk-a", user_id="ada", team_id="x", blocked=True)}),
        Changes(keys={hash_key("sk-a"): grant("sk-a", user_id="ada", team_id="x", expires=NOW)}),
        Changes(teams={"x": TeamGrant(blocked=True)}),
    ],
    ids=["deleted", "blocked", "expired", "of a blocked team"],
)
def test_a_key_in_use_stops_at_once(changes: Changes) -> None:
    harness = Harness(grant("sk-a", user_id="ada", team_id="x"), grant("sk-b"))
    harness.authenticate("sk-a")
    kept = harness.authenticate("sk-b")
    harness.index.apply(changes)
    assert harness.refuses("sk-a")
    assert harness.authenticate("sk-b") is kept


def test_a_key_in_use_stops_when_it_expires() -> None:
    harness = Harness(grant("sk-a", expires=NOW + 5))
    harness.authenticate("sk-a")
    assert not harness.refuses("sk-a", NOW + 4.9)
    assert harness.refuses("sk-a", NOW + 5)


def test_a_former_value_in_use_follows_its_key() -> None:
    former = FormerKey(hash_key("sk-old"), hash_key("sk-a"), NOW + 60)
    harness = Harness(grant("sk-a"), former=(former,))
    assert harness.authenticate("sk-old").key_id == hash_key("sk-a")[:32]
    assert harness.refuses("sk-old", NOW + 60)
    harness.index.apply(Changes(keys={hash_key("sk-a"): grant("sk-a", blocked=True)}))
    assert harness.refuses("sk-old")


def test_a_key_that_becomes_the_master_key_is_the_master_key() -> None:
    harness = Harness(grant("sk-a"))
    assert harness.authenticate("sk-a").kind == "key"
    harness.authenticator.reconfigure(Secret("sk-a"))
    assert harness.authenticate("sk-a") is MASTER


@pytest.mark.parametrize("credential", ["bearer", "Bearer", "sk-ä", "k" * (LONGEST_CREDENTIAL + 1)])
def test_what_is_read_differently_in_another_header_is_not_kept(credential: str) -> None:
    harness = Harness(grant(credential))
    assert harness.authenticate(credential).kind == "key"
    assert harness.authenticator.keys_in_use == 0


def test_a_key_that_is_not_used_is_forgotten_by_the_second_sweep() -> None:
    harness = Harness(grant("sk-a"), grant("sk-b"))
    harness.authenticate("sk-a")
    harness.authenticate("sk-b")
    harness.authenticator.sweep()
    assert harness.authenticator.keys_in_use == 2
    kept = harness.authenticate("sk-b")
    harness.authenticator.sweep()
    assert harness.authenticator.known(b"sk-a") is None
    assert harness.authenticate("sk-b") is kept


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_keys, "MOST_KNOWN", 3)
    keys = KnownKeys()
    made = KeyIndex().join(grant("sk-a"))
    for number in range(5):
        keys.keep(f"sk-{number}", made)
    assert [number for number in range(5) if keys.get(b"sk-%d" % number) is not None] == [2, 3, 4]
    assert len(keys) == 3


def test_no_credential_is_shown() -> None:
    harness = Harness(grant("sk-secret-0123456789"))
    harness.authenticate("sk-secret-0123456789")
    known = harness.authenticator._known
    assert len(known) == 1
    assert "secret" not in repr(known) + repr(harness.authenticator) + repr(known.get(b"sk-secret-0123456789"))


KEYS, USERS, TEAMS, ORGANIZATIONS = ("k0", "k1", "k2"), ("u0", "u1"), ("t0", "t1"), ("o0",)
ALLOWANCES = st.builds(Allowance, rpm=st.none() | st.integers(0, 2))
GRANTS = st.fixed_dictionaries(
    {
        "user_id": st.none() | st.sampled_from(USERS),
        "team_id": st.none() | st.sampled_from(TEAMS),
        "organization_id": st.none() | st.sampled_from(ORGANIZATIONS),
        "blocked": st.booleans(),
        "allowance": ALLOWANCES,
    }
)


@st.composite
def changes(draw: st.DrawFn) -> Changes:
    """Changes of a few of them."""
    keys = draw(st.dictionaries(st.sampled_from(KEYS), st.none() | GRANTS, max_size=2))
    users = st.dictionaries(st.sampled_from(USERS), st.none() | st.builds(UserGrant, allowance=ALLOWANCES), max_size=1)
    team = st.builds(
        TeamGrant,
        blocked=st.booleans(),
        allowance=ALLOWANCES,
        organization_id=st.none() | st.sampled_from(ORGANIZATIONS),
        aliases=st.sampled_from([{}, {"a": "b"}]),
    )
    token = hash_key("f")
    formers: list[dict[str, FormerKey | None]] = [{}, {token: FormerKey(token, hash_key("k0"), NOW + 1)}, {token: None}]
    former = st.sampled_from(formers)
    organization = st.builds(OrganizationGrant, allowance=ALLOWANCES)
    members = st.dictionaries(
        st.sampled_from([member_id(team_id, user_id) for team_id in TEAMS for user_id in USERS]),
        st.none() | ALLOWANCES,
        max_size=1,
    )
    return Changes(
        keys={hash_key(key): None if each is None else grant(key, **each) for key, each in keys.items()},
        former=draw(former),
        users=draw(users),
        teams=draw(st.dictionaries(st.sampled_from(TEAMS), st.none() | team, max_size=1)),
        members=draw(members),
        organizations=draw(st.dictionaries(st.sampled_from(ORGANIZATIONS), st.none() | organization, max_size=1)),
    )


@settings(deadline=None)
@given(st.lists(changes() | st.integers(0, 2).map(lambda rpm: GatewayLimits(proxy=Allowance(rpm=rpm))), max_size=12))
def test_a_key_in_use_is_always_what_a_new_look_would_find(steps: list[Changes | GatewayLimits]) -> None:
    index = KeyIndex()
    kept: dict[str, IndexedKey] = {}
    for step in steps:
        if isinstance(step, Changes):
            index.apply(step)
        else:
            index.reconfigure(step)
        for key in (*KEYS, "f"):
            token = hash_key(key)
            fresh, old = index.find(token), kept.get(token)
            if old is not None and index.is_current(old):
                assert fresh is not None
                assert (old.principal, old.blocked, old.team_blocked, old.replaced) == (
                    *(fresh.principal, fresh.blocked, fresh.team_blocked, fresh.replaced),
                )
                assert old.principal.limited == fresh.principal.limited
                assert old.principal.aliases == fresh.principal.aliases
            elif fresh is None:
                kept.pop(token, None)
            else:
                kept[token] = fresh
