"""``/v1/chat/completions`` and ``/v1/completions``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import msgspec

from twisted_vllm.simulator.apis.generation import (
    FINGERPRINT,
    MARK,
    Generation,
    body_of,
    generate,
    messages_prompt,
    read_sampling,
    served_model,
    split_event,
    usage_of,
    whole_usage_of,
)
from twisted_vllm.simulator.engine import Engine, count_tokens
from twisted_vllm.simulator.fields import Fields
from twisted_vllm.simulator.messages import (
    DONE,
    ApiError,
    ApiRequest,
    EventStream,
    Response,
    bad_parameter,
    data_event,
    json_response,
)

#: makes a chunk's choice from an index, a token and a finish reason
MakeChoice = Callable[[int, str, str | None], dict[str, Any]]

#: makes a chunk's usage from the numbers of prompt and completion tokens
MakeUsage = Callable[[int, int], dict[str, Any]]


@attrs.frozen
class StreamOptions:
    """``stream`` and ``stream_options``."""

    stream: bool
    include_usage: bool
    continuous_usage: bool


def _read_stream_options(fields: Fields) -> StreamOptions:
    stream = fields.boolean("stream")
    options = Fields(fields.table("stream_options"))
    if fields.has("stream_options") and not stream:
        raise bad_parameter("Stream options can only be defined when `stream=True`.", "stream_options")
    include = options.boolean("include_usage")
    continuous = options.boolean("continuous_usage_stats")
    options.check()
    return StreamOptions(stream, include, include and continuous)


def chat_completions(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``POST /v1/chat/completions``; raises `ApiError`."""
    fields = body_of(request)
    options = _read_stream_options(fields)
    name = fields.string("model")
    fields.require("messages")
    sampling = read_sampling(fields, "max_completion_tokens", "max_tokens")
    fields.check()
    model = served_model(engine, name)
    generation = generate(engine, request, model, [messages_prompt(fields)], sampling)
    return _chat_stream(generation, options) if options.stream else _chat_whole(generation)


def _chat_whole(generation: Generation) -> Response:
    nothing = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, **nothing},
            "logprobs": None,
            "finish_reason": choice.finish_reason,
            "stop_reason": None,
            "token_ids": None,
            "routed_experts": None,
        }
        for index, choice in enumerate(generation.choices)
    ]
    unused = ("prompt_logprobs", "prompt_token_ids", "prompt_text", *_TRANSFER)
    return json_response(_whole(generation, "chatcmpl-", "chat.completion", choices, unused), work=generation.work)


def _chat_stream(generation: Generation, options: StreamOptions) -> Response:
    head = _stream_head(generation, "chatcmpl-", "chat.completion.chunk")
    role = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    usage = {"usage": _chat_usage(generation.prompt_tokens, 0)} if options.continuous_usage else {}
    prompt = {"prompt_token_ids": None, "prompt_text": None}
    opening = b"".join(
        data_event(head | {"choices": [{"index": index, **role}]} | usage | prompt)
        for index in range(len(generation.choices))
    )

    def choice(index: int, token: str, reason: str | None) -> dict[str, Any]:
        ending = {} if reason is None else {"stop_reason": None}
        return {
            "index": index,
            "delta": {"content": token},
            "logprobs": None,
            "finish_reason": reason,
            **ending,
            "token_ids": None,
        }

    return _stream(generation, options, head, opening, choice, _chat_usage)


def completions(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``POST /v1/completions``; raises `ApiError`."""
    fields = body_of(request)
    options = _read_stream_options(fields)
    name = fields.string("model")
    sampling = read_sampling(fields, "max_tokens")
    if sampling.limit is None:
        # The API's default.
        sampling = attrs.evolve(sampling, limit=16)
    prompts = _prompts(fields)
    fields.check()
    generation = generate(engine, request, served_model(engine, name), prompts, sampling)
    return _completion_stream(generation, options) if options.stream else _completion_whole(generation)


def _prompts(fields: Fields) -> list[tuple[str, int]]:
    given = fields.get("prompt")
    if given == []:
        raise ApiError("You must pass at least one prompt")
    if not given:
        raise bad_parameter("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if isinstance(given, str) or (isinstance(given, list) and isinstance(given[0], int)):
        given = [given]
    if not isinstance(given, list):
        fields.fail("string_type", "prompt", "Input should be a valid string")
    found = []
    for prompt in given:
        if isinstance(prompt, str):
            found.append((prompt, max(1, count_tokens(prompt))))
        elif isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
            found.append((" ".join(map(str, prompt)), max(1, len(prompt))))
        else:
            fields.fail("string_type", "prompt", "Input should be a valid string")
    return found


def _completion_whole(generation: Generation) -> Response:
    unused = dict.fromkeys(("token_ids", "prompt_logprobs", "prompt_token_ids", "routed_experts"))
    choices = [
        {
            "index": index,
            "text": choice.text,
            "logprobs": None,
            "finish_reason": choice.finish_reason,
            "stop_reason": None,
            **unused,
        }
        for index, choice in enumerate(generation.choices)
    ]
    return json_response(_whole(generation, "cmpl-", "text_completion", choices, _TRANSFER), work=generation.work)


def _completion_stream(generation: Generation, options: StreamOptions) -> Response:
    head = _stream_head(generation, "cmpl-", "text_completion")

    def choice(index: int, token: str, reason: str | None) -> dict[str, Any]:
        return {
            "index": index,
            "text": token,
            "logprobs": None,
            "finish_reason": reason,
            "stop_reason": None,
            "prompt_token_ids": None,
            "token_ids": None,
        }

    return _stream(generation, options, head, b"", choice, usage_of)


_TRANSFER = ("kv_transfer_params", "ec_transfer_params", "metrics")


def _whole(
    generation: Generation, prefix: str, kind: str, choices: list[dict[str, Any]], unused: tuple[str, ...]
) -> dict[str, Any]:
    return {
        **_stream_head(generation, prefix, kind),
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": whole_usage_of(generation.prompt_tokens, generation.completion_tokens),
        **dict.fromkeys(unused),
    }


def _stream_head(generation: Generation, prefix: str, kind: str) -> dict[str, Any]:
    return {
        "id": prefix + generation.number,
        "object": kind,
        "created": generation.created,
        "model": generation.model,
    }


def _chat_usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return usage_of(prompt_tokens, completion_tokens) | {"completion_tokens_details": None}


def _stream(
    generation: Generation,
    options: StreamOptions,
    head: dict[str, Any],
    opening: bytes,
    make_choice: MakeChoice,
    make_usage: MakeUsage,
) -> Response:
    # vLLM sends its fingerprint in the usage event, or without one in the last event of each choice.
    fingerprint = {"system_fingerprint": FINGERPRINT}
    last = {} if options.include_usage else fingerprint

    def event(index: int, token: str, reason: str | None, written: int) -> bytes:
        usage = {"usage": make_usage(generation.prompt_tokens, written)} if options.continuous_usage else {}
        ending = {} if reason is None else last
        return data_event(head | {"choices": [make_choice(index, token, reason)]} | usage | ending)

    def events() -> Iterator[bytes]:
        frames = [split_event(event(index, MARK, None, 0)) for index in range(len(generation.choices))]
        for written, step in enumerate(generation.steps(), 1):
            pieces: list[bytes] = []
            for index, token, reason in step:
                if reason is None and not options.continuous_usage:
                    before, after = frames[index]
                    pieces += (before, msgspec.json.encode(token), after)
                else:
                    pieces.append(event(index, token, reason, written))
            yield b"".join(pieces)

    closing = DONE
    if options.include_usage:
        usage = usage_of(generation.prompt_tokens, generation.completion_tokens)
        closing = data_event(head | {"choices": [], "usage": usage} | fingerprint) + DONE
    return EventStream(opening, events(), closing, generation.work)
