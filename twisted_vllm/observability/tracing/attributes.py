"""What the spans of a request say: decided from its event, without I/O.

A request has one span of the server's kind, and for each attempt one of the client's kind, which says what the model
did. Tokens, cost and answer are on the last attempt's span alone, so that receivers that add up the spans of a trace
count them once; on the request's span where nothing was sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

import attrs
import msgspec

from twisted_vllm.observability.request_event import Attempt, RequestEvent
from twisted_vllm.observability.tracing import names
from twisted_vllm.observability.tracing.told_contents import (
    NOTHING_TOLD,
    Told,
    as_json,
    as_text,
    gen_ai_messages,
    open_inference_contents,
    open_inference_messages,
)

#: what an attribute may be (OpenTelemetry's common attributes)
Value = str | bool | int | float | list[str]
Attributes = dict[str, Value]

#: gen_ai.provider.name of what every server runs
VLLM = "vllm"

#: outcomes that are no fault of the gateway or of a server
_FINE = frozenset({"completed", "refused", "client_disconnected", "revoked"})

#: gen_ai.operation.name by route. The conventions name ``chat``, ``text_completion`` and ``embeddings``, and allow
#: other words for what they do not know.
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/chat/completions/batch": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/cohere/v2/chat": "chat",
    "/invocations": "chat",
    "/v1/completions": "text_completion",
    "/inference/v1/generate": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v2/embed": "embeddings",
    "/v1/audio/transcriptions": "transcription",
    "/v1/audio/translations": "translation",
    "/v1/realtime": "realtime",
    "/score": "score",
    "/v1/score": "score",
    "/generative_scoring": "score",
    "/rerank": "rerank",
    "/v1/rerank": "rerank",
    "/v2/rerank": "rerank",
    "/classify": "classify",
    "/pooling": "pooling",
    "/tokenize": "tokenize",
    "/detokenize": "detokenize",
}

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

#: characters of the id of a session
_LONGEST_SESSION = 200


def operation(event: RequestEvent) -> str:
    """Return the GenAI operation that a request asks for; empty if it asks no model for anything."""
    return _OPERATIONS.get(event.route, "") if event.route_class == "inference" else ""


def request_name(event: RequestEvent) -> str:
    """Return the name of a request's span, as the HTTP conventions want it: ``POST /v1/chat/completions``."""
    return f"{event.method} {event.route}".strip()


def attempt_name(event: RequestEvent) -> str:
    """Return the name of an attempt's span, as the GenAI conventions want it: ``chat llama``."""
    found = operation(event)
    return f"{found} {_model(event)}".strip() if found else request_name(event)


def request_attributes(event: RequestEvent, conventions: Iterable[str]) -> Attributes:
    """Return the attributes of a request's own span, which is of the server's kind.

    Args:
        event: the request.
        conventions: names of `CONVENTIONS`; what is not of a convention is always there.
    """
    facts = _Facts(event, Told.of(event.contents), not event.attempts, None, 0)
    found = dict(_gateway(facts))
    for name in conventions:
        found.update(CONVENTIONS[name](facts))
    return found


def attempt_attributes(event: RequestEvent, number: int, conventions: Iterable[str]) -> Attributes:
    """Return the attributes of the span of one attempt, which is of the client's kind.

    Args:
        event: the request.
        number: the place of the attempt in `RequestEvent.attempts`.
        conventions: as in `request_attributes`.
    """
    attempt = event.attempts[number]
    is_last = number == len(event.attempts) - 1
    # what failed before has no answer
    told = Told.of(event.contents) if is_last else NOTHING_TOLD
    facts = _Facts(event, told, is_last, attempt, number)
    found = dict(_server(facts, attempt))
    for name in conventions:
        found.update(CONVENTIONS[name](facts))
    return found


@attrs.frozen
class _Facts:
    """What the conventions tell of one span.

    Attributes:
        event: the request.
        told: its contents.
        answers: whether the span says what the model did: tokens, cost, answer.
        attempt: the attempt; None for the request's own span.
        number: its place among the attempts.
    """

    event: RequestEvent
    told: Told
    answers: bool
    attempt: Attempt | None
    number: int

    @property
    def model(self) -> str:
        """The model that is asked."""
        return _model(self.event)

    @property
    def user(self) -> str:
        """The end user, or else the user of the key."""
        return self.event.end_user or self.event.user_id or ""

    @property
    def session(self) -> str:
        """The session that the request's metadata names."""
        if '"session_id"' not in self.event.metadata:
            return ""
        try:
            found = msgspec.json.decode(self.event.metadata)
        except (msgspec.MsgspecError, RecursionError):
            return ""
        session = found.get("session_id") if isinstance(found, dict) else None
        return session[:_LONGEST_SESSION] if isinstance(session, str) else ""

    @property
    def uncached(self) -> int:
        """Tokens of the prompt that were not in the prefix cache."""
        return max(0, self.event.prompt_tokens - self.event.cached_tokens)

    @property
    def failure(self) -> str:
        """The type of the error of this span; empty without one."""
        if self.attempt is not None:
            reason = self.attempt.reason
            return "" if reason in _FINE else reason
        event = self.event
        if event.status >= 500 or event.outcome not in _FINE:
            return event.error or (str(event.status) if event.status >= 400 else event.outcome)
        return event.error


def _model(event: RequestEvent) -> str:
    return event.fallback or event.model


def _own(name: str, value: Value | None) -> Iterator[tuple[str, Value]]:
    """Yield an attribute of the gateway's own, if it says something."""
    if value is not None and value != "" and value != []:
        yield names.OWN + name, value


def _gateway(facts: _Facts) -> Iterator[tuple[str, Value]]:
    """Yield what every request's span says."""
    event = facts.event
    yield names.HTTP_METHOD, event.method
    yield names.HTTP_ROUTE, event.route
    if event.status:
        yield names.HTTP_STATUS, event.status
    if event.client:
        yield names.CLIENT_ADDRESS, event.client
    yield names.HTTP_REQUEST_SIZE, event.bytes_in
    yield names.HTTP_RESPONSE_SIZE, event.bytes_out
    if facts.user:
        yield names.USER_ID, facts.user
    if session := facts.session:
        yield names.SESSION_ID, session
    if failure := facts.failure:
        yield names.ERROR_TYPE, failure
    yield from _own("request_id", event.request_id)
    yield from _own("outcome", event.outcome)
    yield from _own("route_class", event.route_class)
    yield from _own("key_name", event.key_name)
    yield from _own("key_id", event.key_id)
    yield from _own("user_id", event.user_id)
    yield from _own("team_id", event.team_id)
    yield from _own("organization_id", event.organization_id)
    yield from _own("end_user", event.end_user)
    yield from _own("model", event.model)
    yield from _own("model_group", event.group)
    yield from _own("model_id", event.model_id)
    yield from _own("fallback", event.fallback)
    yield from _own("server", event.server)
    yield from _own("tags", list(event.tags))
    yield from _own("attempts", len(event.attempts) or None)
    yield from _own("first_byte_ms", event.first_byte_ms)
    yield from _own("queued_ms", event.queued_ms)
    yield from _own("overhead_ms", event.overhead_ms)
    yield from _own("audio_ms", event.audio_ms or None)
    yield from _own("tokens_estimated", event.estimated or None)
    yield from _own("cost_usd", event.cost_usd or None)
    yield from _own("contents_truncated", facts.told.truncated or None)


def _server(facts: _Facts, attempt: Attempt) -> Iterator[tuple[str, Value]]:
    """Yield what every attempt's span says."""
    host, _, port = attempt.server.rpartition(":")
    has_port = bool(host) and port.isascii() and port.isdecimal() and len(port) <= 5
    yield names.HTTP_METHOD, facts.event.method
    yield names.SERVER_ADDRESS, host.strip("[]") if has_port else attempt.server
    if has_port:
        yield names.SERVER_PORT, int(port)
    if attempt.status:
        yield names.HTTP_STATUS, attempt.status
    if facts.number:
        yield names.HTTP_RESENDS, facts.number
    if failure := facts.failure:
        yield names.ERROR_TYPE, failure
    yield from _own("server", attempt.server)
    yield from _own("request_id", facts.event.request_id)


def _gen_ai(facts: _Facts) -> Iterator[tuple[str, Value]]:
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
    if event.stream and facts.attempt is not None and (moment := _first_byte(event)) is not None:
        yield names.TIME_TO_FIRST_CHUNK, round(max(0.0, moment - facts.attempt.began), 6)
    if reasons := told.finish_reasons:
        yield names.FINISH_REASONS, reasons
    if told.input is not None:
        yield names.INPUT_MESSAGES, gen_ai_messages(told.input_messages)
    if told.output is not None:
        yield names.OUTPUT_MESSAGES, gen_ai_messages(told.choices, answers=True)


def _gen_ai_legacy(facts: _Facts) -> Iterator[tuple[str, Value]]:
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


def _open_inference(facts: _Facts) -> Iterator[tuple[str, Value]]:
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
    if event.max_tokens is not None:
        yield names.LLM_PARAMETERS, as_json({"max_tokens": event.max_tokens, "stream": event.stream})
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


def _langfuse(facts: _Facts) -> Iterator[tuple[str, Value]]:
    event, told, asked = facts.event, facts.told, operation(facts.event)
    if facts.failure:
        yield names.LF_LEVEL, "ERROR"
        yield names.LF_STATUS, facts.failure
    if facts.attempt is None:
        yield from _langfuse_trace(facts)
    if not asked or not (facts.attempt or facts.answers):
        yield names.LF_TYPE, "span"
        return
    yield names.LF_TYPE, "embedding" if asked == "embeddings" else "generation"
    if facts.model:
        yield names.LF_MODEL, facts.model
    if event.max_tokens is not None:
        yield names.LF_PARAMETERS, as_json({"max_tokens": event.max_tokens})
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
    if event.stream and (moment := _first_byte(event)) is not None:
        # it decodes the text as JSON
        yield names.LF_FIRST_TOKEN, as_json(datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds"))


def _langfuse_trace(facts: _Facts) -> Iterator[tuple[str, Value]]:
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
    if told.input is not None:
        yield names.LF_TRACE_INPUT, as_text(told.input)
    if told.output is not None:
        yield names.LF_TRACE_OUTPUT, told.output_value


def _mlflow(facts: _Facts) -> Iterator[tuple[str, Value]]:
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


def _litellm(facts: _Facts) -> Iterator[tuple[str, Value]]:
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


def _first_byte(event: RequestEvent) -> float | None:
    """Return when the answer began, in Unix seconds."""
    return None if event.first_byte_ms is None else event.started + event.first_byte_ms / 1000


#: the conventions, by the name that settings use
CONVENTIONS: dict[str, Callable[[_Facts], Iterator[tuple[str, Value]]]] = {
    "gen_ai": _gen_ai,
    "gen_ai_legacy": _gen_ai_legacy,
    "openinference": _open_inference,
    "langfuse": _langfuse,
    "mlflow": _mlflow,
    "litellm": _litellm,
}
