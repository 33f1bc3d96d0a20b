"""What a request reserves, and the requests that are refused because that cannot be told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest

from tests.proxy.gateway_fakes import BaseModelsOf, server
from tests.upstreams.fleets import make_router
from twisted_vllm.auth.authenticator import Authenticator
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.policy import RoutePolicy
from twisted_vllm.auth.records import Principal
from twisted_vllm.config.settings import ModelEntry, PriceList, TenantRoutes
from twisted_vllm.context import Peer, RequestContext
from twisted_vllm.errors import GatewayError, ModelUndetermined, RouteNotAllowed
from twisted_vllm.http.headers import RequestHead
from twisted_vllm.proxy.accounting import Accounting
from twisted_vllm.proxy.admission import Admission
from twisted_vllm.ratelimit.allowance import Allowance, Limited
from twisted_vllm.ratelimit.reservation import Reservation
from twisted_vllm.usage.estimate import estimate_prompt
from twisted_vllm.usage.pricing import PriceTable

DEFAULT, OTHER = server("default:8000"), server("other:8000")
#: a token of the prompt costs a picodollar, a generated one a thousand, a second of audio a dollar
PRICES = PriceList(Decimal("1e-12"), Decimal("1e-9"), input_cost_per_second=Decimal(1))
GOOD = ModelEntry("good", "served", DEFAULT, 1, PRICES)
FREE = ModelEntry("free", "free", OTHER)
JSON = (b"Content-Type", b"application/json")
UNBOUNDED = 1024
BUDGET = Allowance(max_budget=10**18)
TOKENS = Allowance(tpm=10**9)
BY_MODEL = Allowance(model_rpm={"good": 5})


class Reservations:
    """A limiter that grants everything, and keeps what it was asked for: the model, the tokens and the cost."""

    def __init__(self) -> None:
        self.made: list[tuple[str, int, int]] = []

    def admit(self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float) -> Reservation:
        self.made.append((model, tokens, cost))
        return Reservation(tokens, cost)


def reserve(
    body: bytes,
    *,
    route: bytes = b"/v1/chat/completions",
    allowance: Allowance = TOKENS,
    models: tuple[ModelEntry, ...] = (GOOD, FREE),
    default: bool = True,
    method: bytes = b"POST",
    content_type: bytes = b"application/json",
    length: int | None = None,
    base_models: BaseModelsOf | None = None,
) -> tuple[str, int, int]:
    """Return what a request reserves: the model that is counted, the tokens and the cost."""
    limiter = Reservations()
    index = KeyIndex()
    accounting = Accounting(
        limiter=limiter,  # type: ignore[arg-type]  # only `admit` is called
        end_users=index,
        prices=PriceTable(models, PriceList()),
        rows=None,
        assumed_output_tokens=UNBOUNDED,
    )
    admission = Admission(
        authenticator=Authenticator(None, index),
        policy=RoutePolicy(TenantRoutes()),
        router=make_router(models, DEFAULT if default else None),
        base_models=base_models or BaseModelsOf(),
        path_aliases=True,
    )
    principal = Principal(kind="key", name="k", limited=(Limited("key", "k", allowance),))
    context = RequestContext(Peer("192.0.2.1", False), 0.0)
    context.head = RequestHead(method, b"/vllm" + route, b"HTTP/1.1", [(b"Content-Type", content_type)])
    context.head.length = len(body) if length is None else length
    authorization = admission.authorize(principal, method, route)
    if content_type.startswith(b"multipart"):
        admitted = admission.admit_form(authorization, {}, body.decode() or None, None)
    else:
        admitted = admission.admit(authorization, context.head.first, body)
    accounting.open(context, authorization, admitted)
    [made] = limiter.made
    return made


U = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("route", "fields", "output"),
    [
        (
            "/v1/completions",
            {"max_tokens": 400, "min_tokens": 400, "ignore_eos": True, "max_completion_tokens": 1},
            400,
        ),
        ("/v1/completions", {"n": 5, "max_tokens": 1900, "max_completion_tokens": 1}, 9500),
        ("/v1/completions", {"prompt": ["a"] * 40, "messages": None, "max_tokens": 202}, 8080),
        ("/v1/completions", {"prompt": "a"}, 16),
        ("/v1/responses", {"max_output_tokens": 400, "max_tokens": 1}, 400),
        ("/v1/chat/completions", {"n": "40", "max_tokens": 200}, 8000),
        ("/v1/chat/completions", {"n": 40.0, "max_tokens": 200}, 8000),
        ("/v1/chat/completions", {"n": 2, "best_of": 5, "max_tokens": 10}, 50),
        ("/v1/chat/completions", {"max_tokens": 1, "max_completion_tokens": 400}, 400),
        ("/v1/chat/completions", {"max_completion_tokens": 1, "max_tokens": 400}, 400),
        ("/v1/chat/completions", {"max_output_tokens": 1}, UNBOUNDED),
        ("/v1/chat/completions", {"min_tokens": 1900}, 1900),
        ("/v1/chat/completions", {"max_tokens": 10**40}, 2**52),
        ("/v1/chat/completions/batch", {"messages": [[U], [U], [U]], "max_tokens": 10}, 30),
        ("/v1/messages", {"max_tokens": "400", "max_completion_tokens": 1}, 400),
        ("/cohere/v2/chat", {"max_tokens": 400, "max_completion_tokens": 1}, 400),
        ("/generative_scoring", {"items": ["a", "b", "c"]}, 3),
        ("/v1/systemone", {"questions": {"a": {}, "b": {}}}, 4),
        ("/v1/embeddings", {"input": ["a", "b"], "max_tokens": 400}, 0),
    ],
)
def test_each_route_reserves_what_it_may_generate(route: str, fields: dict[str, Any], output: int) -> None:
    body = json.dumps({"model": "good", **fields}).encode()
    model, tokens, cost = reserve(body, route=route.encode())
    prompt = tokens - output
    assert estimate_prompt(body) <= prompt <= estimate_prompt(body) + 10
    assert (model, cost) == ("good", prompt + 1000 * output)


def test_a_prompt_of_tokens_and_a_repeated_query_are_reserved_whole() -> None:
    tokens = json.dumps({"model": "good", "prompt": [[7] * 500] * 2, "max_tokens": 1}, separators=(",", ":")).encode()
    assert reserve(tokens, route=b"/v1/completions")[1] >= 1001
    pairs = json.dumps({"model": "good", "query": "x" * 4000, "documents": ["y"] * 50}).encode()
    assert reserve(pairs, route=b"/rerank")[1] >= 50_000


@pytest.mark.parametrize("body", [b'{"messages":[]}', b'{"model":null}', b'{"model":""}'])
def test_the_first_entry_is_counted_and_paid_where_it_serves_a_request_without_a_model(body: bytes) -> None:
    for allowance in (BUDGET, TOKENS, BY_MODEL):
        model, _, cost = reserve(body, allowance=allowance, default=False)
        assert model == "good"
        assert cost > 1000 * UNBOUNDED


def test_the_served_name_is_counted_and_paid_as_the_entry() -> None:
    by_entry, by_served = reserve(b'{"model":"good"}'), reserve(b'{"model":"served"}')
    assert by_entry[0] == by_served[0] == "good"
    assert abs(by_entry[2] - by_served[2]) <= 1
    assert reserve(b'{"model":"served"}', allowance=Allowance(model_rpm={"served": 5}))[0] == "served"
    both = Allowance(model_rpm={"served": 5}, model_tpm={"good": 5})
    assert reserve(b'{"model":"served"}', allowance=both)[0] == "good"


def test_the_dearest_of_a_name_s_entries_is_reserved_and_own_names_cost_their_own() -> None:
    models = (
        ModelEntry("m", "cheap", DEFAULT, 1, PriceList(output_cost_per_token=Decimal("1e-12"))),
        ModelEntry("m", "dear", DEFAULT, 1, PriceList(output_cost_per_token=Decimal("1e-9"))),
    )
    body = b'{"model":"%b","max_tokens":1000}'
    assert reserve(body % b"m", models=models)[2] == 1_000_000
    assert reserve(body % b"cheap", models=models)[2] == 1000
    assert reserve(body % b"dear", models=models)[2] == 1_000_000


UTF_16 = '{"model":"good"}'.encode("utf-16")


@pytest.mark.parametrize(
    ("body", "allowance", "models"),
    [
        (b"{}", BUDGET, (GOOD, FREE)),
        (b'{"model":null}', BUDGET, (GOOD, FREE)),
        (b"{}", BY_MODEL, (FREE,)),
        (UTF_16, BUDGET, (GOOD,)),
        (UTF_16, TOKENS, (GOOD,)),
        (UTF_16, TOKENS, ()),
        (UTF_16, BY_MODEL, ()),
        (b'{"model":"good",}', BY_MODEL, ()),
        (b'{"model":"good","model":"good"}', BUDGET, (GOOD,)),
        (b'{"model":"good","model":"good"}', Allowance(rpm=9), (GOOD,)),
    ],
)
def test_what_cannot_be_told_is_refused_where_a_limit_depends_on_it(
    body: bytes, allowance: Allowance, models: tuple[ModelEntry, ...]
) -> None:
    with pytest.raises(ModelUndetermined):
        reserve(body, allowance=allowance, models=models)


def test_what_no_limit_depends_on_is_admitted() -> None:
    assert reserve(b"{}", allowance=BUDGET, models=(FREE,))[0] == ""
    assert reserve(b"{}", allowance=TOKENS)[0] == ""
    assert reserve(UTF_16, allowance=Allowance(rpm=9))[0] == ""
    # vLLM refuses these, with its own words
    for body in (b'{"model":"good",}', b"[]", b"\xff"):
        assert reserve(body, allowance=TOKENS) == ("", estimate_prompt(body) + UNBOUNDED, 0)


def test_on_invocations_the_base_model_is_counted_and_paid() -> None:
    asked = dict[str, Any](route=b"/invocations", base_models=BaseModelsOf(default="served", other="free"))
    body = b'{"model":"%b","prompt":"x","max_tokens":100}'
    for name in (b"good", b"unknown", b"served"):
        model, _, cost = reserve(body % name, **asked)
        assert model == "good"
        assert cost > 100_000
    assert reserve(body % b"free", **asked)[0] == "free"
    with pytest.raises(ModelUndetermined):
        reserve(body % b"good", route=b"/invocations", base_models=BaseModelsOf(), allowance=BUDGET)


FORM = b"multipart/form-data; boundary=b"


def test_audio_is_reserved_by_its_size() -> None:
    asked = dict[str, Any](route=b"/v1/audio/transcriptions", content_type=FORM, allowance=BUDGET)
    assert reserve(b"good", length=40_000, **asked)[2] // 10**12 == 10
    assert reserve(b"good", length=10**9, **asked)[2] // 10**12 == 25 * 1024 * 1024 // 4000
    with pytest.raises(ModelUndetermined):
        reserve(b"", length=40_000, **asked)


@pytest.mark.parametrize("allowance", [BUDGET, TOKENS, BY_MODEL])
def test_a_websocket_is_refused_where_what_it_uses_is_limited(allowance: Allowance) -> None:
    with pytest.raises(RouteNotAllowed, match="WebSocket"):
        reserve(b"", route=b"/v1/realtime", method=b"GET", allowance=allowance)
    assert reserve(b"", route=b"/v1/realtime", method=b"GET", allowance=Allowance(rpm=9)) == ("", 0, 0)


def test_a_refusal_names_no_secret() -> None:
    with pytest.raises(GatewayError) as refused:
        reserve(b"{}", allowance=BUDGET)
    assert "served" not in refused.value.message and "default:8000" not in refused.value.message
