"""The tester's verdict is what a real request meets: whoever asks, for whatever model, on whatever route."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import HOST, server_at
from tests.end_to_end.messages import whole
from twisted_vllm.config.settings import (
    Limits,
    ModelEntry,
    PriceList,
    RoutingSettings,
    TenantFields,
    TenantRoutes,
)

ANSWER = whole(b'{"id":"x","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}')

#: the keys, by what is special about them
KEYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one model": {"models": ["m"]},
    "a pattern": {"models": ["family/*", "fast"]},
    "blocked": {"blocked": True},
    "expired": {"duration": "1s"},
    "one route": {"allowed_routes": ["/v1/embeddings"]},
    "privileged": {"allowed_routes": ["privileged"]},
    "aliases": {"aliases": {"mine": "m", "lost": "nothing"}, "models": ["m"]},
    "no requests": {"rpm_limit": 0},
    "one request": {"rpm_limit": 1},
    "few tokens": {"tpm_limit": 100},
    "no money": {"max_budget": 0},
    "spent": {"max_budget": 0.000001},
    "budget of a model": {"model_max_budget": {"priced": {"max_budget": 0, "budget_duration": "1d"}}},
    "requests of a model": {"model_rpm_limit": {"n": 0}},
    "own cache": {"cache_isolation": True},
    "fields": {"forbidden_fields": ["user"]},
    "team": {"team_id": "narrow"},
    "blocked team": {"team_id": "blocked"},
    "poor team": {"team_id": "poor"},
    "named by its team": {"team_id": "naming"},
    "user": {"user_id": "ada"},
    "organization": {"organization_id": "lab"},
    "manager": {"allowed_routes": ["management"]},
}
MODELS = ("", "m", "n", "alias", "family/one", "mine", "lost", "priced", "asleep", "unknown", "ours", "../m")
ROUTES: tuple[tuple[str, str], ...] = (
    ("POST", "/v1/chat/completions"),
    ("POST", "/vllm/v1/embeddings"),
    ("POST", "/vllm/tokenize"),
    ("POST", "/vllm/sleep"),
    ("POST", "/vllm/v1/chat/completions/render"),
    ("GET", "/vllm/v1/chat/completions"),
    ("GET", "/vllm/version"),
    ("POST", "/vllm/no/such/route"),
    ("POST", "/no/such/route"),
    ("POST", "/vllm/v1/../v1/completions"),
    ("GET", "/v1/models"),
)

Ask = Callable[..., Awaitable[Any]]


@pytest.fixture
def fleet(stand_in: Any, gateway_to: Any) -> Any:
    """Return a gateway with several models."""
    one, two = stand_in(ANSWER), stand_in(ANSWER)
    prices = PriceList(input_cost_per_token=Decimal(1), output_cost_per_token=Decimal(1))
    models = (
        ModelEntry("m", "m", server_at(one.port)),
        ModelEntry("n", "n", server_at(one.port)),
        ModelEntry("family/*", "*", server_at(one.port)),
        ModelEntry("priced", "priced", server_at(one.port), prices=prices),
        ModelEntry("asleep", "asleep", server_at(two.port)),
    )
    gateway = gateway_to(
        None,
        models=models,
        routing=RoutingSettings(model_group_alias={"alias": "n"}),
        tenant_routes=TenantRoutes(allow=("/v1/chat/completions/render",), deny=()),
        tenant_fields=TenantFields(),
        # many keys are refused
        limits=Limits(max_failed_authentications=None),
    )
    gateway.drained = f"{HOST}:{two.port}"
    return gateway


async def made(gateway: Any, name: str) -> str:
    """Make a key, with all teams, users and organizations; return it."""
    for path, body in (
        ("/team/new", {"team_id": "narrow", "models": ["n"]}),
        ("/team/new", {"team_id": "blocked"}),
        ("/team/new", {"team_id": "poor", "max_budget": 0}),
        ("/team/new", {"team_id": "naming", "models": ["m"], "model_aliases": {"ours": "n"}}),
        ("/user/new", {"user_id": "ada", "models": ["m"], "auto_create_key": False}),
        ("/organization/new", {"organization_id": "lab", "models": ["m", "family/*"], "organization_alias": "lab"}),
        ("/customer/new", {"user_id": "mallory", "blocked": True}),
    ):
        answer = await gateway.ask("POST", path, body=body)
        assert answer.status == 200, answer.body
    key: str = await gateway.make_key(key_alias=name, **KEYS[name])
    await gateway.ask("POST", "/team/block", body={"team_id": "blocked"})
    await gateway.ask("POST", "/server/drain", body={"server": gateway.drained})
    return key


async def verdict_of(gateway: Any, caller: str | None = None, **query: str) -> Any:
    options = {} if caller is None else {"key": caller}
    answer = await gateway.ask("GET", f"/key/may_call?{urlencode(query)}", **options)
    assert answer.status == 200, answer.body
    return answer.json


async def real(gateway: Any, key: str, method: str, path: str, body: dict[str, Any]) -> tuple[bool, str | None]:
    """Send the request; return whether it was served, and the code of its refusal."""
    answer = await gateway.ask(method, path, key, body=body if method == "POST" else None)
    return answer.status < 400, answer.header("x-vllm-passthrough-error")


def told(verdict: Any) -> tuple[bool, str | None]:
    return verdict["allowed"], verdict["code"]


@pytest.mark.parametrize("name", KEYS)
@pytest_twisted.ensureDeferred
async def test_it_agrees_with_the_request_for_every_model_and_route(fleet: Any, name: str) -> None:
    gateway = fleet
    key = await made(gateway, name)
    if name == "expired":
        time.sleep(1.1)
    if name == "spent":
        # what it uses costs far more than it may spend
        await real(gateway, key, "POST", "/v1/chat/completions", {"model": "priced", "max_tokens": 1})
    for model in MODELS:
        for method, path in ROUTES if model in ("", "m", "n") else ROUTES[:2]:
            query = {"key": key, "model": model, "route": path, "method": method}
            verdict = await verdict_of(gateway, **{name: value for name, value in query.items() if value})
            body = {"model": model} if model else {}
            assert told(verdict) == await real(gateway, key, method, path, body), (name, model, method, path, verdict)
            for check in verdict["checks"]:
                assert check["why"]
                assert (check["passed"] is False) == (check["code"] is not None)
                assert check["passed"] is not False or check["opens"], check


@pytest_twisted.ensureDeferred
async def test_it_agrees_for_tokens_end_users_and_fallbacks(stand_in: Any, gateway_to: Any) -> None:
    one, two = stand_in(ANSWER), stand_in(ANSWER)
    gateway = gateway_to(
        None,
        models=(ModelEntry("m", "m", server_at(one.port)), ModelEntry("n", "n", server_at(two.port))),
        routing=RoutingSettings(fallbacks={"m": ("n",)}),
        enforce_user_param=True,
    )
    await gateway.ask("POST", "/customer/new", body={"user_id": "mallory", "blocked": True})
    await gateway.ask("POST", "/server/drain", body={"server": f"{HOST}:{one.port}"})
    both = await gateway.make_key(tpm_limit=1_000)
    narrow = await gateway.make_key(models=["m"])
    path = "/v1/chat/completions"
    for key in (both, narrow):
        for user in ("", "ada", "mallory"):
            for tokens in (10, 900, 5_000):
                body: dict[str, Any] = {"model": "m", "max_tokens": tokens, **({"user": user} if user else {})}
                query = {"key": key, "model": "m", "max_tokens": str(tokens), **({"user": user} if user else {})}
                verdict = await verdict_of(gateway, **query)
                assert told(verdict) == await real(gateway, key, "POST", path, body), (user, tokens, verdict)
    found = await verdict_of(gateway, key=both, model="m", user="ada", max_tokens="1")
    assert (found["allowed"], found["fallback"]) == (True, "n")


@pytest_twisted.ensureDeferred
async def test_it_counts_nothing_and_tells_all_that_is_in_the_way(fleet: Any) -> None:
    gateway = fleet
    key = await gateway.make_key(rpm_limit=1, models=["m"])
    for _ in range(5):
        assert (await verdict_of(gateway, key=key, model="m"))["allowed"]
    assert (await real(gateway, key, "POST", "/v1/chat/completions", {"model": "m"})) == (True, None)
    refused = await verdict_of(gateway, key=key, model="m")
    assert (refused["allowed"], refused["status"], refused["code"]) == (False, 429, "rate_limit_exceeded")
    [limit] = [check for check in refused["checks"] if check["check"] == "limits"]
    assert (limit["level"], limit["passed"]) == ("key", False)
    assert 0 < limit["retry_after"] <= 60
    # a blocked key for a model that it may not use: both are told
    await gateway.ask("POST", "/key/block", body={"key": key})
    refused = await verdict_of(gateway, key=key, model="n")
    assert refused["code"] == "blocked_api_key"
    assert [check["check"] for check in refused["checks"] if check["passed"] is False] == ["key", "model", "limits"]


@pytest_twisted.ensureDeferred
async def test_a_member_asks_for_its_own_keys_and_learns_nothing_of_others(fleet: Any) -> None:
    gateway = fleet
    await gateway.ask("POST", "/user/new", body={"user_id": "ada", "auto_create_key": False})
    mine = await gateway.make_key(user_id="ada", models=["m"])
    other = await gateway.make_key(user_id="bob")
    assert (await verdict_of(gateway, mine, model="m"))["allowed"]
    assert not (await verdict_of(gateway, mine, model="n"))["allowed"]
    hidden = await gateway.ask("GET", f"/key/may_call?key={other}&model=m", mine)
    missing = await gateway.ask("GET", "/key/may_call?key=sk-0123456789abcdef012&model=m", mine)
    assert (hidden.status, hidden.error) == (missing.status, missing.error)
    assert hidden.status in (403, 404)
    # the master key asks for itself
    assert (await verdict_of(gateway, model="n"))["token"] is None
