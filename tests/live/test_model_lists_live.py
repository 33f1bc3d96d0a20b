"""The models of two real servers as OpenAI's and Anthropic's clients list them, at the root and below ``/vllm``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.live.live_gateway import PATIENCE, LiveGateway, ask, bearer, json_request, new_secret
from tests.live.live_servers import ALIAS, StartGateway

openai = pytest.importorskip("openai", reason="this test needs OpenAI's SDK: pip install openai")
anthropic = pytest.importorskip("anthropic", reason="this test needs Anthropic's SDK: pip install anthropic")


@pytest.fixture(scope="module")
def two_servers(
    start_gateway: StartGateway, vllm_url: str, score_url: str, chat_model: str, score_model: str
) -> LiveGateway:
    """In front of both servers, one with an alias, one with a wildcard, and a third that is down."""
    rows = (
        (ALIAS, chat_model, vllm_url),
        ("score/*", "*", score_url),
        ("*", "*", vllm_url),
        ("down", "down", "http://127.0.0.1:9"),
    )
    config = {
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
        "model_list": [
            {"model_name": name, "litellm_params": {"model": f"hosted_vllm/{model}", "api_base": base}}
            for name, model, base in rows
        ],
        "passthrough": {"log": {"file": "gateway.log"}},
    }
    return start_gateway(json.dumps(config), LITELLM_MASTER_KEY=new_secret())


@pytest.mark.parametrize("mount", ["", "/v1", "/vllm", "/vllm/v1"])
def test_openai_lists_and_retrieves_the_models_of_both_servers(
    mount: str, two_servers: LiveGateway, vllm_url: str, chat_model: str, score_model: str
) -> None:
    with openai.OpenAI(
        base_url=two_servers.url + mount, api_key=two_servers.make_key(), max_retries=0, timeout=PATIENCE
    ) as client:
        listed = {each.id: each for each in client.models.list()}
        assert list(listed) == [ALIAS, "down", f"score/{score_model}", chat_model]
        [own] = ask(vllm_url, "GET", "/v1/models").json["data"]
        for name in (ALIAS, chat_model):
            one = client.models.retrieve(name)
            assert (one.id, one.root, one.max_model_len) == (name, own["root"], own["max_model_len"])
        assert client.models.retrieve(f"score/{score_model}").id == f"score/{score_model}"
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("score/nothing")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("mount", ["", "/vllm"])
def test_anthropic_lists_and_retrieves_them_with_its_own_fields(
    mount: str, two_servers: LiveGateway, chat_model: str, score_model: str
) -> None:
    key = two_servers.make_key(models=["score/*", ALIAS])
    with anthropic.Anthropic(base_url=two_servers.url + mount, api_key=key, max_retries=0, timeout=PATIENCE) as client:
        listed = list(client.models.list(limit=1))
        assert [each.id for each in listed] == [ALIAS, f"score/{score_model}"]
        for each in listed:
            one = client.models.retrieve(each.id)
            assert (one.type, one.display_name, one.id) == ("model", each.id, each.id)
            assert one.created_at.year >= 2024
            assert one.max_input_tokens > 0
        with pytest.raises(anthropic.NotFoundError):
            client.models.retrieve(chat_model)


def test_a_real_server_gets_the_name_that_the_wildcard_stands_for(two_servers: LiveGateway, score_model: str) -> None:
    body = {"model": f"score/{score_model}", "text_1": "a", "text_2": "b"}
    answer = two_servers.ask("POST", "/vllm/score", two_servers.make_key(), **json_request(body))
    assert (answer.status, answer.json["model"]) == (200, score_model)


def test_a_lone_servers_list_is_its_own(open_gateway: LiveGateway, vllm_url: str) -> None:
    through: dict[str, Any] = ask(open_gateway.url, "GET", "/vllm/v1/models", headers=bearer("anything")).json
    directly = ask(vllm_url, "GET", "/v1/models").json
    for each in (*through["data"], *directly["data"]):
        # vLLM makes these for each answer
        each.pop("created"), each.pop("permission")
    assert through == directly
