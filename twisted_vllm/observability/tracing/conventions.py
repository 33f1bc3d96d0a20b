"""Attributes by the GenAI conventions, present and older names, and by LiteLLM's names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from twisted_vllm.observability.tracing import names
from twisted_vllm.observability.tracing.facts import VLLM, Facts, Value, first_byte, operation
from twisted_vllm.observability.tracing.told_contents import Told, as_json, as_text, gen_ai_messages

#: gen_ai.output.type by the type of a ``response_format``
_OUTPUT_TYPES = {"text": "text", "json_object": "json", "json_schema": "json"}


def gen_ai(facts: Facts) -> Iterator[tuple[str, Value]]:
    """Yield OpenTelemetry's present names."""
    event, told = facts.event, facts.told
    # receivers take every span with an operation for a call of a model
    if not (asked := operation(event)) or (facts.attempt is None and not facts.answers):
        return
    yield names.OPERATION, asked
    yield names.PROVIDER, VLLM
    if facts.model:
        yield names.REQUEST_MODEL, facts.model
    if session := facts.session:
        yield names.CONVERSATION_ID, session
    if event.max_tokens is not None:
        yield names.MAX_TOKENS, event.max_tokens
    if event.stream:
        yield names.STREAM, True
    yield from _parameters(told)
    yield from _formats(told, asked)
    if not facts.answers:
        return
    if facts.attempt is not None and 200 <= facts.attempt.status < 300 and facts.model:
        yield names.RESPONSE_MODEL, facts.model
    if event.response_id:
        yield names.RESPONSE_ID, event.response_id
    if event.total_tokens:
        yield names.INPUT_TOKENS, event.prompt_tokens
        yield names.OUTPUT_TOKENS, event.completion_tokens
        if event.cached_tokens:
            yield names.CACHE_READ_TOKENS, event.cached_tokens
        if event.reasoning_tokens:
            yield names.REASONING_TOKENS, event.reasoning_tokens
    if event.stream and facts.attempt is not None and (moment := first_byte(event)) is not None:
        yield names.TIME_TO_FIRST_CHUNK, round(max(0.0, moment - facts.attempt.began), 6)
    if reasons := told.finish_reasons:
        yield names.FINISH_REASONS, reasons
    if told.input is not None:
        yield names.INPUT_MESSAGES, gen_ai_messages(told.input_messages)
    if told.output is not None:
        yield names.OUTPUT_MESSAGES, gen_ai_messages(told.choices, answers=True)


def _parameters(told: Told) -> Iterator[tuple[str, Value]]:
    """Yield the parameters of a request that the GenAI conventions name."""
    for name, value in told.parameters.items():
        known = names.PARAMETERS.get(name)
        if known is not None and isinstance(value, (int, float)) and not isinstance(value, bool):
            # a client may send a number of any size
            with suppress(OverflowError):
                yield known, value if name == "seed" else float(value)
    choices = told.parameters.get("n")
    if isinstance(choices, int) and choices > 1:
        yield names.CHOICES, choices
    stop = told.parameters.get("stop")
    stops = [stop] if isinstance(stop, str) else stop
    if isinstance(stops, list) and stops and all(isinstance(each, str) for each in stops):
        yield names.STOP, stops
    if told.tools:
        yield names.TOOLS, as_json(told.tools)


def _formats(told: Told, asked: str) -> Iterator[tuple[str, Value]]:
    """Yield in which form the answer was asked for."""
    if asked == "embeddings":
        dimensions, encoding = told.parameters.get("dimensions"), told.parameters.get("encoding_format")
        if isinstance(dimensions, int) and not isinstance(dimensions, bool):
            yield names.DIMENSIONS, dimensions
        if isinstance(encoding, str):
            yield names.ENCODING_FORMATS, [encoding]
        return
    form = told.parameters.get("response_format")
    if isinstance(form, dict) and (known := _OUTPUT_TYPES.get(str(form.get("type")))) is not None:
        yield names.OUTPUT_TYPE_ASKED, known


def gen_ai_legacy(facts: Facts) -> Iterator[tuple[str, Value]]:
    """Yield OpenTelemetry's older names, and those of OpenLLMetry."""
    event, told = facts.event, facts.told
    if not operation(event) or not facts.answers:
        return
    yield names.OLD_SYSTEM, VLLM
    yield names.OLD_STREAMING, event.stream
    if event.total_tokens:
        yield names.OLD_PROMPT_TOKENS, event.prompt_tokens
        yield names.OLD_COMPLETION_TOKENS, event.completion_tokens
        yield names.OLD_TOTAL_TOKENS, event.total_tokens
    if told.input is not None:
        yield names.OLD_PROMPT, as_text(told.input)
    if told.output is not None:
        yield names.OLD_COMPLETION, told.output_value


def litellm(facts: Facts) -> Iterator[tuple[str, Value]]:
    """Yield the names that dashboards for LiteLLM use."""
    event = facts.event
    yield names.LL_CALL_ID, event.request_id
    yield names.LL_ROUTE, event.route
    yield names.LL_STREAMING, event.stream
    for name, value in (
        (names.LL_TEAM, event.team_id),
        (names.LL_KEY_HASH, event.key_hash),
        (names.LL_END_USER, event.end_user),
        (names.LL_MODEL, facts.model),
    ):
        if value:
            yield name, value
    if facts.answers and event.cost_usd:
        yield names.LL_COST, event.cost_usd
        yield names.LL_OLD_COST, event.cost_usd
