"""``/v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from twisted_vllm.simulator.apis.generation import (
    MARK,
    Generation,
    body_of,
    generate,
    messages_prompt,
    read_sampling,
    served_model,
    split_event,
)
from twisted_vllm.simulator.engine import Engine
from twisted_vllm.simulator.messages import (
    ApiRequest,
    EventStream,
    Response,
    ValidationError,
    json_response,
    named_event,
)

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


def messages(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``POST /v1/messages``; raises `ApiError`."""
    fields = body_of(request)
    fields.require("model", "messages", "max_tokens")
    name = fields.string("model")
    sampling = read_sampling(fields, "max_tokens")
    stream = fields.boolean("stream")
    if sampling.limit is not None and sampling.limit < 1:
        problem = ("value_error", "body.max_tokens", "Value error, max_tokens must be positive", str(sampling.limit))
        raise ValidationError([problem], context=", 'ctx': {'error': ValueError('max_tokens must be positive')}")
    fields.check()
    model = served_model(engine, name)
    prompt = messages_prompt(fields, "messages", fields.get("system"))
    generation = generate(engine, request, model, [prompt], sampling)
    return _stream(generation) if stream else _whole(generation)


def count_message_tokens(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``POST /v1/messages/count_tokens``; raises `ApiError`."""
    fields = body_of(request)
    fields.require("model", "messages")
    name = fields.string("model")
    fields.check()
    served_model(engine, name)
    _, tokens = messages_prompt(fields, "messages", fields.get("system"))
    return json_response({"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}})


def _usage(generation: Generation, written: int) -> dict[str, int]:
    return {"input_tokens": generation.prompt_tokens, "output_tokens": written}


def _whole(generation: Generation) -> Response:
    choice = generation.choices[0]
    value = {
        "id": f"chatcmpl-{generation.number}",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": choice.text}],
        "model": generation.model,
        "stop_reason": _STOP_REASONS[choice.finish_reason],
        "usage": _usage(generation, generation.completion_tokens),
    }
    return json_response(value, work=generation.work)


def _stream(generation: Generation) -> Response:
    message: dict[str, Any] = {
        "id": f"chatcmpl-{generation.number}",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": generation.model,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(generation, 0),
    }
    block = {"type": "text", "text": ""}
    opening = named_event({"type": "message_start", "message": message}) + named_event(
        {"type": "content_block_start", "content_block": block, "index": 0}
    )
    stop: dict[str, Any] = {
        "stop_reason": _STOP_REASONS[generation.choices[0].finish_reason],
        "stop_sequence": None,
    }
    usage = _usage(generation, generation.completion_tokens)
    closing = (
        named_event({"type": "content_block_stop", "index": 0})
        + named_event({"type": "message_delta", "delta": stop, "usage": usage})
        + named_event({"type": "message_stop"})
    )
    failure = named_event({"type": "error", "error": {"type": "internal_error", "message": "Internal server error"}})
    return EventStream(opening, _deltas(generation), closing, generation.work, failure)


def _deltas(generation: Generation) -> Iterator[bytes]:
    delta = {"type": "text_delta", "text": MARK}
    before, after = split_event(named_event({"type": "content_block_delta", "delta": delta, "index": 0}))
    for token in generation.choices[0].tokens:
        yield before + msgspec.json.encode(token) + after
