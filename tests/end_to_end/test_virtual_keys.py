"""The life of a virtual key, as its owner sees it."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import MASTER_KEY, parse_answer, request_bytes
from tests.end_to_end.messages import OK


@pytest_twisted.ensureDeferred
async def test_a_new_key_works_on_the_next_request_and_a_deleted_one_does_not(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(OK).port)
    key = await gateway.make_key(key_alias="team-a")
    assert (await gateway.ask("GET", "/vllm/v1/models", key)).status == 200
    deleted = await gateway.ask("POST", "/key/delete", body={"keys": [key]})
    assert deleted.status == 200
    answer = await gateway.ask("GET", "/vllm/v1/models", key)
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


@pytest_twisted.ensureDeferred
async def test_a_deleted_key_is_refused_on_a_connection_that_it_opened(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(OK).port)
    key = await gateway.make_key()
    client = await gateway.send(request_bytes("GET", "/vllm/v1/models", key))
    await client.until_received(b"\r\n\r\nok")
    await gateway.ask("POST", "/key/delete", body={"keys": [key]})
    first = len(client.received)
    client.send(request_bytes("GET", "/vllm/v1/models", key))
    await client.until(lambda: client.received[first:].endswith(b"}}"))
    assert parse_answer(client.received[first:]).error["code"] == "invalid_api_key"


@pytest_twisted.ensureDeferred
async def test_keys_outlast_a_restart(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    first = gateway_to(server.port)
    key = await first.make_key()
    await first.stop()
    second = gateway_to(server.port, database_url=first.settings.database_url)
    assert (await second.ask("GET", "/vllm/v1/models", key)).status == 200


@pytest.mark.parametrize("name", ["x-litellm-api-key", "api-key", "x-api-key", "Authorization"])
@pytest_twisted.ensureDeferred
async def test_a_key_may_come_in_any_of_the_known_headers(stand_in: Any, gateway_to: Any, name: str) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    value = f"Bearer {MASTER_KEY}" if name == "Authorization" else MASTER_KEY
    answer = await gateway.ask("GET", "/vllm/v1/models", None, headers={name: value})
    assert answer.status == 200
    assert MASTER_KEY.encode() not in server.received


@pytest_twisted.ensureDeferred
async def test_a_restricted_key_reaches_its_models_and_no_other(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    key = await gateway.make_key(models=["small-*"])
    allowed = await gateway.ask("POST", "/vllm/v1/completions", key, body={"model": "small-1"})
    refused = await gateway.ask("POST", "/vllm/v1/completions", key, body={"model": "large"})
    unnamed = await gateway.ask("POST", "/vllm/v1/completions", key, body={"prompt": "x"})
    assert allowed.status == 200
    assert (refused.status, refused.error["code"]) == (403, "model_not_allowed")
    assert (unnamed.status, unnamed.error["code"]) == (400, "model_undetermined")
    assert server.received.count(b"POST ") == 1


@pytest_twisted.ensureDeferred
async def test_a_key_may_not_call_privileged_routes_unless_it_was_given_them(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    plain = await gateway.make_key()
    granted = await gateway.make_key(allowed_routes=["/sleep"])
    refused = await gateway.ask("POST", "/vllm/sleep", plain)
    assert (refused.status, refused.error["code"]) == (403, "route_not_allowed")
    assert server.connections == []
    assert (await gateway.ask("POST", "/vllm/sleep", granted)).status == 200
    assert (await gateway.ask("POST", "/vllm/sleep")).status == 200


@pytest_twisted.ensureDeferred
async def test_an_open_gateway_requires_no_key(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(OK).port, master_key=None)
    for key in (None, "anything"):
        assert (await gateway.ask("GET", "/vllm/v1/models", key, headers={"Host": "localhost"})).status == 200
