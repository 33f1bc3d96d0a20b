"""OpenAI's, Azure's and Anthropic's own clients, given nothing but the gateway's address and a virtual key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.live_gateway import PATIENCE, LiveGateway, ask, json_request

openai = pytest.importorskip("openai", reason="this test needs OpenAI's SDK: pip install openai")
anthropic = pytest.importorskip("anthropic", reason="this test needs Anthropic's SDK: pip install anthropic")

MESSAGES = [{"role": "user", "content": "Say hello"}]


@pytest.fixture(params=["/v1", "", "/openai/v1", "/vllm/v1", "/vllm"])
def client(request: pytest.FixtureRequest, gateway: LiveGateway, virtual_key: str) -> Iterator[Any]:
    """OpenAI's client, with all base URLs that work."""
    with openai.OpenAI(
        base_url=gateway.url + request.param, api_key=virtual_key, max_retries=0, timeout=PATIENCE
    ) as made:
        yield made


@pytest.fixture(params=[None, "the deployment"])
def azure(request: pytest.FixtureRequest, gateway: LiveGateway, virtual_key: str, chat_model: str) -> Iterator[Any]:
    """Azure's client, for the model of each call or for one deployment; it sends the key as ``api-key``."""
    with openai.AzureOpenAI(
        azure_endpoint=gateway.url,
        azure_deployment=request.param and chat_model,
        api_version="2024-10-21",
        api_key=virtual_key,
        max_retries=0,
        timeout=PATIENCE,
    ) as made:
        yield made


@pytest.fixture(params=["", "/vllm"])
def claude(request: pytest.FixtureRequest, gateway: LiveGateway, virtual_key: str) -> Iterator[Any]:
    """Anthropic's client; it sends the key as ``x-api-key``."""
    with anthropic.Anthropic(
        base_url=gateway.url + request.param, api_key=virtual_key, max_retries=0, timeout=PATIENCE
    ) as made:
        yield made


def test_openai_lists_models(client: Any, chat_model: str) -> None:
    assert chat_model in [model.id for model in client.models.list()]
    assert client.models.retrieve(chat_model).max_model_len > 0


def test_openai_chats(client: Any, chat_model: str) -> None:
    answer = client.chat.completions.create(model=chat_model, messages=MESSAGES, max_tokens=8, temperature=0)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens == 8
    # its underscore notwithstanding, the SDK documents this one as public
    assert answer._request_id


def test_openai_streams_the_chat_that_it_would_get_whole(client: Any, chat_model: str) -> None:
    options = {"model": chat_model, "messages": MESSAGES, "max_tokens": 16, "temperature": 0, "seed": 1}
    whole = client.chat.completions.create(**options)
    stream = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_openai_completes(client: Any, chat_model: str) -> None:
    options = {"model": chat_model, "prompt": "Paris is", "max_tokens": 16, "temperature": 0, "seed": 1}
    whole = client.completions.create(**options)
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**options, stream=True))
    assert whole.choices[0].text == streamed


def test_openai_creates_a_response(client: Any, chat_model: str) -> None:
    options = {"model": chat_model, "input": "Say hello", "max_output_tokens": 16, "temperature": 0}
    whole = client.responses.create(**options)
    events = list(client.responses.create(**options, stream=True))
    assert whole.usage.output_tokens > 0
    # sixteen tokens do not end what this model says
    assert [events[0].type, events[-1].type] in (
        ["response.created", "response.completed"],
        ["response.created", "response.incomplete"],
    )
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text


def test_openai_tells_vllm_s_own_error(client: Any, vllm_url: str, chat_model: str) -> None:
    body = {"model": chat_model, "messages": MESSAGES, "temperature": -1}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**body)
    assert caught.value.response.json() == ask(vllm_url, "POST", "/v1/chat/completions", **json_request(body)).json


def test_openai_tells_that_the_model_makes_no_embeddings(client: Any, vllm_url: str, chat_model: str) -> None:
    body = {"model": chat_model, "input": "Paris"}
    directly = ask(vllm_url, "POST", "/v1/embeddings", **json_request(body))
    if directly.status == 200:
        assert client.embeddings.create(**body).data[0].embedding
        return
    with pytest.raises(openai.APIStatusError) as caught:
        client.embeddings.create(**body)
    assert (caught.value.status_code, caught.value.response.content) == (directly.status, directly.body)


@pytest.mark.parametrize("base", ["/v1", "/vllm/v1"])
def test_openai_understands_the_gateway_s_refusals(gateway: LiveGateway, chat_model: str, base: str) -> None:
    url = gateway.url + base
    with (
        openai.OpenAI(base_url=url, api_key="sk-nobody", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        stranger.chat.completions.create(model=chat_model, messages=MESSAGES)
    assert caught.value.code == "invalid_api_key"
    key = gateway.make_key(models=["another-model"])
    with (
        openai.OpenAI(base_url=url, api_key=key, max_retries=0) as restricted,
        pytest.raises(openai.PermissionDeniedError) as caught,
    ):
        restricted.chat.completions.create(model=chat_model, messages=MESSAGES)
    assert (caught.value.code, caught.value.type) == ("model_not_allowed", "key_model_access_denied")


def test_openai_is_told_at_once_that_vllm_has_no_such_route(client: Any) -> None:
    patient = client.with_options(max_retries=5)
    for call in (
        patient.files.list,
        patient.batches.list,
        lambda: patient.moderations.create(input="x"),
        lambda: patient.images.generate(prompt="x"),
    ):
        with pytest.raises(openai.NotFoundError):
            call()


def test_azure_chats_and_streams(azure: Any, gateway: LiveGateway, chat_model: str) -> None:
    options: Any = {"model": chat_model, "messages": MESSAGES, "max_tokens": 8, "temperature": 0, "seed": 1}
    whole = azure.chat.completions.create(**options)
    stream = azure.chat.completions.create(**options, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == whole.choices[0].message.content
    assert whole.usage.completion_tokens == 8
    record = gateway.record_of(whole._request_id)
    assert (record["route"], record["model"], record["status"]) == ("/v1/chat/completions", chat_model, 200)


def test_azure_completes_and_creates_a_response(azure: Any, chat_model: str) -> None:
    assert azure.completions.create(model=chat_model, prompt="Paris is", max_tokens=4).usage.completion_tokens == 4
    assert azure.responses.create(model=chat_model, input="hi", max_output_tokens=4).usage.output_tokens > 0


def test_azure_lists_models(azure: Any, chat_model: str) -> None:
    assert chat_model in [model.id for model in azure.models.list()]


def test_azure_s_deployment_decides_whatever_the_call_names(gateway: LiveGateway, chat_model: str) -> None:
    key = gateway.make_key(models=[chat_model])
    options: Any = {"azure_endpoint": gateway.url, "api_version": "2024-10-21", "api_key": key, "max_retries": 0}
    with openai.AzureOpenAI(azure_deployment=chat_model, **options) as azure:
        assert azure.chat.completions.create(model="gpt-4o", messages=MESSAGES, max_tokens=1).model == chat_model
    with (
        openai.AzureOpenAI(azure_deployment="secret", **options) as azure,
        pytest.raises(openai.PermissionDeniedError),
    ):
        azure.chat.completions.create(model=chat_model, messages=MESSAGES, max_tokens=1)


@pytest.mark.parametrize("path", ["/engines/{}/chat/completions", "/v1/engines/{}/chat/completions"])
def test_the_model_of_an_engine_s_path_is_the_one_that_answers(
    gateway: LiveGateway, virtual_key: str, chat_model: str, path: str
) -> None:
    request = json_request({"model": "nobody", "messages": MESSAGES, "max_tokens": 1})
    answer = gateway.ask("POST", path.format(chat_model), virtual_key, **request)
    assert (answer.status, answer.json["model"]) == (200, chat_model)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/vllm/rerank"])
def test_documents_are_ranked(gateway: LiveGateway, virtual_key: str, score_model: str, path: str) -> None:
    body = {"model": score_model, "query": "sun", "documents": ["moon", "sun"]}
    answer = gateway.ask("POST", path, virtual_key, **json_request(body))
    assert (answer.status, len(answer.json["results"])) == (200, 2)


@pytest.mark.parametrize("path", ["/score", "/v1/score", "/engines/{}/score", "/vllm/score"])
def test_texts_are_scored(gateway: LiveGateway, virtual_key: str, score_model: str, path: str) -> None:
    body = {"model": score_model, "text_1": "sun", "text_2": ["moon", "sun"]}
    answer = gateway.ask("POST", path.format(score_model), virtual_key, **json_request(body))
    assert (answer.status, len(answer.json["data"])) == (200, 2)


def test_anthropic_gets_a_message(claude: Any, chat_model: str) -> None:
    message = claude.messages.create(model=chat_model, messages=MESSAGES, max_tokens=8, extra_body={"temperature": 0})
    assert message.content[0].text
    assert message.usage.output_tokens == 8
    assert message.stop_reason == "max_tokens"


def test_anthropic_streams_a_message(claude: Any, chat_model: str) -> None:
    with claude.messages.stream(
        model=chat_model, messages=MESSAGES, max_tokens=8, extra_body={"temperature": 0}
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert final.content[0].text == text
    assert final.usage.output_tokens == 8


def test_anthropic_counts_tokens(claude: Any, chat_model: str) -> None:
    assert claude.messages.count_tokens(model=chat_model, messages=MESSAGES).input_tokens > 0


def test_anthropic_lists_models(claude: Any, chat_model: str) -> None:
    assert chat_model in [model.id for model in claude.models.list()]
    assert claude.models.retrieve(chat_model).type == "model"


def test_anthropic_tells_vllm_s_own_error(claude: Any, vllm_url: str, chat_model: str) -> None:
    body = {"model": chat_model, "messages": [{"role": "nobody", "content": "x"}], "max_tokens": 1}
    directly = ask(vllm_url, "POST", "/v1/messages", **json_request(body))
    with pytest.raises(anthropic.APIStatusError) as caught:
        claude.messages.create(**body)
    assert (caught.value.status_code, caught.value.response.content) == (directly.status, directly.body)


@pytest.mark.parametrize("base", ["", "/vllm"])
def test_anthropic_understands_a_refused_key(gateway: LiveGateway, chat_model: str, base: str) -> None:
    with (
        anthropic.Anthropic(base_url=gateway.url + base, api_key="sk-nobody", max_retries=5) as stranger,
        pytest.raises(anthropic.AuthenticationError) as caught,
    ):
        stranger.messages.create(model=chat_model, messages=MESSAGES, max_tokens=1)
    assert caught.value.response.headers["x-vllm-passthrough-error"] == "invalid_api_key"
