"""``/v1/responses``. No response is stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from twisted_vllm.simulator.apis.generation import (
    Generation,
    body_of,
    content_text,
    generate,
    messages_prompt,
    read_sampling,
    served_model,
)
from twisted_vllm.simulator.engine import Engine, count_tokens
from twisted_vllm.simulator.fields import Fields
from twisted_vllm.simulator.messages import ApiError, ApiRequest, EventStream, Response, json_response, named_event
from twisted_vllm.simulator.settings import MAX_MODEL_LEN


def responses(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``POST /v1/responses``; raises `ApiError`."""
    fields = body_of(request)
    fields.require("input")
    name = fields.string("model")
    instructions = fields.string("instructions")
    fields.string("request_id")
    prompt = _prompt(fields, instructions)
    sampling = read_sampling(fields, "max_output_tokens")
    stream = fields.boolean("stream")
    fields.check()
    generation = generate(engine, request, served_model(engine, name), [prompt], sampling)
    limit = sampling.limit or MAX_MODEL_LEN - generation.prompt_tokens
    shape = _Shape(generation, engine.new_id(), fields, limit)
    if stream:
        return EventStream(shape.opening(), shape.deltas(), shape.closing(), generation.work)
    return json_response(shape.response(done=True), work=generation.work)


def stored_response(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``GET /v1/responses/{id}`` and ``POST /v1/responses/{id}/cancel``: no response is stored."""
    number = request.path.removeprefix("/v1/responses/").removesuffix("/cancel")
    message = f"Response with id '{number}' not found."
    raise ApiError(message, status=404, type="invalid_request_error", param="response_id")


def _prompt(fields: Fields, instructions: str | None) -> tuple[str, int]:
    given = fields.get("input")
    if isinstance(given, list):
        return messages_prompt(fields, "input", instructions)
    text = f"{instructions or ''}\n{content_text(fields.string('input'))}"
    return text, max(1, count_tokens(text))


class _Shape:
    """The parts of one response, for sending it whole or as events."""

    def __init__(self, generation: Generation, message_id: str, fields: Fields, limit: int) -> None:
        self._generation = generation
        self._choice = generation.choices[0]
        self._message_id = f"msg_{message_id}"
        self._fields = fields
        self._limit = limit

    def response(self, *, done: bool) -> dict[str, Any]:
        """Return the response object, at the beginning or at the end."""
        fields, choice = self._fields, self._choice
        cut = done and choice.finish_reason == "length"
        return {
            "id": self._fields.get("request_id") or f"resp_{self._generation.number}",
            "created_at": self._generation.created,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": fields.get("instructions"),
            "metadata": fields.get("metadata"),
            "model": self._generation.model,
            "object": "response",
            "output": [self._message(done=True)] if done else [],
            "parallel_tool_calls": True,
            "temperature": self._sampled("temperature"),
            "tool_choice": "none",
            "tools": [],
            "top_p": self._sampled("top_p"),
            "background": False,
            "max_output_tokens": self._limit,
            "max_tool_calls": None,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": ("incomplete" if cut else "completed") if done else "in_progress",
            "text": None,
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": self._usage() if done else None,
            "user": fields.get("user"),
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            **dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "input_messages", "output_messages")),
        }

    def opening(self) -> bytes:
        """Return the events before the first token."""
        return self._events(
            0,
            ("response.created", {"response": self.response(done=False)}),
            ("response.in_progress", {"response": self.response(done=False)}),
            ("response.output_item.added", {"item": self._message(done=False), "output_index": 0}),
            ("response.content_part.added", {**self._place(), "part": self._part("", logprobs=[])}),
        )

    def deltas(self) -> Iterator[bytes]:
        """Yield the event of each token."""
        # Built from bytes for speed: only the token and the sequence number change.
        head = b'event: response.output_text.delta\ndata: {"content_index":0,"delta":'
        middle = b',"item_id":' + msgspec.json.encode(self._message_id) + b',"logprobs":[],"output_index":0,'
        for number, token in enumerate(self._choice.tokens, 4):
            tail = b'"sequence_number":%d,"type":"response.output_text.delta"}\n\n' % number
            yield head + msgspec.json.encode(token) + middle + tail

    def closing(self) -> bytes:
        """Return the events after the last token."""
        text = self._choice.text
        part = self._part(text, logprobs=None)
        return self._events(
            4 + len(self._choice.tokens),
            ("response.output_text.done", {**self._place(), "logprobs": [], "text": text}),
            ("response.content_part.done", {**self._place(), "part": part}),
            ("response.output_item.done", {"item": self._message(done=True), "output_index": 0}),
            ("response.completed", {"response": self.response(done=True)}),
        )

    def _sampled(self, name: str) -> float:
        value = self._fields.number(name)
        return 1.0 if value is None else value

    def _events(self, first: int, *events: tuple[str, dict[str, Any]]) -> bytes:
        # vLLM sends the fields of these events in alphabetical order.
        return b"".join(
            named_event(dict(sorted({**value, "sequence_number": number, "type": kind}.items())))
            for number, (kind, value) in enumerate(events, first)
        )

    def _place(self) -> dict[str, Any]:
        return {"content_index": 0, "item_id": self._message_id, "output_index": 0}

    def _part(self, text: str, *, logprobs: list[object] | None) -> dict[str, Any]:
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}

    def _message(self, *, done: bool) -> dict[str, Any]:
        return {
            "id": self._message_id,
            "content": [self._part(self._choice.text, logprobs=None)] if done else [],
            "role": "assistant",
            "status": "completed" if done else "in_progress",
            "type": "message",
            "phase": None,
        }

    def _usage(self) -> dict[str, Any]:
        read, written = self._generation.prompt_tokens, self._generation.completion_tokens
        turns: dict[str, list[int]] = {"input_tokens_per_turn": [], "cached_tokens_per_turn": []}
        tool_turns: dict[str, list[int]] = {"output_tokens_per_turn": [], "tool_output_tokens_per_turn": []}
        return {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0, **turns},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0, "tool_output_tokens": 0, **tool_turns},
            "total_tokens": read + written,
        }
