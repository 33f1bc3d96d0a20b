"""Attributes as receivers for language models name them: OpenInference (Phoenix), Langfuse, MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from twisted_vllm.observability.tracing import names
from twisted_vllm.observability.tracing.facts import VLLM, Facts, Value, attempt_name, first_byte, operation
from twisted_vllm.observability.tracing.told_contents import (
    MOST_TOOLS,
    as_json,
    as_text,
    open_inference_contents,
    open_inference_messages,
)

#: OpenInference's kind and MLflow's type of an operation; of others ``LLM`` and ``CHAT_MODEL``
_KINDS = {
    "embeddings": ("EMBEDDING", "EMBEDDING"),
    "pooling": ("EMBEDDING", "EMBEDDING"),
    "rerank": ("RERANKER", "RERANKER"),
    "score": ("RERANKER", "RERANKER"),
    "text_completion": ("LLM", "LLM"),
    "tokenize": ("CHAIN", "UNKNOWN"),
    "detokenize": ("CHAIN", "UNKNOWN"),
}
_CHAT_KINDS = ("LLM", "CHAT_MODEL")


def open_inference(facts: Facts) -> Iterator[tuple[str, Value]]:
    """Yield OpenInference's names, for Phoenix and Arize."""
    event, told, asked = facts.event, facts.told, operation(facts.event)
    if not asked:
        yield names.SPAN_KIND, "CHAIN"
        return
    if facts.user:
        yield names.USER_ID, facts.user
    if session := facts.session:
        yield names.SESSION_ID, session
    if event.tags:
        yield names.TAGS, list(event.tags)
    yield from open_inference_contents(told)
    if facts.attempt is None:
        if event.metadata:
            yield names.METADATA, event.metadata
        yield names.SPAN_KIND, "CHAIN"
        return
    kind, _ = _KINDS.get(asked, _CHAT_KINDS)
    yield names.SPAN_KIND, kind
    yield names.EMBEDDING_MODEL if kind == "EMBEDDING" else names.LLM_MODEL, facts.model
    yield names.LLM_PROVIDER, VLLM
    yield names.LLM_SYSTEM, VLLM
    if parameters := _invocation(facts):
        yield names.LLM_PARAMETERS, as_json(parameters)
    for number, tool in enumerate(told.tools[:MOST_TOOLS]):
        yield f"{names.LLM_TOOLS}.{number}.tool.json_schema", as_json(tool)
    if not facts.answers:
        return
    if event.total_tokens:
        yield names.LLM_PROMPT_TOKENS, event.prompt_tokens
        yield names.LLM_COMPLETION_TOKENS, event.completion_tokens
        yield names.LLM_TOTAL_TOKENS, event.total_tokens
        if event.cached_tokens:
            yield names.LLM_CACHED_TOKENS, event.cached_tokens
        if event.reasoning_tokens:
            yield names.LLM_REASONING_TOKENS, event.reasoning_tokens
    if event.cost_usd:
        yield names.LLM_COST, event.cost_usd
    if reasons := told.finish_reasons:
        yield names.LLM_FINISH_REASON, reasons[0]
    if told.input is not None:
        yield from open_inference_messages(names.LLM_INPUT, told.input_messages)
    yield from open_inference_messages(names.LLM_OUTPUT, told.choices)


def langfuse(facts: Facts) -> Iterator[tuple[str, Value]]:
    """Yield Langfuse's names."""
    event, told, asked = facts.event, facts.told, operation(facts.event)
    if facts.failure:
        yield names.LF_LEVEL, "ERROR"
        yield names.LF_STATUS, facts.failure
    yield from _langfuse_trace(facts)
    if not asked or not (facts.attempt or facts.answers):
        yield names.LF_TYPE, "span"
        return
    yield names.LF_TYPE, "embedding" if asked == "embeddings" else "generation"
    if facts.model:
        yield names.LF_MODEL, facts.model
    if parameters := _invocation(facts):
        # it takes texts, numbers and flags
        yield names.LF_PARAMETERS, as_json({name: _scalar(value) for name, value in parameters.items()})
    if not facts.answers:
        return
    if told.input is not None:
        yield names.LF_INPUT, as_text(told.input)
    if told.output is not None:
        yield names.LF_OUTPUT, told.output_value
    if event.total_tokens:
        # it prices every entry, so none may hold the tokens of another
        usage = {
            "input": facts.uncached,
            "output": max(0, event.completion_tokens - event.reasoning_tokens),
            "total": event.total_tokens,
        }
        if event.cached_tokens:
            usage["input_cached_tokens"] = event.cached_tokens
        if event.reasoning_tokens:
            usage["output_reasoning_tokens"] = event.reasoning_tokens
        yield names.LF_USAGE, as_json(usage)
    if event.cost_usd:
        yield names.LF_COST, as_json({"total": event.cost_usd})
    if event.stream and (moment := first_byte(event)) is not None:
        # it decodes the text as JSON
        yield names.LF_FIRST_TOKEN, as_json(datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds"))


def _scalar(value: object) -> str | bool | int | float:
    return value if isinstance(value, (str, bool, int, float)) else as_json(value)


def _invocation(facts: Facts) -> dict[str, object]:
    """Return the parameters of a request; the limit of tokens is known of all."""
    limit = {} if facts.event.max_tokens is None else {"max_tokens": facts.event.max_tokens}
    return {**facts.told.parameters, **limit}


def _langfuse_trace(facts: Facts) -> Iterator[tuple[str, Value]]:
    """Yield what is said of the whole trace, on each span: Langfuse filters and adds up single spans by it."""
    event, told = facts.event, facts.told
    yield names.LF_TRACE_NAME, attempt_name(event)
    if facts.user:
        yield names.LF_USER, facts.user
    if session := facts.session:
        yield names.LF_SESSION, session
    if event.tags:
        yield names.LF_TRACE_TAGS, list(event.tags)
    for name, value in (("request_id", event.request_id), ("key", event.key_name), ("team_id", event.team_id)):
        if value:
            yield f"{names.LF_TRACE_METADATA}.{name}", value
    if facts.attempt is not None:
        return
    if told.input is not None:
        yield names.LF_TRACE_INPUT, as_text(told.input)
    if told.output is not None:
        yield names.LF_TRACE_OUTPUT, told.output_value


def mlflow(facts: Facts) -> Iterator[tuple[str, Value]]:
    """Yield MLflow's names; every value is JSON."""
    event, told, asked = facts.event, facts.told, operation(facts.event)
    if told.input is not None:
        is_chat = isinstance(told.input, list)
        yield names.ML_INPUTS, as_json({"messages": told.input} if is_chat else told.input)
    if told.output is not None:
        choices = told.choices
        chat = [{"index": place, "message": _without_reason(each)} for place, each in enumerate(choices)]
        yield names.ML_OUTPUTS, as_json({"choices": chat} if asked == "chat" else told.output_value)
    if facts.attempt is None:
        yield names.ML_TYPE, as_json("CHAIN")
        for tag in event.tags:
            yield f"{names.ML_TAG}{tag}", "true"
        return
    if not asked:
        return
    yield names.ML_TYPE, as_json(_KINDS.get(asked, _CHAT_KINDS)[1])
    yield names.ML_PROVIDER, as_json(VLLM)
    if facts.model:
        yield names.ML_MODEL, as_json(facts.model)
    if asked == "chat":
        yield names.ML_FORMAT, as_json("openai")
    if not facts.answers:
        return
    if event.total_tokens:
        usage = {
            "input_tokens": event.prompt_tokens,
            "output_tokens": event.completion_tokens,
            "total_tokens": event.total_tokens,
        }
        if event.cached_tokens:
            usage["cache_read_input_tokens"] = event.cached_tokens
        yield names.ML_USAGE, as_json(usage)
    if event.cost_usd:
        yield names.ML_COST, as_json({"total_cost": event.cost_usd})


def _without_reason(choice: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in choice.items() if name != "finish_reason"}
