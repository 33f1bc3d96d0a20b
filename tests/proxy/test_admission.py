"""Authorization of requests, and the choice of their server."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.proxy.gateway_fakes import BaseModelsOf, WholeRequest, server
from tests.upstreams.fleets import make_router
from twisted_vllm.api_routes import ROUTES, ModelPlace, PrefixCache, VllmRoute
from twisted_vllm.auth.authenticator import Authenticator
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.policy import RoutePolicy
from twisted_vllm.auth.records import ANONYMOUS, MASTER, PREFLIGHT, Principal
from twisted_vllm.bodies.json_body import MAX_SURE
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import ModelEntry, PriceList, Server, TenantRoutes
from twisted_vllm.errors import (
    InvalidApiKey,
    InvalidRequest,
    MissingApiKey,
    ModelNotAllowed,
    ModelNotFound,
    ModelUndetermined,
    RouteNotAllowed,
    RouteNotFound,
)
from twisted_vllm.http.headers import RequestHead
from twisted_vllm.proxy.admission import Admission
from twisted_vllm.proxy.serving import LONGEST_NAME, BaseModelUnknown
from twisted_vllm.ratelimit.allowance import Allowance, Limited

DEFAULT = server("default:8000")
ONE = server("one:8000")
TWO = server("two:8000")
MODELS = (ModelEntry("public", "private", ONE), ModelEntry("same", "same", TWO))
JSON = {b"content-type": b"application/json"}
FORM = {b"content-type": b"multipart/form-data; boundary=b"}
TENANT = Principal(kind="key", name="team-a", hash_prefix="0123abcd")
RESTRICTED = Principal(kind="key", name="team-b", hash_prefix="4567cdef", models=("public", "small-*"))

#: bodies with an ambiguous model
UNDETERMINED = [
    (JSON, b'{"model": "public",}'),
    (JSON, '{"model": "public"}'.encode("utf-16")),
    (JSON, b'{"model": ["public"]}'),
    (JSON, b'["public"]'),
    (JSON, b"\xef\xbb\xbf" + b'{"model": "public"}'),
    ({}, b'{"model": "public"}'),
    ({b"content-type": b"text/plain"}, b'{"model": "public"}'),
    ({b"content-type": b"application/x-www-form-urlencoded"}, b"model=public"),
    (FORM, b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\npublic\r\n'),
]

#: bodies that name their model more than once
REPEATED = [b'{"model": "public", "model": "same"}', b'{"model": "public", "\\u006dodel": "same"}']


def admission(
    models: tuple[ModelEntry, ...] = (),
    default: Server | None = DEFAULT,
    master_key: str | None = "sk-master",
    **options: Any,
) -> Admission:
    return Admission(
        authenticator=Authenticator(None if master_key is None else Secret(master_key), KeyIndex()),
        policy=RoutePolicy(options.pop("tenant_routes", TenantRoutes())),
        router=make_router(models, default),
        base_models=options.pop("base_models", BaseModelsOf()),
        path_aliases=options.pop("path_aliases", True),
    )


def admit(
    asked: Admission,
    body: bytes | None,
    principal: Principal = TENANT,
    headers: Any = JSON,
    method: bytes = b"POST",
    path: bytes = b"/v1/completions",
) -> WholeRequest:
    authorization = asked.authorize(principal, method, path)
    return WholeRequest(asked, authorization, asked.admit(authorization, headers, body))


def form(model: bytes) -> bytes:
    return (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\x00\r\n'
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + model + b"\r\n--b--\r\n"
    )


# who


def test_without_a_master_key_every_caller_is_anonymous() -> None:
    asked = admission(master_key=None)
    assert asked.identify({}, 0) is ANONYMOUS
    assert asked.identify({b"authorization": b"Bearer anything"}, 0) is ANONYMOUS


def test_the_master_key_is_known_and_others_are_refused() -> None:
    asked = admission()
    assert asked.identify({b"x-api-key": b"sk-master"}, 0) is MASTER
    with pytest.raises(InvalidApiKey):
        asked.identify({b"authorization": b"Bearer sk-other"}, 0)
    with pytest.raises(MissingApiKey):
        asked.identify({}, 0)


# what for


@pytest.mark.parametrize(
    "path", [b"/sleep", b"/v1/load_lora_adapter", b"/unheard/of", b"/v1//models", b"/v1/x/../models"]
)
def test_a_privileged_route_is_for_administrators(path: bytes) -> None:
    asked = admission()
    asked.authorize(MASTER, b"POST", path)
    asked.authorize(ANONYMOUS, b"POST", path)
    with pytest.raises((RouteNotAllowed, RouteNotFound)):
        asked.authorize(TENANT, b"POST", path)


def test_the_operator_may_open_a_route_to_every_key() -> None:
    asked = admission(tenant_routes=TenantRoutes(allow=("/sleep",)))
    assert asked.authorize(TENANT, b"POST", b"/sleep").route.path == "/sleep"


def test_an_alias_is_authorized_as_the_server_s_path() -> None:
    authorization = admission().authorize(TENANT, b"POST", b"/chat/completions?a=%2F")
    assert authorization.forwarded == b"/v1/chat/completions?a=%2F"
    with pytest.raises(RouteNotFound):
        admission(path_aliases=False).authorize(TENANT, b"POST", b"/chat/completions")


def test_dot_segments_cannot_leave_vllm() -> None:
    with pytest.raises(InvalidRequest):
        admission().authorize(MASTER, b"GET", b"/../key/list")


@pytest.mark.parametrize(
    ("models", "principal", "method", "path", "needed"),
    [
        ((), TENANT, b"POST", b"/v1/completions", False),
        (MODELS, TENANT, b"POST", b"/v1/completions", True),
        ((), RESTRICTED, b"POST", b"/v1/completions", True),
        (MODELS, RESTRICTED, b"GET", b"/v1/models", False),
        (MODELS, MASTER, b"POST", b"/sleep", False),
    ],
)
def test_the_body_is_buffered_only_if_the_model_matters(
    models: Any, principal: Principal, method: bytes, path: bytes, needed: bool
) -> None:
    assert admission(models).authorize(principal, method, path).needs_body is needed


# where to


def test_a_request_goes_to_its_model_s_server_with_the_server_s_model_name() -> None:
    body = b'{ "model" : "public", "x": 1.0 }'
    found = admit(admission(MODELS), body)
    assert (found.server, found.path, found.model) == (ONE, b"/v1/completions", "public")
    assert found.body == b'{ "model" : "private", "x": 1.0 }'


def test_a_body_whose_model_keeps_its_name_is_the_same_object() -> None:
    body = b'{"model": "same"}'
    found = admit(admission(MODELS), body)
    assert found.server is TWO
    assert found.body is body


def test_a_form_goes_to_its_model_s_server_with_the_server_s_model_name() -> None:
    found = admit(admission(MODELS), form(b"public"), headers=FORM, path=b"/v1/audio/transcriptions")
    assert (found.server, found.model, found.body) == (ONE, "public", form(b"private"))


def test_a_model_that_no_authorization_names_goes_to_the_default_server() -> None:
    found = admit(admission(MODELS), b'{"model": "other"}')
    assert (found.server, found.model, found.body) == (DEFAULT, "other", b'{"model": "other"}')


def test_a_model_that_no_authorization_names_is_not_found_without_a_default_server() -> None:
    with pytest.raises(ModelNotFound, match="'other'"):
        admit(admission(MODELS, None), b'{"model": "other"}')


def test_a_model_s_name_that_is_longer_than_any_is_not_found() -> None:
    longest, longer = "m" * LONGEST_NAME, "m" * (LONGEST_NAME + 1)
    asked = admission(MODELS)
    assert admit(asked, b'{"model": "%b"}' % longest.encode()).model == longest
    with pytest.raises(ModelNotFound, match="4,096 bytes"):
        admit(asked, b'{"model": "%b"}' % longer.encode())
    with pytest.raises(ModelNotFound):
        admit(asked, form(longer.encode()), headers=FORM, path=b"/v1/audio/transcriptions")
    with pytest.raises(ModelNotFound):
        invoke(asked, longer, MASTER)


@pytest.mark.parametrize(("default", "expected"), [(DEFAULT, DEFAULT), (None, ONE)])
def test_a_request_without_a_model_goes_to_the_default_server_else_to_the_first(default: Any, expected: Server) -> None:
    asked = admission(MODELS, default)
    assert admit(asked, b"", method=b"GET", path=b"/v1/models").server is expected
    assert admit(asked, None, method=b"POST", path=b"/sleep", principal=MASTER).server is expected
    assert admit(asked, b'{"prompt": "x"}').server is expected


@pytest.mark.parametrize(("default", "expected"), [(DEFAULT, DEFAULT), (None, ONE)])
@pytest.mark.parametrize(("headers", "body"), UNDETERMINED)
def test_an_ambiguous_body_passes_unchanged_if_nothing_depends_on_it(
    default: Any, expected: Server, headers: Any, body: bytes
) -> None:
    for principal in (TENANT, MASTER, ANONYMOUS):
        found = admit(admission(MODELS, default), body, principal, headers)
        assert (found.server, found.model) == (expected, "")
        assert found.body is body
        # what is certainly no object is left to the server's own error
        assert (found.unread is None) is (headers is JSON and body in (UNDETERMINED[0][1], UNDETERMINED[3][1]))


@pytest.mark.parametrize("body", REPEATED)
def test_a_model_that_is_repeated_is_refused_to_keys_and_read_as_vllm_reads_it_for_others(body: bytes) -> None:
    for models in (MODELS, ()):
        with pytest.raises(ModelUndetermined, match="more than once"):
            admit(admission(models), body, TENANT)
    for principal in (MASTER, ANONYMOUS):
        found = admit(admission(MODELS), body, principal)
        assert (found.server, found.model) == (TWO, "same")


NOTHING_NAMED = [b'{"prompt": "x"}', b'{"model": null}', b'{"model": ""}', b'{"mod\\u0065l": null, "a": 1}']


@pytest.mark.parametrize("body", NOTHING_NAMED)
@pytest.mark.parametrize("principal", [TENANT, MASTER])
def test_the_first_entry_is_named_in_a_request_that_names_none(principal: Principal, body: bytes) -> None:
    found = admit(admission(MODELS, None), body, principal)
    assert (found.server, found.model, found.entry) == (ONE, "public", MODELS[0])
    assert isinstance(found.body, bytes)
    assert json.loads(found.body) == {**json.loads(body), "model": "private"}


@pytest.mark.parametrize("body", NOTHING_NAMED)
def test_the_default_server_s_own_choice_is_left_to_it_and_its_price_is_unknown_if_prices_differ(body: bytes) -> None:
    priced = ModelEntry("good", "served", DEFAULT, 1, PriceList(Decimal(1)))
    for models, known in (((), True), (MODELS, True), ((*MODELS, priced), False)):
        found = admit(admission(models), body)
        assert (found.server, found.model, found.body) == (DEFAULT, "", body)
        assert found.serving.priced is known


def test_a_form_without_a_model_is_not_taken_for_the_first_entry() -> None:
    body = b"--b--\r\n"
    found = admit(admission(MODELS, None), body, headers=FORM, path=b"/v1/audio/transcriptions")
    assert (found.server, found.model, found.body, found.entry) == (ONE, "", body, None)


def test_the_served_name_of_a_priced_model_is_that_model() -> None:
    entry = ModelEntry("good", "served", DEFAULT, 1, PriceList(Decimal(1)))
    body = b'{"model": "served"}'
    found = admit(admission((entry,)), body)
    assert (found.server, found.model, found.body) == (DEFAULT, "good", body)
    assert (found.entry, found.serving.asked) == (entry, "served")


# /invocations, where vLLM ignores the body's model

GOOD = ModelEntry("good", "good-lora", DEFAULT, 1, PriceList(Decimal(1)))
BASE = ModelEntry("big", "base", DEFAULT, 1, PriceList(Decimal(9)))
KEY_OF_GOOD = Principal(kind="key", name="k", models=("good",))


def invoke(asked: Admission, model: str, principal: Principal, headers: Any = JSON) -> WholeRequest:
    body = b'{"model": "%b", "prompt": "x"}' % model.encode()
    found = admit(asked, body, principal, headers, path=b"/invocations")
    assert found.body == body
    return found


def test_the_base_model_serves_and_decides() -> None:
    asked = admission((GOOD, BASE), base_models=BaseModelsOf(default="base"))
    with pytest.raises(ModelNotAllowed, match="'big'"):
        invoke(asked, "good", KEY_OF_GOOD)
    found = invoke(asked, "good", TENANT)
    assert (found.server, found.model, found.entry) == (DEFAULT, "big", BASE)
    allowed = Principal(kind="key", name="k", models=("big",))
    assert invoke(asked, "big", allowed).model == "big"
    unlisted = admission((GOOD,), base_models=BaseModelsOf(default="base"))
    assert invoke(unlisted, "good", TENANT).model == "base"
    with pytest.raises(ModelNotAllowed, match="'base'"):
        invoke(unlisted, "goofy", Principal(kind="key", name="k", models=("goo*",)))


def test_a_restricted_key_names_a_model_that_exists() -> None:
    asked = admission((BASE,), base_models=BaseModelsOf(default="base", adapters=frozenset(("big-adapter",))))
    key = Principal(kind="key", name="k", models=("big*",))
    with pytest.raises(ModelNotFound, match="'bigger'"):
        invoke(asked, "bigger", key)
    for name in ("base", "big", "big-adapter"):
        assert invoke(asked, name, key).model == "big"
    for anybody in (TENANT, MASTER):
        assert invoke(asked, "bigger", anybody).model == "big"


def test_the_base_model_of_the_server_that_the_body_s_model_chooses_counts() -> None:
    asked = admission((*MODELS, GOOD), base_models=BaseModelsOf(one="private", default="base"))
    assert invoke(asked, "public", RESTRICTED).server is ONE
    with pytest.raises(ModelNotFound):
        invoke(admission(MODELS, None), "other", TENANT)


def test_a_server_is_asked_first_and_if_it_does_not_tell_a_restricted_key_is_refused() -> None:
    base_models = BaseModelsOf(answers={"one": "private"})
    asked = admission((GOOD, *MODELS), base_models=base_models)
    for name in ("public", "good"):
        with pytest.raises(BaseModelUnknown) as unknown:
            invoke(asked, name, TENANT)
        base_models.ask(unknown.value.server)
    assert invoke(asked, "public", RESTRICTED).model == "public"
    found = invoke(asked, "good", TENANT)
    assert (found.server, found.model, found.serving.priced) == (DEFAULT, "", False)
    with pytest.raises(ModelNotAllowed, match="base model"):
        invoke(asked, "good", KEY_OF_GOOD)


def test_an_adapter_in_a_header_serves_where_the_caller_may_set_it() -> None:
    headers = {**JSON, b"x-amzn-sagemaker-adapter-identifier": b"good-lora"}
    asked = admission((GOOD, BASE), base_models=BaseModelsOf(default="base"))
    assert invoke(asked, "x", MASTER, headers).model == "good"
    assert invoke(asked, "x", TENANT, headers).model == "big"
    granted = Principal(kind="key", name="k", granted_headers=frozenset((b"x-amzn-sagemaker-adapter-identifier",)))
    assert invoke(asked, "x", granted, headers).model == "good"


# paths that decode to a route, or may

PRIVILEGED = Principal(kind="key", name="k", models=("public",), allowed_routes=("inference", "privileged", "/v1/*"))


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/chat%2Fcompletions",
        b"/v1%2fchat%2fcompletions",
        b"/v1//chat/completions",
        b"/x/../v1/chat/completions",
        b"/v1/chat%252Fcompletions",
        b"/v1/chat/completions;x",
        b"/v1/chat/completions/render",
        b"/v1/chat/completions/derender",
        b"/v1/completions/render",
        b"/v1/messages/render",
        b"/v1/responses/render",
        b"/inference/v1/generate",
        b"/v1/something/new",
        b"/v1/chat/completions/",
    ],
)
def test_no_path_of_a_privileged_key_avoids_its_models(path: bytes) -> None:
    asked = admission(MODELS)
    assert asked.authorize(PRIVILEGED, b"POST", path).needs_body
    with pytest.raises(ModelNotAllowed, match="'same'"):
        admit(asked, b'{"model": "same"}', PRIVILEGED, path=path)
    with pytest.raises(ModelUndetermined):
        admit(asked, '{"model": "same"}'.encode("utf-16"), PRIVILEGED, path=path)
    assert admit(asked, b'{"model": "public"}', PRIVILEGED, path=path).server in (ONE, DEFAULT)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"level": 1}'])
def test_a_privileged_route_without_a_model_stays_open_to_a_restricted_key(body: bytes) -> None:
    assert admit(admission(MODELS), body, PRIVILEGED, path=b"/scale_elastic_ep").body == body
    # what goes to all servers is not a model's
    with pytest.raises(ModelUndetermined):
        admit(admission(MODELS), body, PRIVILEGED, path=b"/sleep")


def test_a_path_that_decodes_to_a_route_is_salted_and_renamed_as_the_route() -> None:
    salted = Principal(kind="key", name="k", cache_salt="pepper")
    found = admit(admission(MODELS), b'{"model": "public"}', salted, path=b"/v1/chat%2Fcompletions")
    assert (found.path, found.body) == (b"/v1/chat%2Fcompletions", b'{"cache_salt":"pepper","model": "private"}')


# names that are paths

PATHS = [
    "good-lora/../secret-lora",
    "good-lora/.",
    "./good-lora",
    "../loras/good-lora",
    "good-lora/",
    "good-lora//x",
    "good-lora\\..\\x",
    "good\0lora",
    "good\nlora",
    "good\x85lora",
    ".",
    "..",
]


@pytest.mark.parametrize("name", PATHS)
def test_a_name_that_may_be_another_spelling_of_a_path_is_refused(name: str) -> None:
    body = json.dumps({"model": name}).encode()
    for principal in (TENANT, Principal(kind="key", name="k", models=("*",))):
        with pytest.raises(ModelNotAllowed, match="path"):
            admit(admission(), body, principal)
    assert admit(admission(), body, MASTER).model == name
    configured = ModelEntry(name, "x", ONE)
    assert admit(admission((configured,)), body, TENANT).server is ONE


@pytest.mark.parametrize("name", ["/models/qwen", "Qwen/Qwen2.5-7B", "a.b/c..d", "日本", "a b", ".hidden", "..x/y"])
def test_an_ordinary_name_with_slashes_and_dots_is_none(name: str) -> None:
    assert admit(admission(), json.dumps({"model": name}).encode(), TENANT).model == name


def test_an_absolute_path_is_refused_where_models_are_counted() -> None:
    counted = Limited("key", "k", Allowance(model_rpm={"good-lora": 1}))
    with pytest.raises(ModelNotAllowed, match="path"):
        admit(admission(), b'{"model": "/loras/good-lora"}', Principal(kind="key", name="k", limited=(counted,)))


# streams that vLLM does not count


def test_a_batch_does_not_stream() -> None:
    body = b'{"model": "public", "messages": [[]], "stream": "yes"}'
    with pytest.raises(InvalidRequest, match="stream"):
        admit(admission(MODELS), body, path=b"/v1/chat/completions/batch")
    admit(admission(MODELS), body.replace(b"yes", b"no"), path=b"/v1/chat/completions/batch")
    admit(admission(MODELS), body, MASTER, path=b"/v1/chat/completions/batch")


# with which model


@pytest.mark.parametrize(
    ("headers", "body"),
    [*UNDETERMINED, *((JSON, body) for body in (*REPEATED, *NOTHING_NAMED, b"")), ({}, b"")],
)
def test_a_restricted_key_must_name_its_model_unambiguously(headers: Any, body: bytes) -> None:
    for asked in (admission(MODELS), admission()):
        with pytest.raises(ModelUndetermined) as refused:
            admit(asked, body, RESTRICTED, headers)
        assert (refused.value.status, refused.value.code) == (400, "model_undetermined")


@pytest.mark.parametrize("model", ["public", "small-1"])
def test_a_restricted_key_may_use_its_models(model: str) -> None:
    assert admit(admission(), b'{"model": "%b"}' % model.encode(), RESTRICTED).model == model


@pytest.mark.parametrize("model", ["same", "Public", "public ", "private", "x/small-1"])
def test_a_restricted_key_may_use_no_other(model: str) -> None:
    with pytest.raises(ModelNotAllowed):
        admit(admission(MODELS), b'{"model": "%b"}' % model.encode(), RESTRICTED)
    with pytest.raises(ModelNotAllowed):
        admit(admission(MODELS), form(model.encode()), RESTRICTED, FORM, path=b"/v1/audio/transcriptions")


def test_a_restricted_key_gets_no_connection_whose_model_is_named_later() -> None:
    with pytest.raises(ModelUndetermined):
        admit(admission(), None, RESTRICTED, {}, b"GET", b"/v1/realtime")


@given(st.binary(max_size=200), st.sampled_from([JSON, FORM, {}]))
def test_no_body_takes_a_restricted_key_to_a_model_that_is_not_its_own(body: bytes, headers: Any) -> None:
    asked = admission(MODELS)
    try:
        found = admit(asked, body, RESTRICTED, headers)
    except (ModelUndetermined, ModelNotAllowed):
        return
    assert found.model == "public" or found.model.startswith("small-")


@given(st.binary(max_size=200), st.sampled_from([JSON, FORM, {}]))
def test_every_body_of_an_unrestricted_key_goes_somewhere(body: bytes, headers: Any) -> None:
    found = admit(admission(), body, TENANT, headers)
    assert (found.server, found.body) == (DEFAULT, body)


def test_a_browsers_preflight_needs_no_key_and_opens_no_privileged_route() -> None:
    asked = admission()
    preflight = {b"origin": b"https://app.example", b"access-control-request-method": b"POST"}
    principal = asked.identify(preflight, 0, b"OPTIONS")
    assert asked.authorize(principal, b"OPTIONS", b"/v1/chat/completions").route.path == "/v1/chat/completions"
    with pytest.raises(RouteNotAllowed):
        asked.authorize(principal, b"OPTIONS", b"/sleep")


@pytest.mark.parametrize(
    "more",
    [
        {b"content-length": b"0"},
        {b"origin": b"null"},
        {b"x-litellm-end-user-id": b"eve"},
    ],
)
def test_a_preflight_may_say_what_browsers_and_tools_say(more: dict[bytes, bytes]) -> None:
    preflight = {b"origin": b"https://app.example", b"access-control-request-method": b"POST"}
    assert admission().identify({**preflight, **more}, 0, b"OPTIONS").kind == "preflight"


@pytest.mark.parametrize(
    "headers",
    [
        {b"access-control-request-method": b"POST"},
        {b"origin": b"https://app.example"},
    ],
)
def test_what_no_browser_sends_before_a_request_needs_a_key(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(MissingApiKey):
        admission().identify(headers, 0, b"OPTIONS")


def test_a_preflight_with_a_body_needs_a_key() -> None:
    preflight = {b"origin": b"https://app.example", b"access-control-request-method": b"POST"}
    with pytest.raises(MissingApiKey):
        admission().identify(preflight, 0, b"OPTIONS", has_body=True)


def test_only_a_preflight_goes_without_a_key() -> None:
    asked = admission()
    with pytest.raises(MissingApiKey):
        asked.identify({}, 0, b"OPTIONS")
    with pytest.raises(MissingApiKey):
        asked.identify({b"access-control-request-method": b"POST"}, 0, b"POST")
    with pytest.raises(InvalidApiKey):
        asked.identify({b"access-control-request-method": b"POST", b"api-key": b"sk-other"}, 0, b"OPTIONS")


# the key's own names, and what its user and team allow

ALIASED = Principal(kind="key", name="team-c", models=("public",), aliases={"gpt-4": "public", "public": "secret"})


@pytest.mark.parametrize(
    "make", [lambda name: (JSON, b'{"a": 1, "model": "%s"}' % name), lambda name: (FORM, form(name))]
)
def test_a_key_s_alias_is_resolved_for_permission_route_and_body(make: Any) -> None:
    headers, body = make(b"gpt-4")
    found = admit(admission(MODELS), body, ALIASED, headers)
    assert (found.server, found.model) == (ONE, "public")
    assert found.body == make(b"private")[1]


def test_a_key_s_alias_is_resolved_with_a_single_server() -> None:
    found = admit(admission(), b'{"model": "gpt-4"}', ALIASED)
    assert (found.server, found.body) == (DEFAULT, b'{"model": "public"}')


def test_an_alias_is_resolved_once_and_its_model_must_be_allowed() -> None:
    with pytest.raises(ModelNotAllowed, match="secret"):
        admit(admission(MODELS), b'{"model": "public"}', ALIASED)


def test_a_key_with_aliases_passes_other_bodies_unchanged() -> None:
    free = Principal(kind="key", name="team-d", aliases={"gpt-4": "public"})
    for headers, body in [*UNDETERMINED, (JSON, b'{"model": "other"}'), (JSON, b"{}")]:
        assert admit(admission(), body, free, headers).body == body


@pytest.mark.parametrize(("level", "who"), [("models", "key"), ("user_models", "user"), ("team_models", "team")])
def test_each_level_is_checked_and_the_refusal_says_which_it_was(level: str, who: str) -> None:
    levels: Any = {"models": ("p*",), "user_models": ("*",), "team_models": ("public", "small")}
    assert admit(admission(), b'{"model": "public"}', Principal(kind="key", name="k", **levels)).model == "public"
    refusing = Principal(kind="key", name="k", **{**levels, level: ("other",)})
    with pytest.raises(ModelNotAllowed, match=f"the {who}'s models") as refused:
        admit(admission(), b'{"model": "public"}', refusing)
    assert "other" in refused.value.message


@pytest.mark.parametrize("level", ["user_models", "team_models"])
def test_a_body_whose_model_is_not_certain_is_refused_where_a_user_or_a_team_is_limited(level: str) -> None:
    models: Any = {level: ("public",)}
    limited = Principal(kind="key", name="k", **models)
    for headers, body in UNDETERMINED:
        with pytest.raises(ModelUndetermined):
            admit(admission(), body, limited, headers)


SALTED = Principal(kind="key", name="team-c", hash_prefix="89ab0123", cache_salt="pepper")
UNCLEAR = ModelUndetermined("unclear")


@pytest.mark.parametrize("principal", [ANONYMOUS, MASTER, TENANT, RESTRICTED])
@pytest.mark.parametrize("name", ["public", "same", "other", "small-one", None])
def test_a_form_that_streams_is_admitted_as_one_that_is_held(principal: Principal, name: str | None) -> None:
    decides = admission(MODELS)
    authorization = decides.authorize(principal, b"POST", b"/v1/audio/transcriptions")
    field = (
        b"" if name is None else b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n' % name.encode()
    )
    try:
        held = WholeRequest(decides, authorization, decides.admit(authorization, FORM, field + b"--b--\r\n"))
    except (ModelNotAllowed, ModelUndetermined) as refusal:
        with pytest.raises(type(refusal)):
            decides.admit_form(authorization, {}, name, None)
        return
    found = WholeRequest(decides, authorization, decides.admit_form(authorization, {}, name, None))
    assert (found.server, found.path, found.model, found.body) == (held.server, held.path, held.model, None)
    assert held.body is not None
    assert (found.renamed or name or "").encode() in held.body
    assert (found.renamed is None) == (held.body == field + b"--b--\r\n")


@pytest.mark.parametrize("principal", [ANONYMOUS, MASTER, TENANT, RESTRICTED])
@pytest.mark.parametrize("named", [b"", b'"model": "public"', b'"model": "secret"', b'"model": null', b'"model": 1'])
def test_the_path_s_model_decides_and_stands_in_the_body(principal: Principal, named: bytes) -> None:
    decides = admission(MODELS)
    authorization = decides.authorize(principal, b"POST", b"/v1/completions", "public")
    assert authorization.needs_body
    assert decides.must_hold(authorization, head_of(b"application/json", 100))
    try:
        admitted = decides.admit(authorization, JSON, b"{%b}" % named)
    except ModelUndetermined:
        assert named.endswith(b"1")
        return
    plain = admit(admission(MODELS), b'{"model": "public"}', principal)
    found = WholeRequest(decides, authorization, admitted)
    assert (found.server, found.model) == (plain.server, "public")
    assert isinstance(found.body, bytes)
    assert isinstance(plain.body, bytes)
    assert json.loads(found.body) == json.loads(plain.body)


def test_a_key_may_use_no_other_model_by_the_path_or_by_the_body() -> None:
    decides = admission(MODELS)
    authorization = decides.authorize(RESTRICTED, b"POST", b"/v1/completions", "secret")
    for body in (b'{"model": "public"}', b"{}", None, b""):
        with pytest.raises(ModelNotAllowed):
            decides.admit(authorization, JSON, body)
    with pytest.raises(ModelNotAllowed):
        decides.admit_form(authorization, {}, "public", None)


@pytest.mark.parametrize("principal", [ANONYMOUS, MASTER, TENANT, RESTRICTED])
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        *((JSON, body) for body in REPEATED),
        *(pair for pair in UNDETERMINED if pair[1] not in (b'["public"]', b'{"model": "public",}')),
    ],
)
def test_a_body_in_which_the_path_s_model_cannot_be_written_is_refused(
    principal: Principal, headers: Any, body: bytes
) -> None:
    decides = admission(MODELS)
    authorization = decides.authorize(principal, b"POST", b"/v1/completions", "public")
    with pytest.raises(ModelUndetermined):
        decides.admit(authorization, headers, body)
    with pytest.raises(ModelUndetermined):
        decides.admit_form(authorization, {}, None, UNCLEAR)


def test_a_preflight_and_a_method_without_a_body_use_no_model_of_the_path() -> None:
    decides = admission(MODELS)
    for method in (b"OPTIONS", b"GET"):
        authorization = decides.authorize(
            MASTER if method == b"GET" else PREFLIGHT, method, b"/v1/completions", "public"
        )
        assert (authorization.path_model, authorization.needs_body) == ("", False)


@pytest.mark.parametrize("name", ["public", "same", "small-one", None])
def test_a_form_that_streams_below_a_model_is_admitted_as_one_that_is_held(name: str | None) -> None:
    decides = admission(MODELS)
    authorization = decides.authorize(RESTRICTED, b"POST", b"/v1/audio/transcriptions", "public")
    field = b"" if name is None else form(name.encode()).removesuffix(b"--b--\r\n")
    held = WholeRequest(decides, authorization, decides.admit(authorization, FORM, field + b"--b--\r\n"))
    found = WholeRequest(decides, authorization, decides.admit_form(authorization, {}, name, None))
    assert (found.server, found.model) == (held.server, held.model)
    assert isinstance(held.body, bytes)
    assert (found.renamed or name or "").encode() in held.body
    assert held.body.count(b'name="model"') == 1


@pytest.mark.parametrize("principal", [ANONYMOUS, MASTER, TENANT])
def test_an_unclear_form_that_streams_goes_to_the_default_server(principal: Principal) -> None:
    decides = admission(MODELS)
    authorization = decides.authorize(principal, b"POST", b"/v1/audio/transcriptions")
    admitted = decides.admit_form(authorization, {}, None, UNCLEAR)
    assert WholeRequest(decides, authorization, admitted).server is DEFAULT


def test_an_unclear_form_that_streams_is_refused_where_its_model_is_the_key_s() -> None:
    decides = admission(MODELS)
    authorization = decides.authorize(RESTRICTED, b"POST", b"/v1/audio/transcriptions")
    with pytest.raises(ModelUndetermined, match="unclear"):
        decides.admit_form(authorization, {}, None, UNCLEAR)


@pytest.mark.parametrize(
    "row", [row for row in ROUTES if row.prefix_cache is PrefixCache.SHARED], ids=lambda row: row.path
)
def test_a_key_with_its_own_cache_is_refused_where_vllm_cannot_isolate_it(row: VllmRoute) -> None:
    with pytest.raises(RouteNotAllowed, match="cache_isolation"):
        admission().authorize(SALTED, row.methods[0], row.path.encode())
    admission().authorize(TENANT, row.methods[0], row.path.encode())


@pytest.mark.parametrize("row", [row for row in ROUTES if row.model is ModelPlace.BODY], ids=lambda row: row.path)
def test_a_key_with_its_own_cache_is_salted_wherever_vllm_caches(row: VllmRoute) -> None:
    if row.prefix_cache is PrefixCache.SHARED:
        return
    salted = attrs.evolve(SALTED, allowed_routes=("inference", "privileged"))
    found = admit(admission(), b'{"model": "m"}', salted, path=row.path.encode())
    assert (found.body == b'{"model": "m"}') is (row.prefix_cache is PrefixCache.UNUSED)


# what a body must be held for


def head_of(content_type: bytes | None, length: int | None) -> RequestHead:
    headers = [] if content_type is None else [(b"Content-Type", content_type)]
    head = RequestHead(b"POST", b"/vllm/v1/completions", b"HTTP/1.1", headers)
    head.length = length
    return head


@pytest.mark.parametrize(
    ("principal", "content_type", "held"),
    [
        (MASTER, b"application/json", True),
        (MASTER, b"multipart/form-data; boundary=b", True),
        (MASTER, b"text/plain", False),
        (MASTER, None, False),
        # the key's own rules: what vLLM would refuse by itself it may still refuse
        (attrs.evolve(TENANT, priority=3), b"text/plain", True),
    ],
)
def test_a_body_is_held_only_where_it_can_be_read_or_a_permission_depends_on_it(
    principal: Principal, content_type: bytes | None, held: bool
) -> None:
    asked = admission(models=(ModelEntry("public", "public", DEFAULT),))
    authorization = asked.authorize(principal, b"POST", b"/v1/completions")
    assert asked.must_hold(authorization, head_of(content_type, 1_000)) is held


@pytest.mark.parametrize(
    ("principal", "length"),
    [
        (RESTRICTED, 10),
        (RESTRICTED, None),
        (attrs.evolve(TENANT, cache_salt="salt"), 10),
        (attrs.evolve(TENANT, priority=3), MAX_SURE + 1),
    ],
)
def test_a_body_that_will_be_refused_for_its_type_is_refused_by_its_head(
    principal: Principal, length: int | None
) -> None:
    asked = admission()
    authorization = asked.authorize(principal, b"POST", b"/v1/completions")
    with pytest.raises(ModelUndetermined):
        asked.must_hold(authorization, head_of(b"text/plain", length))


def test_a_body_that_streams_for_its_type_is_still_known_to_be_unread() -> None:
    """A limit of tokens depends on it."""
    asked = admission(models=(ModelEntry("public", "public", DEFAULT),))
    assert admit(asked, None, MASTER, {b"content-type": b"text/plain"}).unread is not None
    assert admit(asked, b"{", MASTER, {b"content-type": b"application/json"}).unread is None
