"""What was decided about a head holds for every caller with the same permissions, and a caller until it changes."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.proxy.gateway_fakes import BaseModelsOf, server
from tests.upstreams.fleets import make_router
from twisted_vllm.auth.authenticator import Authenticator, hash_key
from twisted_vllm.auth.fields import FieldPolicies
from twisted_vllm.auth.grants import Changes, KeyGrant, Snapshot, TeamGrant, UserGrant
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.permissions import PermissionClasses
from twisted_vllm.auth.policy import RoutePolicy
from twisted_vllm.auth.records import MASTER, PREFLIGHT, Principal
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import TenantFields, TenantRoutes
from twisted_vllm.context import Authorization
from twisted_vllm.errors import GatewayError
from twisted_vllm.field_policy.rules import rules_of
from twisted_vllm.http.header_cache import MOST_HEADS
from twisted_vllm.http.headers import HeaderList, write_header_lines
from twisted_vllm.proxy.admission import Admission
from twisted_vllm.proxy.authorization_cache import (
    MOST_DECISIONS,
    AuthorizationCache,
    CachedAuthorization,
    Caller,
    HeaderFormat,
)
from twisted_vllm.proxy.upstream_headers import dropped_from
from twisted_vllm.ratelimit.allowance import Allowance, Limited
from twisted_vllm.usage.records import payer_of

MASTER_KEY = "sk-master-0123456789"
HEADERS: HeaderList = [(b"Host", b"gpu-1:8000"), (b"X-A", b"Content-Length: "), (b"X-100%", b"%d %b %%")]
URL = b"http://gpu-1:8000/v1/completions?a=%2F"
NOW = 100.0
TEMPLATE, OTHER_TEMPLATE = object(), object()


def grant(key: str, **values: Any) -> KeyGrant:
    token = hash_key(key)
    return KeyGrant(token, token[:32], key[:8], **values)


class Harness:
    """A cache before an admission of some keys, asked as the resource asks it."""

    def __init__(self, *grants: KeyGrant) -> None:
        self.index = KeyIndex()
        self.index.replace_all(Snapshot(keys=grants))
        self.authenticator = Authenticator(Secret(MASTER_KEY), self.index)
        self.admission = Admission(
            authenticator=self.authenticator,
            policy=RoutePolicy(TenantRoutes()),
            router=make_router((), server()),
            base_models=BaseModelsOf(),
            path_aliases=True,
            fields=FieldPolicies(TenantFields()),
        )
        self.cache = AuthorizationCache(self.admission)

    def recalled(self, key: str, template: object = TEMPLATE, now: float = NOW) -> Authorization | None:
        caller = self.cache.caller(template, key.encode(), now)
        found = None if caller is None else self.cache.find(template, caller)
        return None if found is None or caller is None else found.of(caller)

    def decided(
        self, key: str, template: object = TEMPLATE, path: bytes = b"/v1/completions", method: bytes = b"POST"
    ) -> Authorization:
        principal = self.admission.identify({b"authorization": b"Bearer " + key.encode()}, NOW)
        authorization = self.admission.authorize(principal, method, path)
        self.cache.keep(template, key.encode(), authorization)
        return authorization


def test_the_same_head_again_is_authorized_as_before() -> None:
    harness = Harness(grant("sk-a", user_id="ada"))
    assert harness.recalled("sk-a") is None
    first = harness.decided("sk-a")
    found = harness.recalled("sk-a")
    assert found == first
    assert found is not None
    assert found.principal is first.principal


def test_a_head_that_was_decided_for_one_key_is_decided_for_all_with_its_permissions() -> None:
    harness = Harness(*(grant(f"sk-{number}") for number in range(5)))
    for number in range(5):
        harness.decided(f"sk-{number}")
    assert len(harness.cache) == 1
    found = [harness.recalled(f"sk-{number}") for number in range(5)]
    assert [each and payer_of(each.payer).key_id for each in found] == [
        hash_key(f"sk-{number}")[:32] for number in range(5)
    ]
    # whoever came with another head
    harness.decided("sk-0", OTHER_TEMPLATE, b"/v1/chat/completions")
    others = harness.recalled("sk-4", OTHER_TEMPLATE)
    assert others is not None
    assert (others.path, others.principal.key_id) == (b"/v1/chat/completions", hash_key("sk-4")[:32])


def test_keys_with_other_permissions_are_decided_for_themselves() -> None:
    harness = Harness(grant("sk-a"), grant("sk-b", models=("m",)), grant("sk-c"))
    harness.decided("sk-a")
    harness.decided("sk-b", OTHER_TEMPLATE)
    assert harness.recalled("sk-b") is None
    assert harness.decided("sk-b").restricted
    assert len(harness.cache) == 3
    # it was never asked about
    assert harness.recalled("sk-c") is None


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        (Changes(keys={hash_key("sk-a"): grant("sk-a", user_id="ada", team_id="x", blocked=True)}), False),
        (Changes(keys={hash_key("sk-a"): None}), False),
        (Changes(users={"ada": UserGrant(models=("m",))}), False),
        (Changes(teams={"x": TeamGrant(blocked=True)}), False),
        (Changes(keys={hash_key("sk-b"): grant("sk-b", blocked=True)}), True),
        (Changes(users={"bob": UserGrant(models=("m",))}, teams={"y": TeamGrant(blocked=True)}), True),
    ],
)
def test_a_key_holds_until_something_changes_that_concerns_it(changes: Changes, holds: bool) -> None:
    harness = Harness(grant("sk-a", user_id="ada", team_id="x"), grant("sk-b"))
    harness.decided("sk-a")
    harness.index.apply(changes)
    assert (harness.recalled("sk-a") is not None) is holds


def test_a_key_holds_until_it_expires() -> None:
    harness = Harness(grant("sk-a", expires=NOW + 1))
    harness.decided("sk-a")
    assert harness.recalled("sk-a", now=NOW + 0.9) is not None
    assert harness.recalled("sk-a", now=NOW + 1) is None


def test_settings_that_change_undo_all_decisions() -> None:
    harness = Harness(grant("sk-a"))
    harness.decided("sk-a")
    harness.decided(MASTER_KEY)
    harness.index.settings_changed()
    assert harness.recalled("sk-a") is None
    assert harness.recalled(MASTER_KEY) is None
    harness.decided("sk-a")
    assert harness.recalled("sk-a") is not None


def test_the_master_key_is_recalled_for_its_head_until_anything_changes() -> None:
    harness = Harness(grant("sk-a"))
    assert harness.decided(MASTER_KEY).principal is MASTER
    assert harness.recalled(MASTER_KEY) is not None
    assert harness.recalled(MASTER_KEY, OTHER_TEMPLATE) is None
    assert harness.recalled("sk-guess") is None
    harness.index.apply(Changes(users={"bob": None}))
    assert harness.recalled(MASTER_KEY) is None


def test_a_preflight_is_not_kept_because_the_next_one_may_have_a_body() -> None:
    harness = Harness()
    authorization = harness.admission.authorize(PREFLIGHT, b"OPTIONS", b"/v1/models")
    assert harness.cache.keep(TEMPLATE, b"", authorization) is None
    assert harness.cache.caller(TEMPLATE, b"", NOW) is None


def test_a_stored_response_is_decided_for_each_key() -> None:
    harness = Harness(grant("sk-a"), grant("sk-b"))
    harness.decided("sk-b", OTHER_TEMPLATE)
    principal = harness.admission.identify({b"authorization": b"Bearer sk-a"}, NOW)
    authorization = harness.admission.authorize(principal, b"GET", b"/v1/responses/resp_1")
    own = msgspec.structs.replace(authorization, response_id="resp_1")
    harness.cache.keep(TEMPLATE, b"sk-a", own)
    assert harness.recalled("sk-a") == own
    assert harness.recalled("sk-b") is None


PRINCIPALS = st.builds(
    Principal,
    kind=st.just("key"),
    name=st.sampled_from(["a", "b"]),
    key_id=st.sampled_from(["1" * 32, "2" * 32]),
    user_id=st.none() | st.just("ada"),
    models=st.sampled_from([(), ("m",), ("n*",)]),
    team_models=st.sampled_from([(), ("m",)]),
    allowed_routes=st.sampled_from([(), ("inference",), ("privileged",), ("/v1/models",)]),
    aliases=st.sampled_from([{}, {"a": "b"}, {"c": "d"}]),
    priority=st.none() | st.integers(0, 1),
    granted_headers=st.sampled_from([frozenset(), frozenset({b"x-vllm-priority"}), frozenset({b"x-session-id"})]),
    limited=st.sampled_from(
        [(), *((Limited("key", "1" * 32, each),) for each in (Allowance(rpm=1), Allowance(tpm=1), Allowance(tpm=2)))]
    ),
    cache_salt=st.sampled_from(["", "s1", "s2"]),
    key_fields=st.sampled_from([rules_of(()), rules_of(("background",))]),
    team_fields=st.sampled_from([rules_of(()), rules_of(("logprobs",))]),
    expires=st.sampled_from([float("inf"), 5.0]),
)
PATHS = (b"/v1/chat/completions", b"/v1/embeddings", b"/v1/models", b"/sleep", b"/invocations", b"/v1/responses", b"/x")


def decision_for(admission: Admission, principal: Principal, method: bytes, path: bytes) -> Any:
    """Return everything that a head's decision depends on a principal for, but the principal itself."""
    try:
        found = admission.authorize(principal, method, path)
    except GatewayError as error:
        return type(error), error.message
    without = tuple(getattr(found, name) for name in found.__struct_fields__ if name not in ("principal", "payer"))
    return without, dropped_from(principal), principal.priority


@settings(deadline=None, max_examples=500)
@given(PRINCIPALS, PRINCIPALS, st.sampled_from([b"GET", b"POST"]), st.sampled_from(PATHS))
@example(
    Principal(kind="key", name="a", aliases={"a": "b"}, cache_salt="s1"),
    Principal(kind="key", name="b", aliases={"c": "d"}, cache_salt="s2"),
    b"POST",
    PATHS[0],
)
def test_principals_with_the_same_permissions_get_the_same_decisions(
    one: Principal, other: Principal, method: bytes, path: bytes
) -> None:
    classes, admission = PermissionClasses(), Harness().admission
    mine = classes.of(one)
    # most pairs differ in something: give the other the same permissions in other words
    if classes.of(other) is not mine:
        kept = ("allowed_routes", "priority", "granted_headers", "key_fields", "team_fields", "models", "limited")
        values = {name: getattr(one, name) for name in kept}
        other = attrs.evolve(
            other,
            **values,
            team_models=one.team_models,
            aliases=other.aliases if bool(one.aliases) == bool(other.aliases) else one.aliases,
            cache_salt=other.cache_salt if bool(one.cache_salt) == bool(other.cache_salt) else one.cache_salt,
        )
    assume(classes.of(other) is mine)
    assert decision_for(admission, one, method, path) == decision_for(admission, other, method, path)


@pytest.mark.parametrize("length", [0, 9, 12_345])
def test_cached_headers_equal_fresh_ones_with_their_own_length_id_and_peer(length: int) -> None:
    def headers(peer: bytes, request_id: bytes, length: bytes) -> HeaderList:
        forwarded = [(b"X-Forwarded-For", b"198.51.100.%1, " + peer), (b"X-Forwarded-Proto", b"https")]
        return [*HEADERS, (b"Content-Length", length), *forwarded, (b"X-Request-Id", request_id)]

    kept = HeaderFormat(URL, headers(b"192.0.2.1", b"", b""), b"192.0.2.1")
    assert kept.url == URL
    fresh = write_header_lines(headers(b"2001:db8::1", b"5f0e", b"%d" % length))
    assert kept.write(length, b"5f0e", {}, b"2001:db8::1").lines == fresh


def test_cached_headers_without_a_body_get_no_length() -> None:
    kept = HeaderFormat(URL, [*HEADERS, (b"X-Request-Id", b"")])
    assert kept.write(0, b"5f0e", {}).lines == write_header_lines([*HEADERS, (b"X-Request-Id", b"5f0e")])


def test_cached_headers_of_a_traced_client_get_their_own_trace() -> None:
    def headers(trace: bytes, state: bytes, length: bytes, request_id: bytes) -> HeaderList:
        traced = [(b"TraceParent", trace), (b"X-B", b"1"), (b"tracestate", state), (b"Baggage", b"c=" + trace)]
        return [*HEADERS, *traced, (b"Content-Length", length), (b"X-Request-Id", request_id)]

    kept = HeaderFormat(URL, headers(b"00-1", b"a=1", b"", b""))
    own = {b"traceparent": b"00-2", b"tracestate": b"b=%d", b"x-request-id": b"other", b"baggage": b"c=00-2"}
    fresh = write_header_lines(headers(b"00-2", b"b=%d", b"7", b"5f0e"))
    assert kept.write(7, b"5f0e", own).lines == fresh


def test_the_cache_is_bounded() -> None:
    harness = Harness(grant("sk-a"))
    templates = [object() for _ in range(MOST_DECISIONS + 3)]
    for template in templates:
        harness.decided("sk-a", template)
    assert len(harness.cache) == MOST_DECISIONS
    assert [harness.recalled("sk-a", template) is None for template in templates[:4]] == [True, True, True, False]


def test_callers_without_a_key_of_their_own_are_few_and_put_no_key_out() -> None:
    harness = Harness(grant("sk-a"))
    harness.authenticator.reconfigure(None)
    harness.decided("sk-a")
    for number in range(MOST_HEADS + 3):
        assert harness.decided(f"stranger-{number}").principal.kind == "anonymous"
    assert len(harness.cache._others) == MOST_HEADS
    assert harness.recalled("sk-a") is not None


def test_a_key_in_use_takes_little_memory_and_a_key_that_is_not_takes_none() -> None:
    keys = [f"sk-{number:040d}" for number in range(4_000)]
    harness = Harness(*(grant(each, user_id="ada", team_id="x") for each in keys))
    used = keys[: len(keys) // 2]
    harness.decided(keys[-1])
    gc.collect()
    tracemalloc.start()
    try:
        for each in used:
            harness.decided(each)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
        harness.authenticator.sweep()
        harness.authenticator.sweep()
        assert harness.authenticator.keys_in_use == 0
        # somebody is always the last caller
        harness.decided(keys[-1])
        gc.collect()
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken < 1_500 * len(used)
    # the tables of dicts, which Python does not make smaller
    assert left < 100 * len(used)


def test_nothing_that_is_kept_shows_a_credential() -> None:
    harness = Harness(grant("sk-secret-0123456789"))
    harness.decided("sk-secret-0123456789")
    key = harness.authenticator.known(b"sk-secret-0123456789")
    assert key is not None
    assert isinstance(key.caller, Caller)
    assert "secret-0" not in repr((key, key.caller, CachedAuthorization, harness.cache, harness.authenticator))
