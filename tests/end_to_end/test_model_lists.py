"""The models that a key may use, over all servers, at the root and below ``/vllm``; and models with wildcards."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred

from tests.end_to_end.end_to_end_harness import Answer, Gateway, StandIn, server_at
from tests.end_to_end.messages import OK, whole
from twisted_vllm.config.settings import Limits, ModelEntry, PriceList, RoutingSettings, TenantRoutes
from twisted_vllm.upstreams.served_models import LISTED, PATIENCE, RETRY, TIMEOUT

LISTS = ["/v1/models", "/models", "/vllm/v1/models", "/vllm/models"]
LENGTH = 2048


def cards(*names: str, **adapters: str) -> bytes:
    """What a server lists: models, and adapters with their base models."""
    found: list[dict[str, Any]] = [
        {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "vllm", "root": f"/models/{name}"}
        | {"parent": None, "max_model_len": LENGTH, "permission": [{"id": "modelperm-1"}]}
        for name in names
    ]
    found += [{"id": name, "object": "model", "root": "/lora", "parent": base} for name, base in adapters.items()]
    return whole(json.dumps({"object": "list", "data": found}).encode())


def entry(model_name: str, model: str, server: StandIn | int, **more: Any) -> ModelEntry:
    port = server if isinstance(server, int) else server.port
    return ModelEntry(model_name, model, server_at(port), **more)


async def names(gateway: Gateway, target: str = "/v1/models", key: str | None = None) -> list[str]:
    answer = await (gateway.ask("GET", target) if key is None else gateway.ask("GET", target, key))
    assert answer.status == 200, answer.body
    data = answer.json["data"]
    return [each.get("id") or each.get("model_name") or each["model_group"] for each in data]


@pytest.mark.parametrize("target", LISTS)
@pytest_twisted.ensureDeferred
async def test_a_list_has_the_models_of_all_servers_by_the_names_that_callers_use(
    target: str, stand_in: Any, gateway_to: Any
) -> None:
    one, two, default = stand_in(cards("Qwen")), stand_in(cards("my-score")), stand_in(cards("base", lora="base"))
    models = (entry("qwen", "Qwen", one), entry("qwen", "Qwen", two), entry("score", "my-score", two))
    gateway = gateway_to(default.port, models=models, routing=RoutingSettings(model_group_alias={"gpt": "qwen"}))
    answer = await gateway.ask("GET", target)
    found = {each["id"]: each for each in answer.json["data"]}
    assert list(found) == ["qwen", "score", "gpt", "base", "lora"]
    # all that the server says, but its name
    assert found["score"] == {
        "id": "score",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "vllm",
        "root": "/models/my-score",
        "parent": None,
        "max_model_len": LENGTH,
        "permission": [{"id": "modelperm-1"}],
    }
    assert found["lora"]["parent"] == "base"
    assert answer.json["object"] == "list"


@pytest.mark.parametrize("target", LISTS)
@pytest_twisted.ensureDeferred
async def test_a_key_sees_the_models_that_it_may_use_and_its_own_names(
    target: str, stand_in: Any, gateway_to: Any
) -> None:
    one, default = stand_in(cards("Qwen", "Other")), stand_in(cards("base", "secret"))
    gateway = gateway_to(default.port, models=(entry("qwen", "Qwen", one), entry("other", "Other", one)))
    key = await gateway.make_key(models=["qw*", "base"], aliases={"fast": "qwen", "bad": "secret", "base": "other"})
    # the key's own name for a model that it may not use hides the model of that name
    assert await names(gateway, target, key) == ["qwen", "fast"]
    assert await names(gateway, target) == ["qwen", "other", "base", "secret"]


@pytest_twisted.ensureDeferred
async def test_the_key_its_user_and_its_team_must_all_allow_a_model(stand_in: Any, gateway_to: Any) -> None:
    one = stand_in(cards("a", "b", "c", "d"))
    gateway = gateway_to(None, models=tuple(entry(name, name, one) for name in "abcd"))
    await gateway.ask("POST", "/user/new", body={"user_id": "u", "models": ["a", "b", "d"]})
    await gateway.ask("POST", "/team/new", body={"team_id": "t", "models": ["b", "c", "d"]})
    key = await gateway.make_key(user_id="u", team_id="t", models=["a", "b", "c"])
    for target in (*LISTS, "/model/info", "/v2/model/info", "/model_group/info"):
        assert await names(gateway, target, key) == ["b"]


@pytest_twisted.ensureDeferred
async def test_a_lone_servers_list_is_its_own_below_vllm_as_far_as_a_key_may_see_it(
    stand_in: Any, gateway_to: Any
) -> None:
    own = b'{ "object":"list",\n"data" : [{"id":"a","x":1.50},{"id":"b"}]}'
    server = stand_in(whole(own, more="X-A: b\r\n"))
    gateway = gateway_to(server.port)
    for target in ("/vllm/v1/models", "/vllm/models"):
        answer = await gateway.ask("GET", target)
        assert (answer.body, answer.header("x-a")) == (own, "b")
        assert (await gateway.ask("GET", target, await gateway.make_key())).body == own
    key = await gateway.make_key(models=["b"])
    assert await names(gateway, "/vllm/v1/models", key) == ["b"]
    for target in ("/v1/models", "/models", "/openai/v1/models", "/openai/models"):
        assert await names(gateway, target, key) == ["b"]
    # at the root it is written anew
    assert (await gateway.ask("GET", "/v1/models")).json == {
        "object": "list",
        "data": [{"id": "a", "x": 1.5}, {"id": "b"}],
    }


@pytest_twisted.ensureDeferred
async def test_one_model_is_found_by_its_name_with_slashes(stand_in: Any, gateway_to: Any) -> None:
    one, default = stand_in(cards("Qwen")), stand_in(cards("org/base", "/models/x", "größe"))
    gateway = gateway_to(default.port, models=(entry("Qwen/Qwen2.5 7B", "Qwen", one),))
    key = await gateway.make_key(models=["org/*"], aliases={"mine": "org/base"})
    for start in (
        "/v1/models/",
        "/models/",
        "/openai/v1/models/",
        "/openai/models/",
        "/vllm/v1/models/",
        "/vllm/models/",
    ):
        for written, name in (
            ("Qwen/Qwen2.5%207B", "Qwen/Qwen2.5 7B"),
            ("Qwen%2FQwen2.5%207B", "Qwen/Qwen2.5 7B"),
            ("org/base", "org/base"),
            ("org%2fbase?team_id=x", "org/base"),
            ("%2Fmodels%2Fx", "/models/x"),
            ("gr%C3%B6%C3%9Fe", "größe"),
        ):
            answer = await gateway.ask("GET", start + written)
            assert (answer.status, answer.json["id"], answer.json["max_model_len"]) == (200, name, LENGTH)
        for name in ("org/base", "mine"):
            assert (await gateway.ask("GET", start + name, key)).json["id"] == name
        for name in ("nope", "Qwen%2FQwen2.5%207B", "org/other", "x" * 5_000):
            answer = await gateway.ask("GET", start + name, key)
            assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")


@pytest_twisted.ensureDeferred
async def test_a_head_request_and_unknown_parameters_are_answered(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(None, models=(entry("qwen", "Qwen", stand_in(cards("Qwen"))),))
    query = "?return_wildcard_routes=maybe&team_id=x&include_model_access_groups=true&limit=1000&client=%FF&beta"
    for target in LISTS:
        answer = await gateway.ask("HEAD", target)
        assert (answer.status, answer.body) == (200, b"")
        if "vllm" in target:
            assert await names(gateway, target + query) == ["qwen"]
        assert await names(gateway, target + query.replace("%FF", "x")) == ["qwen"]


@pytest_twisted.ensureDeferred
async def test_anthropics_clients_get_the_fields_that_they_read(stand_in: Any, gateway_to: Any) -> None:
    models = (entry("a", "a", stand_in(cards("a", "b"))), entry("b", "b", stand_in(cards("b"))))
    gateway = gateway_to(None, models=models)
    headers = {"anthropic-version": "2023-06-01"}
    for target in LISTS:
        found = (await gateway.ask("GET", target, headers=headers)).json
        assert (found["has_more"], found["first_id"], found["last_id"]) == (False, "a", "b")
        one = (await gateway.ask("GET", f"{target}/b", headers=headers)).json
        assert one == found["data"][1]
        assert (one["type"], one["display_name"], one["created_at"]) == ("model", "b", "2023-11-14T22:13:20Z")
        assert (one["max_input_tokens"], one["max_model_len"]) == (LENGTH, LENGTH)


@pytest_twisted.ensureDeferred
async def test_a_dead_server_hides_only_models_that_nobody_configured(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    alive, dead = stand_in(cards("Qwen", "x")), stand_in(cards("gone", "Gone"))
    dead.respond = lambda wire: wire.cut()
    models = (
        entry("qwen", "Qwen", alive),
        entry("gone", "Gone", dead),
        entry("d/*", "*", dead),
        entry("a/*", "*", alive),
    )
    gateway = gateway_to(None, models=models)
    for target in LISTS:
        assert await names(gateway, target) == ["qwen", "gone", "a/Qwen", "a/x"]
    assert (await gateway.ask("GET", "/v1/models/gone")).json["max_model_len"] is None
    assert (await gateway.ask("GET", "/v1/models/d/Gone")).status == 404


@pytest_twisted.ensureDeferred
async def test_what_a_server_said_of_a_configured_model_is_told_when_it_is_down(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(cards("Qwen", "x"))
    gateway = gateway_to(None, models=(entry("qwen", "Qwen", server), entry("all/*", "*", server)))
    assert await names(gateway) == ["qwen", "all/Qwen", "all/x"]
    server.respond = lambda wire: wire.cut()
    gateway.pass_time(LISTED)
    assert await names(gateway) == ["qwen"]
    assert (await gateway.ask("GET", "/v1/models/qwen")).json["max_model_len"] == LENGTH


@pytest.mark.parametrize("target", LISTS)
@pytest_twisted.ensureDeferred
async def test_a_frozen_server_does_not_hold_the_list(target: str, stand_in: Any, gateway_to: Any) -> None:
    alive, frozen = stand_in(cards("a")), stand_in()
    gateway = gateway_to(frozen.port, models=(entry("a", "a", alive), entry("f", "f", frozen)))
    waiting = [ensureDeferred(gateway.ask("GET", target)) for _ in range(3)]
    connection = await frozen.connection()
    await connection.until_received(b"\r\n\r\n")
    await (await alive.connection()).until_received(b"\r\n\r\n")
    # one question for all that wait
    while not frozen.received.count(b"GET ") or len(gateway.service.wiring.site.running()) < 3:
        await connection.next_turn()
    assert frozen.received.count(b"GET /v1/models") == 1
    gateway.pass_time(PATIENCE)
    for each in waiting:
        answer: Answer = await each
        assert [card["id"] for card in answer.json["data"]] == ["a", "f"]
    gateway.pass_time(TIMEOUT)
    await connection.until_lost()
    # it did not answer: it is asked again, and nobody waits for it
    gateway.pass_time(RETRY)
    assert await names(gateway, target) == ["a", "f"]


@pytest_twisted.ensureDeferred
async def test_answers_are_kept_a_few_seconds(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(cards("a"))
    gateway = gateway_to(None, models=(entry("*", "*", server),))
    for target in LISTS:
        assert await names(gateway, target) == ["a"]

    def asked() -> int:
        return sum(each.received.count(b"GET /v1/models") for each in server.connections)

    assert asked() == 1
    gateway.pass_time(LISTED)
    assert await names(gateway) == ["a"]
    assert asked() == 2


@pytest_twisted.ensureDeferred
async def test_who_may_not_list_models_may_not_ask_for_one(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(cards("a"))
    gateway = gateway_to(None, models=(entry("a", "a", server),), tenant_routes=TenantRoutes(deny=("/v1/models",)))
    key = await gateway.make_key()
    named = await gateway.make_key(allowed_routes=["/v1/models"])
    chats = await gateway.make_key(allowed_routes=["/v1/chat/completions"])
    for target in LISTS:
        for path in (target, f"{target}/a"):
            statuses = [(await gateway.ask("GET", path, each)).status for each in (key, chats, named)]
            assert statuses == [403, 403, 200], path
            assert (await gateway.ask("GET", path)).status == 200
            assert (await gateway.ask("GET", path, None)).status == 401


@pytest_twisted.ensureDeferred
async def test_lists_are_limited_as_all_that_only_reads(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(cards("a"))
    gateway = gateway_to(None, models=(entry("a", "a", server),), limits=Limits(max_uncounted_requests=4))
    key = await gateway.make_key(rpm_limit=1)
    statuses = [(await gateway.ask("GET", target, key)).status for target in (*LISTS, *LISTS, "/vllm/v1/models/a")]
    assert statuses == [200] * 4 + [429] * 5
    # they take nothing of the key's own limit
    server.answer = OK
    body = {"model": "a"}
    assert (await gateway.ask("POST", "/vllm/v1/completions", key, body=body)).status == 200


@pytest_twisted.ensureDeferred
async def test_a_wildcard_sends_what_it_stands_for(stand_in: Any, gateway_to: Any) -> None:
    servers = {name: stand_in(whole(name.encode())) for name in ("exact", "org", "qwen", "any")}
    models = (
        entry("*", "*", servers["any"]),
        entry("org/*", "*", servers["org"]),
        entry("qwen*", "Qwen/qwen*", servers["qwen"]),
        entry("qwen-x", "own", servers["exact"]),
    )
    gateway = gateway_to(None, models=models)
    for asked, server, sent in (
        ("qwen-x", "exact", "own"),
        ("qwen-7b", "qwen", "Qwen/qwen-7b"),
        ("org/a/b", "org", "a/b"),
        ("llama", "any", "llama"),
    ):
        answer = await gateway.ask("POST", "/vllm/v1/completions", body={"model": asked, "prompt": "a"})
        assert answer.body == server.encode()
        assert json.dumps({"model": sent}).encode()[1:-1] in servers[server].received
    lines = [each["model"] for each in gateway.request_lines() if each["route"] == "/v1/completions"]
    assert lines == ["qwen-x", "qwen-7b", "org/a/b", "llama"]


@pytest_twisted.ensureDeferred
async def test_what_a_key_may_use_and_its_limits_count_by_the_name_that_is_asked(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in(whole(json.dumps({"usage": {"prompt_tokens": 10, "total_tokens": 10}}).encode()))
    price = PriceList(input_cost_per_token=Decimal("0.5"))
    gateway = gateway_to(None, models=(entry("org/*", "*", server, prices=price),))

    async def ask(key: str, model: str) -> int:
        answer: Answer = await gateway.ask("POST", "/vllm/v1/completions", key, body={"model": model, "prompt": "a"})
        return answer.status

    key = await gateway.make_key(models=["org/a", "fast"], model_rpm_limit={"org/a": 1}, aliases={"mine": "org/a"})
    assert [await ask(key, model) for model in ("org/b", "mine", "org/a")] == [403, 200, 429]
    spender = await gateway.make_key(max_budget=5)
    assert [await ask(spender, model) for model in ("org/c", "org/d")] == [200, 429]
    # a server must not take the name for a path
    assert await ask(await gateway.make_key(), "org/x/../y") == 403


@pytest_twisted.ensureDeferred
async def test_the_names_of_strangers_keep_nothing(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(None, models=(entry("*", "*", server),))
    router = gateway.service.wiring.router
    for number in range(200):
        body = {"model": f"stranger-{number}", "prompt": "a"}
        assert (await gateway.ask("POST", "/vllm/v1/completions", body=body)).status == 200
    assert len(router.groups) == 1
    metrics = (await gateway.ask("GET", "/metrics")).body
    assert b"stranger" not in metrics


@pytest_twisted.ensureDeferred
async def test_a_model_with_a_wildcard_is_added_at_run_time(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(cards("a"))
    gateway = gateway_to(None)
    assert await names(gateway) == []
    body = {
        "model_name": "org/*",
        "litellm_params": {
            "model": "hosted_vllm/*",
            "api_base": f"http://127.0.0.1:{server.port}",
            "api_key": "secret",
        },
        "model_info": {"id": "one", "mode": "embedding"},
    }
    assert (await gateway.ask("POST", "/model/new", body=body)).status == 200
    for target in LISTS:
        assert await names(gateway, target) == ["org/a"]
        assert await names(gateway, f"{target}?return_wildcard_routes=true") == ["org/a", "org/*"]
    info = (await gateway.ask("GET", "/v2/model/info?modelId=one")).json["data"][0]
    assert (info["model_name"], info["litellm_params"]["model"]) == ("org/*", "hosted_vllm/*")
    assert (info["model_info"]["db_model"], info["model_info"]["mode"]) == (True, "embedding")
    assert "secret" not in json.dumps(info)
    assert (await gateway.ask("POST", "/model/delete", body={"id": "one"})).status == 200
    assert await names(gateway) == []


@pytest_twisted.ensureDeferred
async def test_model_info_tells_prices_and_lengths_but_servers_to_administrators_alone(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in(cards("Qwen"))
    price = PriceList(input_cost_per_token=Decimal("0.5"))
    models = (
        entry("qwen", "Qwen", server, prices=price, model_id="i1", description=b'{"mode":"chat","note":"x"}', rpm=7),
        entry("score", "Score", server, model_id="i2"),
    )
    gateway = gateway_to(None, models=models, routing=RoutingSettings(model_group_alias={"gpt": "score"}))
    key = await gateway.make_key(models=["qwen"])
    assert await names(gateway, "/model_group/info") == ["qwen", "score", "gpt"]
    assert (await gateway.ask("GET", "/model_group/info?model_group=gpt")).json["data"][0]["model_group"] == "gpt"
    for target in ("/model/info", "/v1/model/info", "/v2/model/info"):
        seen, own = (await gateway.ask("GET", target)).json, (await gateway.ask("GET", target, key)).json
        first = seen["data"][0]
        assert first["litellm_params"].pop("api_base") == f"http://127.0.0.1:{server.port}"
        assert own["data"] == [first]
        assert (first["litellm_params"]["model"], first["litellm_params"]["rpm"]) == ("hosted_vllm/Qwen", 7)
        described = first["model_info"]
        assert (described["id"], described["note"], described["litellm_provider"]) == ("i1", "x", "hosted_vllm")
        assert (described["max_input_tokens"], described["db_model"]) == (LENGTH, False)
        further = [] if target == "/v2/model/info" else ["gpt"]
        assert [each["model_name"] for each in seen["data"]] == ["qwen", "score", *further]
    assert await names(gateway, "/model/info?litellm_model_id=i2") == ["score"]
    assert (await gateway.ask("GET", "/model/info?litellm_model_id=i2", key)).status == 400
    page = (await gateway.ask("GET", "/v2/model/info?size=1&page=2&sortBy=model_name&sortOrder=desc")).json
    assert [each["model_name"] for each in page.pop("data")] == ["qwen"]
    assert page == {"total_count": 2, "current_page": 2, "total_pages": 2, "size": 1}
    group = (await gateway.ask("GET", "/model_group/info?model_group=score")).json["data"]
    assert [(each["model_group"], each["providers"], each["max_input_tokens"]) for each in group] == [
        ("score", ["hosted_vllm"], None)
    ]
    assert (await gateway.ask("GET", "/model_group/info?model_group=score", key)).json == {"data": []}
