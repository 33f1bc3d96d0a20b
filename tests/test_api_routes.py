"""What is known of each vLLM route, and which route a request asks for."""

from __future__ import annotations

from urllib.parse import quote

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.api_routes import (
    ROUTES,
    UNKNOWN,
    BodyFields,
    ModelPlace,
    PrefixCache,
    Repeat,
    Route,
    RouteClass,
    RouteTable,
    UsageFormat,
    VllmRoute,
    classify,
    without_alias,
)
from twisted_vllm.bodies.json_body import read_body
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.usage.meter import UsageMeter
from twisted_vllm.usage.pricing import FREE, RoutePricing
from twisted_vllm.usage.records import Usage

INFERENCE_ROUTES = [row for row in ROUTES if row.route_class is RouteClass.INFERENCE]
READ_ONLY_ROUTES = [row for row in ROUTES if row.route_class is RouteClass.READ_ONLY]

#: every row in words: its class, where its model is named, how its usage is read, and what else holds of it
ROWS = {
    "/v1/chat/completions": "inference body chat POST salted alias generates stream_options elsewhere",
    "/v1/chat/completions/batch": "inference body chat POST salted whole alias generates elsewhere",
    "/v1/completions": "inference body completions POST salted alias generates stream_options elsewhere",
    "/v1/responses": "inference body responses POST salted alias generates elsewhere",
    "/v1/responses/{id}": "inference none none GET alias reads",
    "/v1/responses/{id}/cancel": "inference none none POST alias",
    "/v1/messages": "inference body messages POST salted alias generates elsewhere",
    "/v1/messages/count_tokens": "inference body token_count POST alias computes",
    "/v1/embeddings": "inference body completions POST salted alias computes",
    "/v1/audio/transcriptions": "inference body transcription POST shared alias generates audio_uploads elsewhere",
    "/v1/audio/translations": "inference body transcription POST shared alias generates audio_uploads elsewhere",
    "/v1/realtime": "inference event none GET shared alias",
    "/cohere/v2/chat": "inference body cohere_chat POST shared generates elsewhere",
    "/v2/embed": "inference body cohere_embed POST shared computes",
    "/score": "inference body completions POST salted computes",
    "/v1/score": "inference body completions POST salted computes",
    "/rerank": "inference body completions POST salted computes",
    "/v1/rerank": "inference body completions POST salted computes",
    "/v2/rerank": "inference body completions POST salted computes",
    "/classify": "inference body completions POST salted computes",
    "/pooling": "inference body completions POST salted computes",
    "/generative_scoring": "inference body completions POST salted generates elsewhere",
    "/v1/systemone": "inference body completions POST salted generates elsewhere",
    "/tokenize": "inference body tokenize POST computes",
    "/detokenize": "inference body none POST computes",
    "/invocations": "inference header completions POST salted generates stream_options dispatches elsewhere",
    "/v1/models": "read_only none none GET alias reads",
    "/health": "read_only none none GET reads",
    "/ping": "read_only none none GET,POST reads",
    "/load": "read_only none none GET reads",
    "/version": "read_only none none GET reads",
    "/kv_event_sources": "read_only none none GET reads",
    "/metrics": "read_only none none GET,HEAD,OPTIONS,POST,PUT,PATCH,DELETE reads",
    "/metrics/*": "read_only none none GET,HEAD,OPTIONS,POST,PUT,PATCH,DELETE reads",
    "/docs": "read_only none none GET,HEAD reads",
    "/docs/oauth2-redirect": "read_only none none GET,HEAD reads",
    "/redoc": "read_only none none GET,HEAD reads",
    "/openapi.json": "read_only none none GET,HEAD reads",
    "/ready": "read_only none none GET reads",
    "/readyz": "read_only none none GET reads",
    "/is_scaling_elastic_ep": "read_only none none POST reads",
    "/inference/v1/generate": "privileged body completions POST salted generates stream_options elsewhere",
    "/v1/chat/completions/render": "privileged body none POST computes",
    "/v1/chat/completions/derender": "privileged body none POST computes",
    "/v1/completions/render": "privileged body none POST computes",
    "/v1/completions/derender": "privileged body none POST computes",
    "/v1/messages/render": "privileged body none POST computes",
    "/v1/responses/render": "privileged body none POST computes",
    "/v1/load_lora_adapter": "privileged none none POST alias fan_out",
    "/v1/unload_lora_adapter": "privileged none none POST alias fan_out",
    "/sleep": "privileged none none POST fan_out",
    "/wake_up": "privileged none none POST fan_out",
    "/release_kv_cache_memory": "privileged none none POST fan_out",
    "/reset_prefix_cache": "privileged none none POST fan_out",
    "/reset_mm_cache": "privileged none none POST fan_out",
    "/reset_encoder_cache": "privileged none none POST fan_out",
    "/start_profile": "privileged none none POST fan_out",
    "/stop_profile": "privileged none none POST fan_out",
    "/pause": "privileged none none POST fan_out",
    "/resume": "privileged none none POST fan_out",
    "/abort_requests": "privileged none none POST fan_out",
    "/inference/v1/abort_requests": "privileged none none POST fan_out",
    "/start_weight_update": "privileged none none POST fan_out",
    "/start_draft_weight_update": "privileged none none POST fan_out",
    "/update_weights": "privileged none none POST fan_out",
    "/finish_weight_update": "privileged none none POST fan_out",
    "/update_weight_version": "privileged none none POST fan_out",
    "/shutdown_weight_transfer_engine": "privileged none none POST fan_out",
    "/collective_rpc": "privileged perhaps none POST",
    "/init_weight_transfer_engine": "privileged perhaps none POST",
    "/scale_elastic_ep": "privileged perhaps none POST",
    "/fault_tolerance/apply": "privileged perhaps none POST",
    "/weight_checker": "privileged perhaps none POST",
    "/adapters": "privileged perhaps none GET",
    "/fault_tolerance/status": "privileged perhaps none GET",
    "/get_world_size": "privileged perhaps none GET",
    "/is_paused": "privileged perhaps none GET",
    "/is_sleeping": "privileged perhaps none GET",
    "/server_info": "privileged perhaps none GET",
    "/tokenizer_info": "privileged perhaps none GET",
    "/weight_info": "privileged perhaps none GET",
    "/adapters/{id}": "privileged perhaps none DELETE",
}


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


def _in_words(row: VllmRoute) -> str:
    named = (row.route_class.value, row.model.value, row.usage.value, b",".join(row.methods).decode())
    facts = ("alias", "generates", "stream_options", "audio_uploads", "dispatches", "fan_out")
    cached = () if row.prefix_cache is PrefixCache.UNUSED else (row.prefix_cache.value,)
    streams = () if row.streams else ("whole",)
    repeat = () if row.repeat is Repeat.NEVER else (row.repeat.value,)
    return " ".join((*named, *cached, *streams, *(fact for fact in facts if getattr(row, fact)), *repeat))


def test_every_route_is_known_as_it_was() -> None:
    assert {row.path: _in_words(row) for row in ROUTES} == ROWS
    assert len(ROUTES) == len(ROWS)


@pytest.mark.parametrize("row", ROUTES, ids=lambda row: row.path)
def test_whatever_generates_is_limited_and_nothing_else(row: VllmRoute) -> None:
    assert row.generates == bool(row.fields.limits or row.fields.default_limit)


def test_of_a_path_without_a_row_nothing_is_known() -> None:
    assert _in_words(UNKNOWN) == "privileged perhaps none "
    assert classify(b"POST", b"/new").row is UNKNOWN
    assert classify(b"POST", b"/new%2Fmodels").row is UNKNOWN


@pytest.mark.parametrize("row", ROUTES, ids=lambda row: row.path)
@pytest.mark.parametrize("method", [b"POST", b"GET"])
def test_what_decodes_to_a_route_is_that_route(method: bytes, row: VllmRoute) -> None:
    path = _concrete(row.path)
    plain = classify(method, path)
    for escaped in (
        path[:1] + path[1:].replace(b"/", b"%2F"),
        path[:1] + path[1:].replace(b"/", b"%2f", 1),
        path[:1] + b"".join(b"%%%02x" % byte for byte in path[1:]),
    ):
        assert classify(method, escaped) == plain


@pytest.mark.parametrize(
    "path",
    [
        b"//v1/chat/completions",
        b"/v1//chat/completions",
        b"/v1/./chat/completions",
        b"/v1/x/../chat/completions",
        b"/v1/%2e/chat/completions",
        b"/v1\\chat\\completions",
        b"/v1/chat/completions;x=1",
        b"/v1;a/chat;b/completions;c",
        b"/v1/chat%252Fcompletions",
        b"/v1/chat%25252fcompletions",
        b"/v1%2F%2Fchat/completions",
        b"/../v1/chat/completions",
        b"/v1/chat/completions//",
        b"/v1/chat/completions%0A",
        b"/v1/chat/completions%250a",
        b"/v1/chat%2Fcompletions%0a",
    ],
)
def test_an_ambiguous_path_is_privileged_and_uses_the_model_of_the_route_that_it_may_mean(path: bytes) -> None:
    route = classify(b"POST", path)
    assert (route.route_class, route.certain, route.name) == (RouteClass.PRIVILEGED, False, "")
    assert route.takes_model
    assert route.row.path == "/v1/chat/completions"


@pytest.mark.parametrize("row", ROUTES, ids=lambda row: row.path)
def test_no_request_that_generates_stores_or_changes_is_repeatable(row: VllmRoute) -> None:
    changes = row.generates or row.stores or row.fan_out or row.path.endswith("/cancel")
    for method in row.methods:
        repeatable = classify(method, _concrete(row.path)).repeatable
        if changes:
            assert not repeatable
            assert row.repeat in (Repeat.NEVER, Repeat.ELSEWHERE)
        elif row.route_class is not RouteClass.PRIVILEGED:
            assert repeatable


def test_what_generates_goes_to_another_server_once_the_first_has_failed_and_acts_on_a_server_do_not() -> None:
    for path in (b"/v1/chat/completions", b"/v1/completions", b"/v1/messages", b"/v1/responses", b"/v1/embeddings"):
        assert classify(b"POST", path).fails_over
    for path in (b"/v1/responses/resp_1/cancel", b"/v1/load_lora_adapter", b"/sleep", b"/unknown", b"/v1/realtime"):
        assert not classify(b"POST", path).fails_over
    for row in ROUTES:
        for method in row.methods:
            route = classify(method, _concrete(row.path))
            assert route.fails_over or not route.repeatable


@pytest.mark.parametrize("path", [b"/new", b"/v1/files", b"/v1/embeddings/", b"/v1//embeddings", b"/v1/embeddings;x=1"])
@pytest.mark.parametrize("method", [b"GET", b"POST", b"OPTIONS"])
def test_a_request_to_an_unknown_or_ambiguous_path_is_not_repeatable(method: bytes, path: bytes) -> None:
    assert not classify(method, path).repeatable


def test_a_request_by_a_method_that_vllm_does_not_serve_is_repeatable_only_if_it_is_safe() -> None:
    for method in (b"GET", b"HEAD", b"OPTIONS"):
        assert classify(method, b"/v1/chat/completions").repeatable
    assert not classify(b"POST", b"/health").repeatable
    assert not classify(b"PUT", b"/v1/embeddings").repeatable


def test_a_new_route_is_one_row() -> None:
    row = VllmRoute(
        "/v1/poems/{id}",
        RouteClass.INFERENCE,
        model=ModelPlace.BODY,
        alias=True,
        usage=UsageFormat.CHAT,
        generates=True,
        fields=BodyFields(("max_verses",)),
    )
    table = RouteTable((*ROUTES, row))
    assert table.without_alias(b"/poems/ode") == b"/v1/poems/ode"
    assert table.prefix_without_alias("/poems/") == "/v1/poems/"
    route = table.classify(b"POST", b"/v1/poems/ode")
    assert route == Route("/v1/poems/ode", RouteClass.INFERENCE, True, name="/v1/poems/{id}", row=row)
    assert classify(b"POST", b"/v1/poems/ode") == Route("/v1/poems/ode", RouteClass.PRIVILEGED)

    assert read_body(b'{"model":"m","max_verses":4,"max_tokens":9}', route.row.fields).max_tokens == 4
    meter = UsageMeter(RoutePricing(route, FREE), 10, 1, False)
    meter.start(ResponseHead(200, b"OK", [(b"Content-Type", b"application/json")]))
    meter.finish(b'{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}')
    assert meter.usage("completed") == Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7)


def test_a_table_without_aliases_has_none() -> None:
    table = RouteTable((VllmRoute("/health"),))
    assert [table.without_alias(path) for path in (b"", b"/", b"/models")] == [b"", b"/", b"/models"]


@pytest.mark.parametrize("known", INFERENCE_ROUTES, ids=lambda known: known.path)
def test_an_inference_route_is_inference_and_says_whether_its_post_names_a_model(known: VllmRoute) -> None:
    path = _concrete(known.path)
    takes_model = known.model in (ModelPlace.BODY, ModelPlace.HEADER)
    posted, got = classify(b"POST", path), classify(b"GET", path)
    assert attrs.evolve(posted, repeatable=False, fails_over=False) == Route(
        path.decode(), RouteClass.INFERENCE, takes_model, name=known.path, row=known
    )
    assert got == attrs.evolve(posted, takes_model=False, repeatable=True, fails_over=True)


@pytest.mark.parametrize("known", READ_ONLY_ROUTES, ids=lambda known: known.path)
def test_an_operational_route_is_read_only_and_takes_no_model(known: VllmRoute) -> None:
    path = _concrete(known.path)
    for method in (b"GET", b"HEAD", b"POST", b"OPTIONS"):
        route = attrs.evolve(classify(method, path), repeatable=False, fails_over=False)
        assert route == Route(path.decode(), RouteClass.READ_ONLY, name=known.path, row=known)


@pytest.mark.parametrize("path", PRIVILEGED)
@pytest.mark.parametrize("method", [b"GET", b"POST", b"OPTIONS", b"DELETE"])
def test_a_route_that_changes_the_server_is_privileged_by_any_method(method: bytes, path: bytes) -> None:
    found = classify(method, path)
    assert (found.path, found.route_class) == (path.decode(), RouteClass.PRIVILEGED)
    assert found.name in ("", found.row.path)


@pytest.mark.parametrize("method", [b"POST", b"GET", b"OPTIONS", b"DELETE"])
def test_generating_from_tokens_is_privileged_and_its_post_names_a_model(method: bytes) -> None:
    found = classify(method, b"/inference/v1/generate")
    assert (found.route_class, found.takes_model) == (RouteClass.PRIVILEGED, method == b"POST")


@pytest.mark.parametrize("path", [b"/", b"/new", b"/v1", b"/V1/models", b"/v1/models/", b"/metricsx", b"/v3/rerank"])
def test_a_path_that_is_not_known_is_privileged(path: bytes) -> None:
    assert classify(b"GET", path) == Route(path.decode(), RouteClass.PRIVILEGED)


@pytest.mark.parametrize("method", [b"DELETE", b"PUT", b"PATCH", b"TRACE", b"CONNECT", b"get", b"PURGE"])
@pytest.mark.parametrize("path", [b"/v1/models", b"/v1/chat/completions", b"/v1/responses/resp_1"])
def test_an_unusual_method_on_a_known_path_is_privileged(method: bytes, path: bytes) -> None:
    assert classify(method, path).route_class is RouteClass.PRIVILEGED
    assert classify(method, path).certain


@pytest.mark.parametrize("path", [b"/v1/%6dodels", b"/%761/models", b"/v1/mode%6C%73"])
def test_an_escape_that_every_reader_decodes_alike_changes_nothing(path: bytes) -> None:
    [row] = [row for row in ROUTES if row.path == "/v1/models"]
    assert classify(b"GET", path) == Route(
        "/v1/models", RouteClass.READ_ONLY, name="/v1/models", row=row, repeatable=True, fails_over=True
    )


def test_a_method_that_vllm_serves_keeps_the_class_of_its_path() -> None:
    assert classify(b"PUT", b"/metrics").route_class is RouteClass.READ_ONLY
    assert classify(b"DELETE", b"/adapters/mine").name == "/adapters/{id}"
    assert classify(b"DELETE", b"/health").route_class is RouteClass.PRIVILEGED


def test_an_escaped_privileged_route_is_named_as_the_server_sees_it() -> None:
    assert classify(b"POST", b"/sl%65ep") == classify(b"POST", b"/sleep")
    assert classify(b"POST", b"/collective%5Frpc") == classify(b"POST", b"/collective_rpc")


def test_an_act_on_the_fleet_goes_to_all_servers_by_its_method_and_plain_path_only() -> None:
    assert classify(b"POST", b"/sleep").fans_out
    assert classify(b"POST", b"/v1/load_lora_adapter").fans_out
    for method, path in ((b"GET", b"/sleep"), (b"POST", b"//sleep"), (b"POST", b"/sleep/"), (b"POST", b"/tokenize")):
        assert not classify(method, path).fans_out


@pytest.mark.parametrize(
    "path",
    [
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
def test_a_path_that_readers_could_understand_differently_is_privileged_and_not_certain(path: bytes) -> None:
    route = classify(b"GET", path)
    assert route.route_class is RouteClass.PRIVILEGED
    assert not route.certain
    assert not route.takes_model


def test_a_response_named_like_a_longer_path_is_not_taken_for_one() -> None:
    assert classify(b"GET", b"/v1/responses/a/b").route_class is RouteClass.PRIVILEGED
    assert classify(b"POST", b"/v1/responses/a/cancel/b").route_class is RouteClass.PRIVILEGED
    assert classify(b"POST", b"/v1/responses/a%252Fcancel").route_class is RouteClass.PRIVILEGED


def test_a_very_long_path_is_classified_as_a_short_one() -> None:
    assert classify(b"GET", b"/metrics/" + b"x" * 5000).route_class is RouteClass.READ_ONLY
    assert classify(b"GET", b"/x" + b"x" * 5000).route_class is RouteClass.PRIVILEGED


@given(st.sampled_from([*INFERENCE_ROUTES, *READ_ONLY_ROUTES]), st.data())
def test_escaping_any_letters_of_a_known_path_keeps_its_class(known: VllmRoute, data: st.DataObject) -> None:
    path = _concrete(known.path)
    escaped = b"/" + b"".join(b"%%%02X" % byte if data.draw(st.booleans()) else bytes((byte,)) for byte in path[1:])
    assert classify(b"POST", escaped) == classify(b"POST", path)


@given(st.binary(max_size=60).map(lambda tail: b"/" + tail))
def test_only_a_path_that_decodes_to_a_known_one_escapes_the_privileged_class(path: bytes) -> None:
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
def test_the_v1_comes_back_only_where_vllm_has_the_route_below_v1_alone(path: bytes, expected: bytes) -> None:
    assert without_alias(path) == expected
