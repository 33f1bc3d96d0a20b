"""Prompts and answers reach what gets the events of requests, as the settings, models, teams and keys say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest_twisted

from tests.end_to_end.end_to_end_harness import (
    Gateway,
    begin,
    eventually,
    parse_answer,
    request_bytes,
)
from tests.end_to_end.messages import EVENT_STREAM, LAST, chunk, whole
from twisted_vllm.config.log_bodies import LogBodiesSettings
from twisted_vllm.context import RequestContext
from twisted_vllm.observability.request_event import RequestEvent

ANSWERS = Path(__file__).parents[1] / "usage" / "answers"
CHAT = "/vllm/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "What is up?"}]
FULL = LogBodiesSettings(mode="full")


def chat_stream(*texts: str, usage: bool = False) -> bytes:
    """Return a stream of vLLM's, with the event of the usage if it is asked for."""
    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": text} for text in texts)]
    chunks: list[dict[str, Any]] = [
        {**common, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]}
        for delta in deltas
    ]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    if usage:
        counts = {"prompt_tokens": 3, "completion_tokens": len(texts), "total_tokens": 3 + len(texts)}
        chunks.append({**common, "choices": [], "usage": counts})
    events = [json.dumps(each, separators=(",", ":"), ensure_ascii=False).encode() for each in chunks]
    return b"".join(b"data: %b\n\n" % event for event in [*events, b"[DONE]"])


class Kept:
    """Gets the events of a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.events: list[RequestEvent] = []
        telemetry = gateway.service.wiring.telemetry
        gateway.service.wiring.telemetry._events.consumers = (self.take,)
        telemetry.prepare(gateway.settings)()

    def take(self, event: RequestEvent, context: RequestContext) -> None:
        self.events.append(event)

    async def of(self, reactor: Any, number: int = 0) -> Any:
        """Return the contents of one request once it is told of; None without any."""
        await eventually(reactor, lambda: len(self.events) > number)
        contents = self.events[number].contents
        return None if contents is None else json.loads(bytes(contents))


@pytest_twisted.ensureDeferred
async def test_a_chat_is_kept_with_prompt_and_answer(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    body = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Much."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    server = stand_in(whole(json.dumps(body).encode()))
    gateway = gateway_to(server.port, log_bodies=FULL)
    kept = Kept(gateway)
    await gateway.ask("POST", CHAT, body={"model": "m", "temperature": 0.5, "messages": MESSAGES})
    assert await kept.of(reactor) == {
        "mode": "full",
        "input": MESSAGES,
        "parameters": {"temperature": 0.5},
        "output": {"text": "Much.", "finish_reasons": ["stop"]},
        "truncated": False,
    }


@pytest_twisted.ensureDeferred
async def test_a_stream_is_put_together(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port, log_bodies=FULL)
    kept = Kept(gateway)
    asked = {"model": "m", "messages": MESSAGES, "stream": True}
    client, upstream = await begin(server, gateway, request_bytes("POST", CHAT, body=asked), until=b"true}")
    stream = chat_stream("Hello", " wörld", "!", usage=True)
    upstream.send(EVENT_STREAM)
    for at in range(0, len(stream), 37):
        upstream.send(chunk(stream[at : at + 37]))
        await upstream.next_turn()
    upstream.send(LAST)
    await client.until(lambda: client.received.endswith(LAST))
    found = await kept.of(reactor)
    assert found["output"] == {"text": "Hello wörld!", "finish_reasons": ["stop"]}
    assert found["input"] == MESSAGES
    assert not found["truncated"]
    assert parse_answer(client.received).body == chat_stream("Hello", " wörld", "!")
