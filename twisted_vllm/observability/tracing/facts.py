"""The facts of one span, which the conventions write as attributes."""

from __future__ import annotations

from contextlib import suppress

import attrs
import msgspec

from twisted_vllm.observability.request_event import Attempt, RequestEvent
from twisted_vllm.observability.tracing.told_contents import Told

#: what an attribute may be (OpenTelemetry's common attributes)
Value = str | bool | int | float | list[str]
Attributes = dict[str, Value]

#: gen_ai.provider.name of what every server runs
VLLM = "vllm"

#: outcomes that are no fault of the gateway or of a server
_FINE = frozenset({"completed", "refused", "client_disconnected", "revoked", "cut"})

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
    return f"{found} {model_of(event)}".strip() if found else request_name(event)


@attrs.frozen
class Facts:
    """The facts of one span.

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
        return model_of(self.event)

    @property
    def user(self) -> str:
        """The end user, or else the user of the key."""
        return self.event.end_user or self.event.user_id or ""

    @property
    def session(self) -> str:
        """The session that its header, its metadata or its body names."""
        found: object = self.event.session_id
        if not found and '"session_id"' in self.event.metadata:
            # the gateway wrote it, but what was taken out may have broken it
            with suppress(msgspec.MsgspecError):
                metadata = msgspec.json.decode(self.event.metadata)
                found = metadata.get("session_id") if isinstance(metadata, dict) else ""
        if not found:
            of_body = self.told.parameters.get("metadata")
            found = of_body.get("session_id") if isinstance(of_body, dict) else None
        return found[:_LONGEST_SESSION] if isinstance(found, str) else ""

    @property
    def uncached(self) -> int:
        """Tokens of the prompt that were not in the prefix cache."""
        return max(0, self.event.prompt_tokens - self.event.cached_tokens)

    @property
    def failure(self) -> str:
        """The type of the error of this span; empty without one."""
        if self.attempt is not None:
            return attempt_failure(self.attempt)
        event = self.event
        if event.status >= 500 or event.outcome not in _FINE:
            return event.error or (str(event.status) if event.status >= 400 else event.outcome)
        return event.error


def attempt_failure(attempt: Attempt) -> str:
    """Return the ``error.type`` of an attempt; empty if it did not fail by its server's fault."""
    if attempt.status >= 400:
        # of a client's span, every status from 400 on is an error (OpenTelemetry, HTTP spans)
        return str(attempt.status)
    return "" if attempt.reason in _FINE else attempt.reason


def model_of(event: RequestEvent) -> str:
    """Return the model that is asked."""
    return event.fallback or event.model


def first_byte(event: RequestEvent) -> float | None:
    """Return when the answer began, in Unix seconds."""
    return None if event.first_byte_ms is None else event.started + event.first_byte_ms / 1000
