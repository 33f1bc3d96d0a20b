"""A vLLM that was started with ``--api-key``: the gateway knows its key, and its clients do not."""

from __future__ import annotations

import os

import pytest

from tests.live.live_gateway import Answer, LiveGateway, ask, bearer, json_request, new_secret
from tests.live.live_servers import StartGateway, server_from

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def keyed_url() -> str:
    """The server."""
    return server_from("VLLM_KEYED_URL", "this test needs a vLLM that was started with --api-key")


@pytest.fixture(scope="module")
def server_key(keyed_url: str) -> str:
    """The server's own key."""
    key = os.environ.get("VLLM_KEYED_KEY", "")
    if not key:
        pytest.skip(f"this test needs the key of {keyed_url}: set VLLM_KEYED_KEY")
    return key


@pytest.fixture(scope="module")
def keyed_gateway(start_gateway: StartGateway, keyed_url: str, server_key: str) -> LiveGateway:
    """A gateway that knows the server's key."""
    return start_gateway(
        HOSTED_VLLM_API_BASE=keyed_url, HOSTED_VLLM_API_KEY=server_key, LITELLM_MASTER_KEY=new_secret()
    )


@pytest.fixture(scope="module")
def model(keyed_url: str, server_key: str) -> str:
    """What the server calls its model."""
    return str(ask(keyed_url, "GET", "/v1/models", bearer(server_key)).json["data"][0]["id"])


def tells(answer: Answer, secret: str) -> bool:
    return secret.encode() in answer.body or any(secret in value for _, value in answer.headers)


def test_a_virtual_key_is_enough_for_a_server_with_a_key(
    keyed_gateway: LiveGateway, keyed_url: str, server_key: str, model: str
) -> None:
    key = keyed_gateway.make_key()
    chat = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    for method, path, arguments in (("GET", "/v1/models", {}), ("POST", CHAT, json_request(chat))):
        answer = keyed_gateway.ask(method, f"/vllm{path}", key, **arguments)
        assert answer.status == 200
        assert not tells(answer, server_key)
    assert ask(keyed_url, "GET", "/v1/models", bearer(key)).status == 401


def test_the_server_s_key_opens_nothing_at_the_gateway(keyed_gateway: LiveGateway, server_key: str) -> None:
    answer = keyed_gateway.ask("GET", "/vllm/v1/models", server_key)
    assert answer.error_code == (401, "invalid_api_key")
    assert not tells(answer, server_key)


def test_an_error_does_not_tell_the_server_s_key(keyed_gateway: LiveGateway, keyed_url: str, server_key: str) -> None:
    arguments = json_request({"model": "no-such-model", "messages": []})
    answer = keyed_gateway.ask("POST", f"/vllm{CHAT}", keyed_gateway.make_key(), **arguments)
    arguments["headers"] += bearer(server_key)
    directly = ask(keyed_url, "POST", CHAT, **arguments)
    assert (answer.status, answer.body) == (directly.status, directly.body)
    assert not tells(answer, server_key)


@pytest.mark.usefixtures("server_key")
def test_a_gateway_that_does_not_know_the_key_passes_on_what_vllm_says(
    start_gateway: StartGateway, keyed_url: str
) -> None:
    gateway = start_gateway(HOSTED_VLLM_API_BASE=keyed_url)
    answer = gateway.ask("GET", "/vllm/v1/models", "anything")
    directly = ask(keyed_url, "GET", "/v1/models", bearer("anything"))
    assert (answer.status, answer.body) == (directly.status, directly.body) == (401, directly.body)
    assert answer.header("x-vllm-passthrough-error") is None
