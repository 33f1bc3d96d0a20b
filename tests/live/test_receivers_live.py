"""What Arize Phoenix and MLflow show of requests to a real vLLM: prompt, answer, tokens, cost, by their own APIs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.live_gateway import LiveGateway, json_request, new_secret, wait_until
from tests.live.live_servers import StartGateway
from tests.live.receivers import MlFlow, Phoenix, mlflow, phoenix

#: US dollars for a million tokens
PROMPT_PRICE, COMPLETION_PRICE = 1.0, 2.0
PROMPT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is the capital of France?"}]
PROJECT = "gateway"
#: seconds after which Phoenix has read new prices: it looks every five
PRICES_READ = 6.0


@pytest.fixture(scope="module")
def phoenix_server(tmp_path_factory: pytest.TempPathFactory, chat_model: str) -> Iterator[Phoenix]:
    with phoenix(tmp_path_factory.mktemp("phoenix")) as found:
        found.price(chat_model, PROMPT_PRICE, COMPLETION_PRICE)
        read = time.monotonic() + PRICES_READ
        wait_until(lambda: time.monotonic() > read, "Phoenix has read the prices")
        yield found


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlFlow]:
    with mlflow(tmp_path_factory.mktemp("mlflow")) as found:
        yield found


def config(
    vllm_url: str, chat_model: str, destination: dict[str, Any] | None = None, callbacks: tuple[str, ...] = ()
) -> str:
    """A configuration file that names a receiver, or LiteLLM's callbacks."""
    entry = {
        "model_name": chat_model,
        "litellm_params": {"model": f"hosted_vllm/{chat_model}", "api_base": vllm_url},
        "model_info": {
            "input_cost_per_token": PROMPT_PRICE / 1e6,
            "output_cost_per_token": COMPLETION_PRICE / 1e6,
        },
    }
    own: dict[str, Any] = {"log_bodies": {"mode": "full"}}
    if destination is None:
        return json.dumps({"model_list": [entry], "litellm_settings": {"callbacks": callbacks}, "passthrough": own})
    own["tracing"] = {"destinations": [destination]}
    return json.dumps({"model_list": [entry], "passthrough": own})


def chat(gateway: LiveGateway, model: str, **more: Any) -> tuple[str, dict[str, Any]]:
    """Ask, and return the answer's text and its usage."""
    body = {"model": model, "messages": PROMPT, "max_tokens": 12, "user": "anna", **more}
    answer = gateway.ask("POST", "/vllm/v1/chat/completions", gateway.master_key, **json_request(body))
    assert answer.status == 200, answer.body
    if not more.get("stream"):
        return answer.json["choices"][0]["message"]["content"], answer.json["usage"]
    events = [json.loads(line[6:]) for line in answer.body.decode().splitlines() if line.startswith("data: {")]
    usage = next(event["usage"] for event in events if event.get("usage"))
    return "".join(each["delta"].get("content") or "" for event in events for each in event["choices"]), usage


def cost(usage: dict[str, Any]) -> float:
    dollars: float = usage["prompt_tokens"] * PROMPT_PRICE + usage["completion_tokens"] * COMPLETION_PRICE
    return dollars / 1e6


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("more", [{}, {"stream": True, "stream_options": {"include_usage": True}}])
def test_phoenix_shows_prompt_answer_tokens_and_cost(
    phoenix_server: Phoenix,
    start_gateway: StartGateway,
    vllm_url: str,
    chat_model: str,
    protocol: str,
    more: dict[str, Any],
) -> None:
    project = f"{PROJECT}-{protocol[:4]}-{len(more)}"
    if protocol == "grpc":
        destination = {
            "name": "phoenix",
            "protocol": protocol,
            "endpoint": phoenix_server.grpc_url,
            "conventions": ["gen_ai", "openinference"],
            "resource": {"openinference.project.name": project},
        }
        gateway = start_gateway(config(vllm_url, chat_model, destination), LITELLM_MASTER_KEY=new_secret())
    else:
        gateway = start_gateway(
            config(vllm_url, chat_model, callbacks=("arize_phoenix",)),
            LITELLM_MASTER_KEY=new_secret(),
            PHOENIX_COLLECTOR_ENDPOINT=phoenix_server.url,
            PHOENIX_PROJECT_NAME=project,
        )
    text, usage = chat(gateway, chat_model, **more)
    wait_until(lambda: len(phoenix_server.spans(project)) >= 2, "Phoenix has both spans")
    spans = phoenix_server.spans(project)
    (root,) = [span for span in spans if span["parent_id"] is None]
    (call,) = [span for span in spans if span["parent_id"] == root["context"]["span_id"]]
    assert (root["span_kind"], call["span_kind"]) == ("CHAIN", "LLM")
    assert root["name"] == "POST /v1/chat/completions"
    assert call["name"] == f"chat {chat_model}"
    said = call["attributes"]
    assert said["llm.model_name"] == chat_model
    assert said["llm.input_messages.0.message.content"] == "Be short."
    assert said["llm.input_messages.1.message.content"] == PROMPT[1]["content"]
    assert said["llm.output_messages.0.message.content"] == text
    assert said["llm.token_count.prompt"] == usage["prompt_tokens"]
    assert said["llm.token_count.completion"] == usage["completion_tokens"]
    assert said["llm.cost.total"] == pytest.approx(cost(usage))
    assert json.loads(root["attributes"]["input.value"]) == PROMPT
    assert root["attributes"]["output.value"] == text
    assert root["attributes"]["user.id"] == "anna"
    wait_until(lambda: phoenix_server.cost(root["id"]) > 0, "Phoenix has computed the cost")
    # once, although the trace has two spans
    assert phoenix_server.cost(root["id"]) == pytest.approx(cost(usage))


@pytest.mark.parametrize("more", [{}, {"stream": True, "stream_options": {"include_usage": True}}])
def test_mlflow_shows_prompt_answer_tokens_and_cost(
    mlflow_server: MlFlow, start_gateway: StartGateway, vllm_url: str, chat_model: str, more: dict[str, Any]
) -> None:
    gateway = start_gateway(
        config(vllm_url, chat_model, callbacks=("mlflow",)),
        LITELLM_MASTER_KEY=new_secret(),
        MLFLOW_TRACKING_URI=mlflow_server.url,
    )
    before = len(mlflow_server.traces())
    text, usage = chat(gateway, chat_model, metadata={"session_id": "session-1"}, **more)
    wait_until(lambda: len(mlflow_server.traces()) > before, "MLflow has the trace")
    trace = mlflow_server.traces()[0]
    assert trace["state"] == "OK"
    assert trace["request_preview"] == PROMPT[1]["content"]
    assert trace["response_preview"] == text
    tokens = mlflow_server.metadata(trace, "tokenUsage")
    assert tokens["input_tokens"] == usage["prompt_tokens"]
    assert tokens["output_tokens"] == usage["completion_tokens"]
    assert mlflow_server.metadata(trace, "cost")["total_cost"] == pytest.approx(cost(usage))
    assert trace["trace_metadata"]["mlflow.trace.user"] == "anna"
    assert trace["trace_metadata"]["mlflow.trace.session"] == "session-1"


def test_mlflow_shows_a_request_that_failed(
    mlflow_server: MlFlow, start_gateway: StartGateway, chat_model: str
) -> None:
    destination = {
        "name": "mlflow",
        "endpoint": f"{mlflow_server.url}/v1/traces",
        "headers": {"x-mlflow-experiment-id": "0"},
        "conventions": ["gen_ai", "mlflow"],
    }
    dead = config("http://127.0.0.1:9", chat_model, destination)
    gateway = start_gateway(dead, LITELLM_MASTER_KEY=new_secret())
    before = len(mlflow_server.traces())
    body = {"model": chat_model, "messages": PROMPT}
    answer = gateway.ask("POST", "/vllm/v1/chat/completions", gateway.master_key, **json_request(body))
    assert answer.status in (502, 503)
    wait_until(lambda: len(mlflow_server.traces()) > before, "MLflow has the trace")
    trace = mlflow_server.traces()[0]
    assert trace["state"] == "ERROR"
    assert trace["request_preview"] == PROMPT[1]["content"]
