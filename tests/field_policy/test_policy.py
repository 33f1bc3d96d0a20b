"""What a key may send: the gateway's defaults, the operator's rules, and those of the key and its team together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from twisted_vllm.errors import FieldNotAllowed
from twisted_vllm.field_policy.media import MAX_VALUES
from twisted_vllm.field_policy.media_hosts import MediaRules
from twisted_vllm.field_policy.policy import FieldPolicy, GatewayFields, policy_of
from twisted_vllm.field_policy.rules import (
    DEFAULT_FORBIDDEN,
    DEFAULT_LIMITS,
    NO_RULES,
    SERVER_TOOLS,
    covers,
    parse_path,
    rules_of,
)

GATEWAY = GatewayFields()
NOTHING = GatewayFields(allow=("*",), limits=tuple((name, None) for name in DEFAULT_LIMITS), media=None)


def members(body: Any) -> list[tuple[str, bytes]]:
    return [(name, json.dumps(value).encode()) for name, value in body.items()]


def refusal(policy: FieldPolicy | None, body: Any) -> FieldNotAllowed | None:
    if policy is None:
        return None
    try:
        policy.check(members(body))
    except FieldNotAllowed as error:
        return error
    return None


def default(**options: Any) -> FieldPolicy:
    policy = policy_of(GATEWAY, NO_RULES, NO_RULES, **options)
    assert policy is not None
    return policy


def key_policy(forbidden: tuple[str, ...] = (), limits: dict[str, int] | None = None, **options: Any) -> FieldPolicy:
    policy = policy_of(NOTHING, rules_of(forbidden, limits), NO_RULES, **options)
    assert policy is not None
    return policy


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("path", DEFAULT_FORBIDDEN)
def test_each_default_is_refused_with_its_reason_and_what_to_do(path: str) -> None:
    for value in (-1000, "x", [1], {"a": 1}):
        error = refusal(default(), nested(path, value))
        assert error is not None
        assert (error.status, error.code, error.param) == (400, "field_not_allowed", path)
        assert error.message == (
            f"The field `{path}` is not allowed: the gateway forbids it to virtual keys, because "
            f"{DEFAULT_FORBIDDEN[path]}. Leave it out; an administrator can name it in this key's allowed_fields."
        )
    assert refusal(default(), nested(path, None)) is None


@pytest.mark.parametrize(
    "body",
    [
        {"priority": 0},
        {"priority": 0.0},
        {"session_id": ""},
        {"vllm_xargs": {}},
        {"kv_transfer_params": {}},
        {"stream_interval": 1},
        {"chat_template": ""},
        {"mm_payload": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"sampling_params": {"extra_args": {}}},
    ],
)
def test_what_asks_for_nothing_passes(body: Any) -> None:
    assert refusal(default(), body) is None


@pytest.mark.parametrize(
    "body", [{"priority": False}, {"priority": "0"}, {"request_id": ""}, {"stream_interval": True}]
)
def test_what_only_looks_like_a_default_does_not_pass(body: Any) -> None:
    assert refusal(default(), body) is not None


@pytest.mark.parametrize("kind", ["mcp", "code_interpreter", "web_search_preview", "container"])
def test_tools_that_the_server_runs_are_refused_where_it_runs_tools(kind: str) -> None:
    body = {"tools": [{"type": "function", "name": "f"}, {"type": kind}]}
    error = refusal(default(server_tools=True), body)
    assert error is not None
    assert error.param == "tools.type"
    assert "the server would run this tool itself" in error.message
    assert refusal(default(), body) is None
    for harmless in ({"type": "function", "name": "f"}, {"type": "web_search"}, {"type": "local_shell"}):
        assert refusal(default(server_tools=True), {"tools": [harmless]}) is None
    assert len(SERVER_TOOLS) == 4


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"n": 129}, "is 129"),
        ({"n": "129"}, "is 129"),
        ({"n": " 1_29 "}, "is  1_29 "),
        ({"n": 1e400}, "is inf"),
        ({"n": "9" * 5000}, f"is {'9' * 40}"),
        ({"best_of": 128.5}, "is 128.5"),
        ({"prompt_logprobs": 21}, "is 21"),
        ({"prompt_logprobs": -1}, "is -1"),
        ({"logit_bias": {str(number): 1 for number in range(1025)}}, "has 1025 members"),
        ({"structured_outputs": {"regex": "a" * 65_536}}, "has 65549 bytes"),
        ({"response_format": {"type": "json_schema", "x": "a" * 131_072}}, "has 131104 bytes"),
        ({"text": {"format": {"schema": {"a": "a" * 131_072}}}}, "has 131105 bytes"),
        ({"output_config": {"format": {"a": "a" * 131_072}}}, "has 131093 bytes"),
        ({"sampling_params": {"n": 500}}, "is 500"),
    ],
)
def test_each_default_limit_is_kept(body: Any, found: str) -> None:
    error = refusal(default(), body)
    assert error is not None
    assert found in error.message
    assert "the gateway allows at most" in error.message
    assert error.param is not None
    assert error.param.partition(".")[0] in body


@pytest.mark.parametrize(
    "body",
    [
        {
            "n": 128,
            "best_of": "128",
            "prompt_logprobs": 20,
            "logit_bias": {str(number): -100 for number in range(1024)},
        },
        {"n": None, "logprobs": True, "n_": 500},
        {"n": "many"},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"x": "a" * 100_000}}}},
    ],
)
def test_what_is_within_the_limits_passes(body: Any) -> None:
    assert refusal(default(), body) is None


def test_nan_is_within_no_limit() -> None:
    with pytest.raises(FieldNotAllowed):
        default().check([("n", b"NaN")])


@pytest.mark.parametrize(
    ("limits", "good", "bad"),
    [
        ({"max_tokens": 10}, {"max_tokens": 10}, {"max_tokens": 11}),
        ({"max_tokens": 10}, {"max_tokens": True}, {"max_completion_tokens": 11}),
        ({"max_tokens": 10}, {"max_output_tokens": "10"}, {"max_output_tokens": "11"}),
        ({"max_tokens": 10}, {}, {"sampling_params": {"max_tokens": 11}}),
        ({"stop": 2}, {"stop": ["a", "b"]}, {"stop": ["a", "b", "c"]}),
        ({"stop": 2}, {"stop": "ab"}, {"stop_sequences": "abc"}),
        ({"prompt": 4}, {"prompt": "9999"}, {"prompt": "99999"}),
        ({"prompt": 4}, {"prompt": "äö"}, {"prompt": "äöü"}),
        ({"messages": 1}, {"messages": [{}]}, {"messages": [{}, {}]}),
        ({"tools": 0}, {"tools": []}, {"tools": [1]}),
        ({"temperature": 1}, {"temperature": 0.5}, {"temperature": 1.5}),
        ({"logprobs": 5}, {"logprobs": True}, {"logprobs": -1}),
        (
            {"messages.content": 3},
            {"messages": [{"content": "abc"}]},
            {"messages": [{"content": "abc"}, {"content": "abcd"}]},
        ),
        ({"thinking_token_budget": 5}, {"thinking_token_budget": 5}, {"thinking_token_budget": -1}),
    ],
)
def test_a_limit_is_of_the_value_or_of_the_size(limits: dict[str, int], good: Any, bad: Any) -> None:
    policy = key_policy(limits=limits)
    assert refusal(policy, good) is None
    error = refusal(policy, bad)
    assert error is not None
    assert "and this key allows at most" in error.message
    assert "the key's field_limits" in error.message


@pytest.mark.parametrize(
    ("path", "bad", "good"),
    [
        ("background", {"background": True}, {"background": False}),
        ("tools", {"tools": [{}]}, {"tools": []}),
        ("stream_options.include_usage", {"stream_options": {"include_usage": True}}, {"stream_options": {"x": 1}}),
        (
            "messages.*.content.*.image_url",
            {"messages": [{"content": [{"image_url": 1}]}]},
            {"messages": [{"content": "a"}]},
        ),
        (
            "messages.content.image_url",
            {"messages": [[{"content": [{"image_url": 1}]}]]},
            {"messages": [{"image_url": 1}]},
        ),
        ("a.*.b", {"a": {"x": {"b": 1}}}, {"a": {"b": 1}}),
        (
            "response_format.type=json_schema",
            {"response_format": {"type": "json_schema"}},
            {"response_format": {"type": "text"}},
        ),
        ("service_tier=pri*", {"service_tier": "priority"}, {"service_tier": "auto"}),
        ("seed=7", {"seed": 7}, {"seed": 8}),
        ("echo=true", {"echo": True}, {"echo": False}),
    ],
)
def test_a_path_names_a_field_or_a_value(path: str, bad: Any, good: Any) -> None:
    policy = key_policy((path,))
    assert refusal(policy, good) is None
    error = refusal(policy, bad)
    assert error is not None
    assert "this key forbids it. Leave it out; an administrator can change the key's forbidden_fields" in error.message


def test_repeated_keys_inside_a_field_all_count() -> None:
    policy = key_policy(("a.b",), {"c.n": 3})
    for raw in (b'{"b":1,"b":null}', b'{"b":null,"b":1}', b'[{"b":null,"b":1}]'):
        with pytest.raises(FieldNotAllowed):
            policy.check([("a", raw)])
    with pytest.raises(FieldNotAllowed):
        policy.check([("c", b'{"n":9,"n":1}')])
    policy.check([("a", b'{"b":null,"b":null}')])


def test_a_value_may_be_a_number_or_a_boolean() -> None:
    policy = key_policy(("a.b=1", "a.c=true", "a.d=null"))
    body: Any
    for body in ({"b": 1}, {"b": [0, 1]}, {"b": "1"}, {"c": True}, {"c": ["x", True]}, {"d": None}):
        assert refusal(policy, {"a": body}) is not None, body
    for body in ({"b": [[1]]}, {"b": {"1": 1}}, {"b": 2}, {"c": False}, {"c": 1}, {"d": 0}):
        assert refusal(policy, {"a": body}) is None, body


@pytest.mark.parametrize(("path", "item"), [("a.b=c", "1"), ("a.b=c", "[]"), ("a.b", "[]"), ("a.*.b", "{}")])
def test_the_search_for_a_field_ends(path: str, item: str) -> None:
    rest = "," + item
    few, many = (b'{"b":[%b]}' % (item + rest * number).encode() for number in (1000, MAX_VALUES))
    if path != "a.b=c":
        few, many = few[5:-1], many[5:-1]
    key_policy((path,)).check([("a", few)])
    with pytest.raises(ValueError, match="too many values"):
        key_policy((path,)).check([("a", many)])


def test_repeated_members_all_count() -> None:
    for both in ([b"-1000", b"0"], [b"0", b"-1000"]):
        with pytest.raises(FieldNotAllowed):
            default().check([("priority", raw) for raw in both])


def test_the_levels_apply_together_and_the_strictest_wins() -> None:
    key, team = rules_of(("a",), {"n": 3, "max_tokens": 50}), rules_of(("b",), {"n": 2, "max_tokens": 100})
    policy = policy_of(GatewayFields(deny=("c",), limits=(("n", 4),)), key, team)
    for body, who in (
        ({"a": 1}, "this key forbids it"),
        ({"b": 1}, "the team of this key forbids it"),
        ({"c": 1}, "the gateway forbids it"),
        ({"n": 3}, "the team of this key allows at most 2"),
        ({"max_tokens": 51}, "this key allows at most 50"),
        ({"priority": 1}, "the gateway forbids it"),
    ):
        error = refusal(policy, body)
        assert error is not None
        assert who in error.message
    assert refusal(policy, {"n": 2, "max_tokens": 50}) is None


def test_a_key_is_granted_what_the_gateway_forbids_and_not_what_its_team_forbids() -> None:
    key = rules_of(allowed=("vllm_xargs", "n", "priority", "sampling_params"))
    team = rules_of(("priority",), {"n": 200})
    policy = policy_of(GatewayFields(deny=("sampling_params.seed",)), key, team)
    assert (
        refusal(policy, {"vllm_xargs": {"a": 1}, "n": 150, "sampling_params": {"extra_args": {"a": 1}, "seed": 1}})
        is None
    )
    assert refusal(policy, {"priority": 1}) is not None
    assert refusal(policy, {"n": 201}) is not None
    assert refusal(policy, {"session_id": "a"}) is not None


def test_a_star_grants_everything_of_the_gateway() -> None:
    assert policy_of(GatewayFields(media=None), rules_of(allowed=("*",)), NO_RULES) is None
    policy = policy_of(GATEWAY, rules_of(("a",), allowed=("*",)), NO_RULES)
    assert refusal(policy, {"priority": -1, "n": 500}) is None
    assert refusal(policy, {"a": 1}) is not None


def test_the_operator_opens_closes_and_limits() -> None:
    gateway = GatewayFields(allow=("session_id",), deny=("background",), limits=(("n", None), ("best_of", 1)))
    policy = policy_of(gateway, NO_RULES, NO_RULES)
    assert refusal(policy, {"session_id": "a", "n": 1000, "background": False}) is None
    for body in ({"background": True}, {"best_of": 2}):
        assert refusal(policy, body) is not None


def test_a_key_with_a_priority_of_its_own_may_send_one() -> None:
    assert refusal(default(exempt=("priority",)), {"priority": -1000}) is None


def test_equal_policies_share_one_object() -> None:
    one = policy_of(GATEWAY, rules_of(["a"], {"n": 1, "m": 2}), NO_RULES)
    other = policy_of(GatewayFields(), rules_of(("a",), {"m": 2, "n": 1}), rules_of((), {}))
    assert one is other
    assert policy_of(GATEWAY, rules_of(allowed=("vllm_plugins",)), NO_RULES) is default()


def test_media_urls_are_judged() -> None:
    body = {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x"}}]}]}
    error = refusal(default(), body)
    assert error is not None
    assert error.param == "image_url"
    assert "A URL in `image_url` is not allowed: it has an address that is private" in error.message
    assert "127.0.0.1" not in error.message
    assert refusal(policy_of(GatewayFields(media=None), NO_RULES, NO_RULES), body) is None
    allowed = GatewayFields(media=MediaRules(allowed_hosts=("127.0.0.1",)))
    assert refusal(policy_of(allowed, NO_RULES, NO_RULES), body) is None


def test_very_many_urls_are_refused() -> None:
    body = {"messages": [{"content": [{"image_url": "https://example.com/"}] * 5000}]}
    with pytest.raises(ValueError, match="too many"):
        default().check(members(body))


@pytest.mark.parametrize(
    "text", ["priority", "a.b.c", "tools.type=mcp", "messages.*.name", "timestamp_granularities[]"]
)
def test_paths_are_read(text: str) -> None:
    assert parse_path(text).text == text


@pytest.mark.parametrize(
    "text",
    ["", ".", "a.", "*", "*.a", "a b", "a..b", "a=", "=b", "1a", "model", "model.x", "model=a", ".".join("abcdefghi")],
)
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_path(text)


def test_a_path_covers_itself_and_what_is_below() -> None:
    assert covers("a", "a") and covers("a", "a.b") and covers("a", "a=b") and covers("*", "x")
    assert not covers("a", "ab") and not covers("a.b", "a")
