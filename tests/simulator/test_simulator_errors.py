"""vLLM's refusals: each body was seen on a server of vLLM 0.32.0."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.simulator.simulator_harness import Simulator, user
from twisted_vllm.config.secret import Secret
from twisted_vllm.simulator.settings import SimulatorSettings

CHAT = "/v1/chat/completions"
GUARDED = [
    ("GET", "/v1/models"),
    ("POST", "/v1/score"),
    ("POST", "/v2/rerank"),
    ("GET", "/v1/nothing"),
    ("GET", "/v2x"),
]


def error(message: str, type: str = "BadRequestError", param: str | None = None, code: int = 400) -> dict[str, Any]:
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            {"model": "no"},
            error("The model `no` does not exist. Valid aliases: small, large.", "NotFoundError", "model", 404),
        ),
        (
            {"max_tokens": -1},
            error("max_tokens must be at least 1, got -1. (parameter=max_tokens, value=-1)", param="max_tokens"),
        ),
        (
            {"temperature": -3},
            error(
                "temperature must be non-negative, got -3.0. (parameter=temperature, value=-3.0)", param="temperature"
            ),
        ),
        ({"top_p": 3}, error("top_p must be in (0, 1], got 3.0. (parameter=top_p, value=3.0)", param="top_p")),
        ({"n": 0}, error("n must be at least 1, got 0.")),
        (
            {"max_tokens": 100_000_000},
            error(
                "max_tokens=100000000 cannot be greater than max_model_len=32768. Please request fewer output tokens. "
                "(parameter=max_tokens, value=100000000)",
                param="max_tokens",
            ),
        ),
        ({"messages": []}, error("Cannot apply chat template to an empty conversation. Provide at least one message.")),
        (
            {"stream_options": {"include_usage": True}},
            error(
                "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
                param="stream_options",
            ),
        ),
        (
            {"temperature": "hot"},
            error(
                "1 validation error:\n  {'type': 'float_parsing', 'loc': 'body.temperature', 'msg': 'Input should be a "
                "valid number, unable to parse string as a number', 'input': 'hot'}",
                "Bad Request",
                "body.temperature",
            ),
        ),
    ],
)
def test_a_bad_parameter_is_refused_in_vllms_words(
    simulator: Simulator, more: dict[str, Any], expected: dict[str, Any]
) -> None:
    got = simulator.post(CHAT, {"model": "small", "messages": user("hi"), **more})
    assert got.status == expected["error"]["code"]
    assert got.json == expected


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        # Python 3.13 names the comma, an older one what follows it
        (b'{"model":"small",}', "json_invalid", "body.16" if sys.version_info >= (3, 13) else "body.17"),
        (b"not json", "json_invalid", "body.0"),
        (b"\xff\xfe", "json_invalid", "body.0"),
        (b"[" * 100_000, "json_invalid", "body.0"),
        (b"", "missing", "body"),
        (b"null", "missing", "body"),
        (b"[]", "model_attributes_type", "body"),
        (b"{}", "missing", "body.messages"),
        (b'{"messages": "x"}', "list_type", "body.messages"),
        (b'{"messages": [5]}', "dict_type", "body.messages.0"),
        (b'{"messages": [{}], "model": 5}', "string_type", "body.model"),
        (b'{"messages": [{}], "max_tokens": 1.5}', "int_from_float", "body.max_tokens"),
        (b'{"messages": [{}], "max_tokens": []}', "int_type", "body.max_tokens"),
        (b'{"messages": [{}], "stream": "x"}', "bool_parsing", "body.stream"),
    ],
)
def test_a_body_that_is_not_what_the_route_takes_is_a_validation_error(
    simulator: Simulator, body: bytes, kind: str, param: str
) -> None:
    got = simulator.post(CHAT, body, {"content-type": "application/json"})
    assert got.status == 400
    assert got.json["error"]["param"] == param
    assert got.json["error"]["type"] == "Bad Request"
    assert f"'type': '{kind}'" in got.json["error"]["message"]


def test_a_body_must_say_that_it_is_json(simulator: Simulator) -> None:
    got = simulator.post(CHAT, b"{}", {"content-type": "text/plain"})
    assert got.json == error(
        "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed", "Bad Request"
    )


def test_anthropics_routes_refuse_in_anthropics_shape_except_for_validation(simulator: Simulator) -> None:
    got = simulator.post("/v1/messages", {"model": "no", "messages": user("hi"), "max_tokens": 3})
    message = "The model `no` does not exist. Valid aliases: small, large."
    assert (got.status, got.json) == (404, {"type": "error", "error": {"type": "NotFoundError", "message": message}})
    invalid = simulator.post("/v1/messages", {"model": "small"})
    assert invalid.json["error"]["message"].startswith("2 validation errors:\n")
    assert invalid.json["error"]["param"] == "body.messages"


def test_what_no_route_answers_is_not_found(simulator: Simulator) -> None:
    for path in ("/", "/nothing", "//v1/models", "/v1/models/small"):
        got = simulator.get(path)
        assert (got.status, got.body) == (404, b'{"detail":"Not Found"}')


def test_another_method_is_refused_and_the_right_one_named(simulator: Simulator) -> None:
    got = simulator.get(CHAT)
    assert (got.status, got.headers["allow"], got.body) == (405, "POST", b'{"detail":"Method Not Allowed"}')
    head = simulator.call("HEAD", "/health")
    assert (head.status, head.headers["content-length"], head.body) == (405, "31", b"")


def test_a_slash_too_many_is_redirected(simulator: Simulator) -> None:
    got = simulator.start("GET", "/v1/models/").got
    assert (got.status, got.headers["location"]) == (307, "http://vllm.test/v1/models")


def test_a_percent_encoded_path_is_the_same_path(simulator: Simulator) -> None:
    assert simulator.get("/v1/%6dodels").status == 200


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_the_api_key_is_asked_for_below_v1_and_v2(method: str, path: str) -> None:
    simulator = Simulator(SimulatorSettings(api_key=Secret("right")))
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic right"}, {"x-api-key": "right"}):
        got = simulator.call(method, path, None, headers)
        assert (got.status, got.body) == (401, b'{"error":"Unauthorized"}')
    assert simulator.call(method, path, None, {"authorization": "bearer right"}).status != 401


def test_vllms_gaps_in_its_own_guard_are_there_too() -> None:
    simulator = Simulator(SimulatorSettings(api_key=Secret("right")))
    for path in ("/health", "/metrics", "/is_sleeping"):
        assert simulator.get(path).status == 200
    assert simulator.post("/score", {"text_1": "a", "text_2": "b"}).status == 200
    assert simulator.call("OPTIONS", "/v1/models").status == 405


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_NAMES = """
model messages prompt input max_tokens stream stream_options n temperature query documents text_1 text_2 queries items
tokens system instructions dimensions encoding_format min_tokens seed ignore_eos
"""
_PATHS = """
/v1/chat/completions /v1/completions /v1/messages /v1/messages/count_tokens /v1/responses /v1/embeddings
/score /rerank /classify /pooling /tokenize /detokenize
"""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(path=st.sampled_from(_PATHS.split()), body=st.dictionaries(st.sampled_from(_NAMES.split()), _values, max_size=6))
def test_no_body_makes_a_route_fail(simulator: Simulator, path: str, body: dict[str, Any]) -> None:
    pending = simulator.start("POST", path, {**body, "max_output_tokens": 3})
    simulator.advance(1)
    simulator.advance(1000)
    assert pending.got.status in (200, 400, 404)
