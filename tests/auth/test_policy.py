from __future__ import annotations

import fnmatch
import time
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.api_routes import RouteClass, classify
from twisted_vllm.auth.policy import RoutePolicy, RouteRule, parse_rule
from twisted_vllm.auth.records import ANONYMOUS, MASTER, Principal
from twisted_vllm.config.settings import TenantRoutes
from twisted_vllm.errors import (
    GatewayError,
    InvalidRequest,
    ModelNotAllowed,
    RouteMethodNotAllowed,
    RouteNotAllowed,
    RouteNotFound,
)

TENANT = Principal(kind="key", name="sk-...abcd", hash_prefix="0a1b2c3d")


def _key(*allowed_routes: str, models: tuple[str, ...] = ()) -> Principal:
    return Principal(kind="key", name="sk-...abcd", models=models, allowed_routes=allowed_routes)


def _may(
    principal: Principal, path: str, *, method: bytes = b"POST", allow: Sequence[str] = (), deny: Sequence[str] = ()
) -> bool:
    policy = RoutePolicy(TenantRoutes(allow=tuple(allow), deny=tuple(deny)))
    try:
        policy.check_route(principal, classify(method, path.encode()))
    except (RouteNotAllowed, RouteNotFound, RouteMethodNotAllowed):
        return False
    return True


def _refusal(principal: Principal, path: str, **rules: Any) -> str:
    policy = RoutePolicy(TenantRoutes(**rules))
    with pytest.raises(RouteNotAllowed) as caught:
        policy.check_route(principal, classify(b"POST", path.encode()))
    return caught.value.message


def _error(principal: Principal, path: str, method: bytes = b"GET", **rules: Any) -> GatewayError:
    policy = RoutePolicy(TenantRoutes(**rules))
    with pytest.raises(GatewayError) as caught:
        policy.check_route(principal, classify(method, path.encode()))
    return caught.value


@pytest.mark.parametrize("principal", [MASTER, ANONYMOUS])
@pytest.mark.parametrize("path", ["/sleep", "/unknown", "/v1%2Fmodels", "/v1/chat/completions"])
def test_an_administrator_may_call_every_route_whatever_is_denied(principal: Principal, path: str) -> None:
    assert _may(principal, path, deny=["inference", "privileged", "/sleep"])


def test_a_key_may_call_inference_and_read_only_routes_and_nothing_else() -> None:
    assert _may(TENANT, "/v1/chat/completions")
    assert _may(TENANT, "/metrics", method=b"GET")
    assert _may(TENANT, "/v1/chat/completions", method=b"OPTIONS")
    assert not _may(TENANT, "/sleep")
    assert not _may(TENANT, "/unknown")
    assert not _may(TENANT, "/v1/models", method=b"DELETE")
    assert not _may(TENANT, "/v1//models")


def test_a_key_with_allowed_routes_may_call_exactly_these() -> None:
    key = _key("/v1/embeddings", "/metrics")
    assert _may(key, "/v1/embeddings")
    assert _may(key, "/metrics")
    assert not _may(key, "/metrics/x")
    assert not _may(key, "/v1/chat/completions")
    assert not _may(key, "/sleep", allow=["/sleep"])


def test_a_key_may_be_granted_a_privileged_route() -> None:
    assert _may(_key("/sleep"), "/sleep")
    assert not _may(_key("/sleep"), "/wake_up")
    assert _may(_key("privileged"), "/wake_up")
    assert not _may(_key("privileged"), "/v1/chat/completions")


def test_a_keys_own_grant_beats_what_is_denied_to_all() -> None:
    assert _may(_key("/score"), "/score", deny=["/score"])


def test_a_route_may_be_written_as_the_client_sees_it() -> None:
    for text in ("/vllm/chat/completions", "/vllm/v1/chat/completions", "/chat/completions", "/v1/chat/completions"):
        assert _may(_key(text), "/v1/chat/completions"), text


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/openai/v1/responses", "/v1/responses"),
        ("/openai/responses", "/v1/responses"),
        ("/engines/{model}/chat/completions", "/v1/chat/completions"),
        ("/openai/deployments/{model}/embeddings", "/v1/embeddings"),
    ],
)
def test_a_route_may_be_written_as_litellm_has_it_at_the_root(text: str, path: str) -> None:
    assert _may(_key(text), path)
    assert not _may(_key(text), "/v1/completions")
    assert not _may(TENANT, path, deny=[text])


def test_a_rule_does_not_take_a_model_in_a_path_for_all_models() -> None:
    with pytest.raises(InvalidRequest, match="in models"):
        parse_rule("/engines/small/completions")


def test_a_prefix_takes_in_what_is_below_it_and_not_itself() -> None:
    for text in ("/v1/responses/*", "/responses/*", "/vllm/responses/*"):
        assert _may(_key(text), "/v1/responses/resp_1/cancel"), text
        assert not _may(_key(text), "/v1/responses"), text
    assert _may(_key("/vllm/*"), "/sleep")
    assert _may(_key("/*"), "/v1/chat/completions")


def test_litellms_group_names_stand_for_inference_and_the_model_list() -> None:
    for group in ("llm_api_routes", "openai_routes"):
        assert _may(_key(group), "/v1/chat/completions")
        assert _may(_key(group), "/v1/models")
        assert not _may(_key(group), "/metrics")
        assert not _may(_key(group), "/sleep")


def test_a_prefix_does_not_open_a_path_that_climbs_out_of_it() -> None:
    for path in ("/v1/../sleep", "/v1/x%2F..%2F..%2Fsleep", "/v1/..;/sleep", "/v1//x"):
        assert not _may(_key("/v1/*"), path)
        assert _may(_key("privileged"), path)


def test_the_operator_can_open_a_route_to_all_keys() -> None:
    assert _may(TENANT, "/tokenizer_info", allow=["/tokenizer_info"])
    assert _may(TENANT, "/v1/load_lora_adapter", allow=["/vllm/load_lora_adapter"])
    assert _may(TENANT, "/sleep", allow=["privileged"])
    assert not _may(TENANT, "/sleep", allow=["/tokenizer_info"])


def test_the_operator_can_take_a_route_or_a_class_from_all_keys() -> None:
    assert not _may(TENANT, "/metrics", deny=["/metrics"])
    assert not _may(TENANT, "/metrics", deny=["read_only"])
    assert _may(TENANT, "/v1/chat/completions", deny=["read_only"])
    assert not _may(TENANT, "/v1/audio/translations", deny=["/audio/*"])


def test_a_denied_path_is_closed_with_everything_below_it() -> None:
    assert not _may(TENANT, "/metrics/x", deny=["/metrics"])
    assert not _may(TENANT, "/v1/responses/resp_1", deny=["/v1/responses"])


def test_deny_beats_allow() -> None:
    assert not _may(TENANT, "/sleep", allow=["/sleep"], deny=["/sleep"])
    assert not _may(TENANT, "/v1/embeddings", allow=["/v1/embeddings"], deny=["inference"])


def test_a_path_with_two_readings_cannot_reach_around_a_denial() -> None:
    assert _may(TENANT, "/x/..%2Fsleep", allow=["privileged"])
    assert not _may(TENANT, "/x/..%2Fsleep", allow=["privileged"], deny=["/sleep"])


def test_the_dispatching_route_is_closed_when_something_it_dispatches_to_is() -> None:
    assert _may(TENANT, "/invocations")
    assert _may(TENANT, "/invocations", deny=["/metrics"])
    assert not _may(TENANT, "/invocations", deny=["/v1/chat/completions"])
    assert _may(_key("/invocations"), "/invocations", deny=["/v1/chat/completions"])


def test_a_refusal_says_what_would_open_the_route() -> None:
    privileged = _refusal(TENANT, "/sleep")
    assert "/sleep" in privileged
    assert "master key" in privileged
    assert "allowed_routes" in privileged
    assert "passthrough.tenant_routes.allow" in privileged

    denied = _refusal(TENANT, "/metrics", deny=("/metrics",))
    assert "tenant_routes.deny" in denied
    assert "tenant_routes.allow" not in denied

    not_granted = _refusal(_key("/score"), "/metrics")
    assert "allowed_routes do not name it" in not_granted
    assert "master key" in not_granted
    assert "tenant_routes" not in not_granted


def test_a_refusal_for_a_path_with_two_readings_says_so() -> None:
    message = _refusal(TENANT, "/v1//models")
    assert "more than one way" in message
    assert "plain path" in message


def test_a_refusal_clips_a_long_path() -> None:
    assert len(_refusal(TENANT, "/metrics/" + "x" * 5000, deny=["/metrics"])) < 500
    assert len(_error(TENANT, "/" + "x" * 5000).message) < 500


#: what OpenAI's and other clients ask for, and vLLM does not have
FOREIGN = [
    "/v1/files",
    "/v1/moderations",
    "/v1/images/generations",
    "/v1/batches",
    "/v1/assistants",
    "/v1/audio/speech",
]


@pytest.mark.parametrize("path", [*FOREIGN, "/unheard/of", "/v1/models/"])
@pytest.mark.parametrize("principal", [TENANT, _key("inference"), _key("management"), _key("llm_api_routes")])
def test_what_vllm_does_not_have_is_not_found(principal: Principal, path: str) -> None:
    error = _error(principal, path)
    assert (error.status, error.code) == (404, "route_not_found")
    assert "tenant_routes.allow" in error.message


@pytest.mark.parametrize("path", FOREIGN)
def test_whoever_may_call_an_unknown_route_is_not_told_that_it_is_not_there(path: str) -> None:
    assert _may(MASTER, path)
    assert _may(_key(path), path)
    assert _may(_key("privileged"), path)
    assert _may(TENANT, path, allow=[path])
    assert _may(TENANT, path, allow=["privileged"])
    assert _error(TENANT, path, deny=["privileged"]).code == "route_not_allowed"


@pytest.mark.parametrize("method", [b"PUT", b"PATCH", b"DELETE", b"TRACE", b"post"])
def test_a_method_that_vllm_does_not_serve_on_a_known_route_is_not_allowed_as_vllm_says(method: bytes) -> None:
    error = _error(TENANT, "/v1/chat/completions", method=method)
    assert (error.status, error.code) == (405, "method_not_allowed")
    assert (b"allow", b"POST") in error.headers()
    assert (b"allow", b"GET") in _error(TENANT, "/v1/responses/resp_1", method=method).headers()


@pytest.mark.parametrize(
    ("method", "path"),
    [(b"GET", "/server_info"), (b"POST", "/collective_rpc"), (b"DELETE", "/adapters/a"), (b"PUT", "/sleep")],
)
def test_what_vllm_has_and_only_the_operator_may_call_is_refused(method: bytes, path: str) -> None:
    assert _error(TENANT, path, method=method).code == "route_not_allowed"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "chat/completions",
        "management_routes",
        "info_routes",
        "INFERENCE",
        "/v1/*/x",
        "/v1*",
        "/v1//x",
        "/v1/../x",
        "/v1/x?y=1",
        "/v1/{id}",
        "/v1/é",
        "/a b",
        "/x%2Fy",
        "//*",
        "/\ud800",
    ],
)
def test_a_rule_that_cannot_be_read_is_refused_with_what_is_right(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"prefix/\*|plain path"):
        parse_rule(text)


def test_a_rule_of_the_operators_that_cannot_be_read_stops_the_start() -> None:
    with pytest.raises(InvalidRequest):
        RoutePolicy(TenantRoutes(deny=("metrics",)))


def test_a_stored_rule_that_cannot_be_read_grants_nothing() -> None:
    assert not _may(_key("management_routes"), "/v1/chat/completions")
    assert _may(_key("management_routes", "/score"), "/score")


def test_a_rule_is_kept_as_the_servers_path() -> None:
    assert parse_rule("/vllm/chat/completions") == RouteRule(path="/v1/chat/completions")
    assert parse_rule("/chat/*") == RouteRule(prefix="/v1/chat/")
    assert parse_rule("/score") == RouteRule(path="/score")
    assert parse_rule("read_only") == RouteRule(route_class=RouteClass.READ_ONLY)


def _may_use(models: tuple[str, ...], model: str) -> bool:
    try:
        RoutePolicy(TenantRoutes()).check_model(_key(models=models), model)
    except ModelNotAllowed:
        return False
    return True


@pytest.mark.parametrize(
    ("models", "model", "allowed"),
    [
        ((), "anything", True),
        (("qwen",), "qwen", True),
        (("qwen",), "Qwen", False),
        (("qwen",), "qwen2", False),
        (("qwen",), "", False),
        (("a", "qwen*"), "qwen2.5-7b", True),
        (("*",), "a/b\nc", True),
        (("org/*",), "org/a/b", True),
        (("gpt-?",), "gpt-4", True),
        (("gpt-?",), "gpt-44", False),
        (("a.b",), "axb", False),
        (("m[12]",), "m1", False),
        (("m[12]*",), "m[12]x", True),
        (("m[!a]?",), "mb?", False),
        (("a\\*",), "a\\b", True),
    ],
)
def test_model_patterns_know_two_wildcards_and_compare_with_case(
    models: tuple[str, ...], model: str, allowed: bool
) -> None:
    assert _may_use(models, model) is allowed


def test_an_administrator_may_use_every_model() -> None:
    RoutePolicy(TenantRoutes()).check_model(MASTER, "anything")


def test_the_refusal_of_a_model_names_it_and_what_is_allowed() -> None:
    with pytest.raises(ModelNotAllowed, match=r"'llama'.*qwen\*, gpt-4") as caught:
        RoutePolicy(TenantRoutes()).check_model(_key(models=("qwen*", "gpt-4")), "llama")
    assert caught.value.param == "model"
    with pytest.raises(ModelNotAllowed) as caught:
        RoutePolicy(TenantRoutes()).check_model(_key(models=("qwen",)), "x" * 10_000)
    assert len(caught.value.message) < 400


def test_a_pattern_of_many_wildcards_is_decided_quickly() -> None:
    began = time.perf_counter()
    assert not _may_use(("*a" * 30 + "b",), "a" * 5000)
    assert time.perf_counter() - began < 1


@given(st.lists(st.text("ab*?.", max_size=6), min_size=1, max_size=4), st.text("ab.", max_size=6))
def test_patterns_match_as_fnmatch_does(patterns: list[str], model: str) -> None:
    expected = any(fnmatch.fnmatchcase(model, pattern) for pattern in patterns)
    assert _may_use(tuple(patterns), model) is expected


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/sleep", "/management", "/key/list"])
def test_a_key_that_administers_reaches_none_of_the_server_s_routes_by_that(path: str) -> None:
    assert not _may(_key("management"), path)
    assert _may(_key("management", "inference"), "/v1/completions")


def test_a_teams_own_name_of_a_model_allows_the_model_to_the_team_and_the_others_may_allow_the_name() -> None:
    def may(**levels: Any) -> bool:
        caller = attrs.evolve(TENANT, team_aliases={"gpt-4": "secret"}, **levels)
        try:
            RoutePolicy(TenantRoutes()).check_model(caller, "secret")
        except ModelNotAllowed:
            return False
        return True

    assert may(team_models=("other",))
    assert may(team_models=("other",), models=("gpt-4",), user_models=("gpt*",), organization_models=("secret",))
    assert not may(models=("other",))
    assert not may(user_models=("other",))
    assert not may(organization_models=("other",))
    # a key's own name for it allows nothing
    with pytest.raises(ModelNotAllowed):
        RoutePolicy(TenantRoutes()).check_model(attrs.evolve(_key(models=("mine",)), aliases={"mine": "m"}), "m")


def _restricted(level: str) -> Principal:
    fields: dict[str, Any] = {level: ("qwen",)}
    return attrs.evolve(TENANT, **fields)


@pytest.mark.parametrize(
    ("level", "beginning"),
    [
        ("models", "key not allowed to access model. This key may not"),
        ("user_models", "user not allowed to access model. The user of this key may not"),
        ("team_models", "team not allowed to access model. The team of this key may not"),
        ("organization_models", "org not allowed to access model. The organization of this key may not"),
    ],
)
def test_the_refusal_of_a_model_begins_with_the_words_that_litellms_clients_look_for(
    level: str, beginning: str
) -> None:
    with pytest.raises(ModelNotAllowed) as caught:
        RoutePolicy(TenantRoutes()).check_model(_restricted(level), "llama")
    assert caught.value.message.startswith(beginning)
