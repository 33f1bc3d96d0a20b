"""Prompts and answers of a real vLLM are kept as its clients sent and got them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.live.live_gateway import Answer, LiveGateway, json_request, new_secret, wait_until
from tests.live.live_ledger import CHAT, COMPLETIONS, MESSAGES, RESPONSES, varied
from tests.live.live_servers import StartGateway, model_list


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("events") / "events.jsonl"


@pytest.fixture(scope="module")
def keeping(start_gateway: StartGateway, vllm_url: str, chat_model: str, events: Path) -> LiveGateway:
    """A gateway that writes prompts and answers to a file."""
    config = json.loads(model_list([(chat_model, chat_model, vllm_url)]))
    config["general_settings"] = {"master_key": "os.environ/LITELLM_MASTER_KEY"}
    config["passthrough"] |= {
        "log_bodies": {"mode": "full"},
        "sinks": [
            {"name": "events", "type": "file", "path": str(events), "format": "event", "events": ["requests"]},
        ],
    }
    return start_gateway(json.dumps(config), LITELLM_MASTER_KEY=new_secret())


def contents_of(events: Path, answer: Answer) -> Any:
    """Return what was kept of a request, once it is written."""
    request_id = answer.header("x-litellm-call-id") or ""

    def line() -> str:
        lines = events.read_text().splitlines() if events.exists() else []
        return next((line for line in lines if request_id in line), "")

    wait_until(line, f"request {request_id} is in {events}")
    return json.loads(line())["contents"]


def texts(route: str, answer: Answer) -> list[str]:
    """Return the texts of an answer's choices, as its client reads them."""
    if (answer.header("content-type") or "").startswith("application/json"):
        body = answer.json
        if route == MESSAGES:
            return ["".join(block["text"] for block in body["content"] if block["type"] == "text")]
        if route == RESPONSES:
            parts = [part for item in body["output"] if item["type"] == "message" for part in item["content"]]
            return ["".join(part["text"] for part in parts)]
        return [each["message"]["content"] if route == CHAT else each["text"] for each in body["choices"]]
    found: dict[int, str] = {}
    for line in answer.body.decode().split("\n"):
        if not line.startswith("data: {"):
            continue
        event = json.loads(line[6:])
        if route in (CHAT, COMPLETIONS):
            for each in event["choices"]:
                piece = each["delta"].get("content") or "" if route == CHAT else each["text"]
                found[each["index"]] = found.get(each["index"], "") + piece
        elif event["type"] == "response.output_text.delta":
            found[0] = found.get(0, "") + event["delta"]
        elif event["type"] == "content_block_delta":
            found[0] = found.get(0, "") + event["delta"].get("text", "")
    return [found[index] for index in sorted(found)] or [""]


def test_what_is_kept_is_what_the_client_sent_and_got(keeping: LiveGateway, chat_model: str, events: Path) -> None:
    for route, body in varied(chat_model):
        answer = keeping.ask("POST", route, keeping.master_key, **json_request(body))
        assert answer.status == 200, answer.body
        kept = contents_of(events, answer)
        given = body.get("messages", body.get("prompt", body.get("input")))
        assert kept["input"] == given, route
        output = kept["output"]
        choices = output.get("choices", [output])
        assert [each["text"] for each in choices] == texts(route, answer), (route, body, answer.body)
        assert all(output["finish_reasons"])
        assert not kept["truncated"]


def test_an_error_of_vllm_is_the_answer(keeping: LiveGateway, chat_model: str, events: Path) -> None:
    body = {"model": chat_model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": -1}
    answer = keeping.ask("POST", CHAT, keeping.master_key, **json_request(body))
    assert answer.status == 400
    assert contents_of(events, answer)["output"]["error"] == answer.json["error"]
