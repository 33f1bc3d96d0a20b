"""Models that administrators add while the gateway runs: at once, in every process, and after a restart."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest_twisted
from twisted.internet.task import deferLater

from tests.end_to_end.end_to_end_harness import Answer, Gateway, StandIn
from tests.end_to_end.messages import OK, whole
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.registry import FOLLOW_INTERVAL

SERVER_KEY = "key-of-the-server-0123456789"
PATIENCE_SECONDS = 10


async def add(gateway: Gateway, server: StandIn, model_id: str = "one", **params: object) -> Answer:
    """Add a model that a server has."""
    found = {"model": "hosted_vllm/Qwen", "api_base": f"http://127.0.0.1:{server.port}", **params}
    body = {"model_name": "qwen", "litellm_params": found, "model_info": {"id": model_id}}
    return await gateway.ask("POST", "/model/new", body=body)


async def complete(gateway: Gateway, model: str = "qwen") -> Answer:
    return await gateway.ask("POST", "/vllm/v1/completions", body={"model": model})


@pytest_twisted.ensureDeferred
async def test_a_model_serves_from_its_making_to_its_deletion(stand_in: Any, gateway_to: Any) -> None:
    server, default = stand_in(OK), stand_in(whole(b"default"))
    gateway = gateway_to(default.port)
    made = await add(gateway, server, api_key=SERVER_KEY)
    assert made.status == 200, made.body
    assert (await complete(gateway)).body == b"ok"
    # with the server's own name of the model, and its own key
    assert b'"Qwen"' in server.received
    assert f"\r\nAuthorization: Bearer {SERVER_KEY}\r\n".encode() in server.received
    assert (await gateway.ask("POST", "/model/delete", body={"id": "one"})).status == 200
    assert (await complete(gateway)).body == b"default"


@pytest_twisted.ensureDeferred
async def test_a_change_moves_the_next_request_and_shares_it_with_the_file(stand_in: Any, gateway_to: Any) -> None:
    one, other = stand_in(whole(b"one")), stand_in(whole(b"other"))
    gateway = gateway_to(None)
    await add(gateway, one)
    assert (await complete(gateway)).body == b"one"
    change = {"model_info": {"id": "one"}, "litellm_params": {"api_base": f"http://127.0.0.1:{other.port}/v1"}}
    assert (await gateway.ask("POST", "/model/update", body=change)).status == 200
    assert (await complete(gateway)).body == b"other"
    assert (await add(gateway, one, "two")).status == 200
    assert {(await complete(gateway)).body for _ in range(12)} == {b"one", b"other"}


@pytest_twisted.ensureDeferred
async def test_its_price_counts(stand_in: Any, gateway_to: Any) -> None:
    answer = {"usage": {"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10}}
    server = stand_in(whole(json.dumps(answer).encode()))
    gateway = gateway_to(None)
    await add(gateway, server, input_cost_per_token="0.5")
    key = await gateway.make_key(max_budget=5)
    statuses = [
        (await gateway.ask("POST", "/vllm/v1/completions", key, body={"model": "qwen", "prompt": "a"})).status
        for _ in range(2)
    ]
    assert statuses == [200, 429]


@pytest_twisted.ensureDeferred
async def test_its_price_counts_for_a_model_that_was_served_before_without_an_entry(
    stand_in: Any, gateway_to: Any
) -> None:
    answer = {"usage": {"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10}}
    server = stand_in(whole(json.dumps(answer).encode()))
    gateway = gateway_to(server.port)
    key = await gateway.make_key(max_budget=5)

    async def status() -> int:
        answered = await gateway.ask("POST", "/vllm/v1/completions", key, body={"model": "qwen", "prompt": "a"})
        return int(answered.status)

    assert await status() == 200
    await add(gateway, server, model="hosted_vllm/qwen", input_cost_per_token="0.5")
    assert [await status(), await status()] == [200, 429]


@pytest_twisted.ensureDeferred
async def test_other_processes_serve_it_a_moment_later_and_so_does_the_next_start(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    server = stand_in(OK)
    one = gateway_to(None)
    other = gateway_to(None, database_url=one.settings.database_url)

    async def until(gateway: Gateway, status: int) -> None:
        gateway.clock.advance(FOLLOW_INTERVAL)
        began = reactor.seconds()
        while (await complete(gateway)).status != status:
            assert reactor.seconds() - began < PATIENCE_SECONDS, "the change did not arrive"
            await deferLater(reactor, 0.01, lambda: None)

    await add(one, server, api_key=SERVER_KEY)
    await until(other, 200)
    next_start = gateway_to(None, database_url=one.settings.database_url)
    assert (await complete(next_start)).status == 200
    await other.ask("POST", "/model/delete", body={"id": "one"})
    await until(one, 404)


@pytest_twisted.ensureDeferred
async def test_it_outlives_a_reload(stand_in: Any, gateway_to: Any) -> None:
    server, default = stand_in(OK), stand_in(whole(b"default"))
    gateway = gateway_to(None)
    await add(gateway, server)
    changed = attrs.evolve(gateway.settings, default_server=gateway_to(default.port).settings.default_server)
    gateway.service.wiring.models.set_configured(changed)
    assert (await complete(gateway)).body == b"ok"
    assert (await complete(gateway, "another")).body == b"default"


@pytest_twisted.ensureDeferred
async def test_its_key_is_in_no_file_and_no_answer(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(whole(SERVER_KEY.encode(), status="500 Oh"))
    gateway = gateway_to(None)
    made = await add(gateway, server, api_key=SERVER_KEY)
    await complete(gateway)
    audit = await gateway.ask("GET", "/audit/list")
    await gateway.stop()
    texts = [made.body, audit.body, gateway.log_text().encode()]
    texts += [file.read_bytes() for file in gateway.database_file.parent.iterdir() if file.is_file()]
    assert not any(SERVER_KEY.encode() in text for text in texts)


@pytest_twisted.ensureDeferred
async def test_with_another_master_key_the_entry_is_not_served_and_the_log_says_why(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in(OK)
    first = gateway_to(None)
    await add(first, server, api_key=SERVER_KEY)
    await add(first, server, "without-key")
    other = gateway_to(None, database_url=first.settings.database_url, master_key=Secret("sk-another-master-key"))
    assert "The stored model one is not served" in other.log_text()
    assert "VLLM_PASSTHROUGH_SALT_KEY" in other.log_text()
    answer = await other.ask("POST", "/vllm/v1/completions", "sk-another-master-key", body={"model": "qwen"})
    # the other entry of the model serves
    assert answer.status == 200
    salted = gateway_to(
        None,
        database_url=first.settings.database_url,
        master_key=Secret("sk-another-master-key"),
        salt_key=first.settings.sealing_secret,
    )
    assert "is not served" not in salted.log_text()


@pytest_twisted.ensureDeferred
async def test_only_administrators_add_servers(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    key = await gateway.make_key()
    body = {"model_name": "qwen", "litellm_params": {"model": "hosted_vllm/m"}}
    assert (await gateway.ask("POST", "/model/new", key, body=body)).status == 403
    manager = await gateway.make_key(allowed_routes=["management"])
    assert (await gateway.ask("POST", "/model/new", manager, body=body)).status == 200
