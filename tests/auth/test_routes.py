from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.api_routes import (
    INFERENCE_ROUTES,
    READ_ONLY_ROUTES,
    Route,
    RouteClass,
    classify,
    without_alias,
)

PRIVILEGED = [
    b"/sleep",
    b"/wake_up",
    b"/collective_rpc",
    b"/scale_elastic_ep",
    b"/v1/load_lora_adapter",
    b"/v1/unload_lora_adapter",
    b"/adapters",
    b"/adapters/mine",
    b"/start_profile",
    b"/tokenizer_info",
    b"/server_info",
    b"/fault_tolerance/status",
    b"/abort_requests",
    b"/pause",
    b"/is_paused",
    b"/reset_prefix_cache",
    b"/update_weights",
    b"/v1/chat/completions/render",
    b"/v1/chat/completions/derender",
    b"/v1/completions/render",
    b"/v1/messages/render",
    b"/v1/responses/render",
    b"/cohere/v2/chat/render",
]


def _concrete(path: str) -> bytes:
    return path.replace("{id}", "resp_0a1b").replace("/*", "/below").encode()


@pytest.mark.parametrize("known", INFERENCE_ROUTES, ids=lambda known: known.path)
def test_an_inference_route_is_inference_and_says_whether_its_post_names_a_model(known):
    path = _concrete(known.path)
    assert classify(b"POST", path) == Route(path.decode(), RouteClass.INFERENCE, known.takes_model, name=known.path)
    assert classify(b"GET", path) == Route(path.decode(), RouteClass.INFERENCE, False, name=known.path)


@pytest.mark.parametrize("known", READ_ONLY_ROUTES, ids=lambda known: known.path)
def test_an_operational_route_is_read_only_and_takes_no_model(known):
    path = _concrete(known.path)
    for method in (b"GET", b"HEAD", b"POST", b"OPTIONS"):
        assert classify(method, path) == Route(path.decode(), RouteClass.READ_ONLY, name=known.path)


@pytest.mark.parametrize("path", PRIVILEGED)
@pytest.mark.parametrize("method", [b"GET", b"POST", b"OPTIONS", b"DELETE"])
def test_a_route_that_changes_the_server_is_privileged_by_any_method(method, path):
    found = classify(method, path)
    assert (found.path, found.route_class) == (path.decode(), RouteClass.PRIVILEGED)
    assert found.name in ("", found.path)


@pytest.mark.parametrize("method", [b"POST", b"GET", b"OPTIONS", b"DELETE"])
def test_generating_from_tokens_is_privileged_and_its_post_names_a_model(method):
    found = classify(method, b"/inference/v1/generate")
    assert (found.route_class, found.takes_model) == (RouteClass.PRIVILEGED, method == b"POST")


@pytest.mark.parametrize("path", [b"/", b"/new", b"/v1", b"/V1/models", b"/v1/models/", b"/metricsx", b"/v3/rerank"])
def test_a_path_that_is_not_known_is_privileged(path):
    assert classify(b"GET", path) == Route(path.decode(), RouteClass.PRIVILEGED)


@pytest.mark.parametrize("method", [b"DELETE", b"PUT", b"PATCH", b"TRACE", b"CONNECT", b"get", b"PURGE"])
@pytest.mark.parametrize("path", [b"/v1/models", b"/v1/chat/completions", b"/v1/responses/resp_1"])
def test_an_unusual_method_on_a_known_path_is_privileged(method, path):
    assert classify(method, path).route_class is RouteClass.PRIVILEGED
    assert classify(method, path).certain


@pytest.mark.parametrize("path", [b"/v1/%6dodels", b"/%761/models", b"/v1/mode%6C%73"])
def test_an_escape_that_every_reader_decodes_alike_changes_nothing(path):
    assert classify(b"GET", path) == Route("/v1/models", RouteClass.READ_ONLY, name="/v1/models")


def test_an_escaped_privileged_route_is_named_as_the_server_sees_it():
    assert classify(b"POST", b"/sl%65ep") == Route("/sleep", RouteClass.PRIVILEGED)


@pytest.mark.parametrize(
    "path",
    [
        b"/v1%2Fmodels",
        b"//v1/models",
        b"/v1//models",
        b"/metrics//x",
        b"/metrics/../sleep",
        b"/metrics/%2e%2e/sleep",
        b"/metrics/.%2E/sleep",
        b"/metrics/%252e%252e/sleep",
        b"/metrics/..%2fsleep",
        b"/metrics/./x",
        b"/metrics/.",
        b"/metrics/..;/sleep",
        b"/metrics\\..\\sleep",
        b"/metrics/%5c..%5csleep",
        b"/v1/models;x=1",
        b"/v1/models%3f",
        b"/v1/models%00",
        b"/v1/models%0a",
        b"/v1/models\n",
        b"/v1/models#x",
        b"/v1/models%",
        b"/v1/mod%zzels",
        b"/v1/mod\xc3\xa9ls",
        b"/v1/mod%c3%a9ls",
        b"v1/models",
        b"",
    ],
)
def test_a_path_that_readers_could_understand_differently_is_privileged_and_not_certain(path):
    route = classify(b"GET", path)
    assert route.route_class is RouteClass.PRIVILEGED
    assert not route.certain
    assert not route.takes_model


def test_a_response_named_like_a_longer_path_is_not_taken_for_one():
    assert classify(b"GET", b"/v1/responses/a/b").route_class is RouteClass.PRIVILEGED
    assert classify(b"POST", b"/v1/responses/a/cancel/b").route_class is RouteClass.PRIVILEGED
    assert classify(b"POST", b"/v1/responses/a%2Fcancel").route_class is RouteClass.PRIVILEGED


def test_a_very_long_path_is_classified_as_a_short_one():
    assert classify(b"GET", b"/metrics/" + b"x" * 5000).route_class is RouteClass.READ_ONLY
    assert classify(b"GET", b"/x" + b"x" * 5000).route_class is RouteClass.PRIVILEGED


@given(st.sampled_from([*INFERENCE_ROUTES, *READ_ONLY_ROUTES]), st.data())
def test_escaping_any_letters_of_a_known_path_keeps_its_class(known, data):
    path = _concrete(known.path)
    escaped = b"".join(
        b"%%%02X" % byte if byte != ord("/") and data.draw(st.booleans()) else bytes((byte,)) for byte in path
    )
    assert classify(b"POST", escaped) == classify(b"POST", path)


@given(st.binary(max_size=60).map(lambda tail: b"/" + tail))
def test_only_a_path_that_decodes_to_a_known_one_escapes_the_privileged_class(path):
    route = classify(b"POST", path)
    if route.route_class is not RouteClass.PRIVILEGED:
        assert route.certain
        assert classify(b"POST", quote(route.path, safe="/").encode()).route_class is route.route_class


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/chat/completions", b"/v1/chat/completions"),
        (b"/chat/completions/batch", b"/v1/chat/completions/batch"),
        (b"/responses/resp_1", b"/v1/responses/resp_1"),
        (b"/responses/resp_1/cancel", b"/v1/responses/resp_1/cancel"),
        (b"/models", b"/v1/models"),
        (b"/load_lora_adapter", b"/v1/load_lora_adapter"),
        (b"/v1/chat/completions", b"/v1/chat/completions"),
        (b"/score", b"/score"),
        (b"/metrics", b"/metrics"),
        (b"/chat%2Fcompletions", b"/chat%2Fcompletions"),
        (b"/chat/completions/", b"/chat/completions/"),
        (b"/models\n", b"/models\n"),
    ],
)
def test_the_v1_comes_back_only_where_vllm_has_the_route_below_v1_alone(path, expected):
    assert without_alias(path) == expected
