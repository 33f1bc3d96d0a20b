"""`RequestEvent`: one value of a finished request, which sinks and traces share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec
from twisted.logger import Logger

from twisted_vllm.auth.records import Principal
from twisted_vllm.context import Contents, RequestContext
from twisted_vllm.errors import TURNED_AWAY
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.money import float_dollars
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.logging.lines import iso_time

#: LiteLLM's header that names the session of a request
SESSION_HEADER = b"x-litellm-session-id"

#: the caller of a request that nobody was authenticated for
_NOBODY = Principal(kind="", name="")


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One attempt to send a request to a server.

    Attributes:
        server: the name of the server.
        began: when it was passed to the HTTP client, in Unix seconds.
        ended: when it failed, or the request ended, likewise.
        status: the status of the server's answer; 0 without one.
        reason: why it failed: the code of an error, or ``status_503``; empty if the client got its answer.
        span_id: the id of its span, 16 hex digits; empty if it is not traced.
    """

    server: str
    began: float
    ended: float
    status: int = 0
    reason: str = ""
    span_id: str = ""


class RequestEvent(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One finished request. In JSON, fields with their default value are omitted.

    Texts of clients are without keys. Times are in Unix seconds, durations in milliseconds, as in the log record.

    Attributes:
        time: when it began, ISO 8601 in UTC with milliseconds.
        request_id: the ``x-request-id`` that the client and vLLM saw.
        client: the client's address.
        key_name: the key's alias or ``sk-...abcd``, ``master``, ``anonymous``, or empty if it is unknown.
        key_hash: the first digits of the key's SHA-256, or empty.
        key_id: the key's permanent id, or empty.
        user_id: the user of the key; None without one; likewise `team_id` and `organization_id`.
        end_user: the end user that the caller names; None if it names none.
        method: the HTTP method.
        route: as in the log record.
        route_class: ``inference``, ``read_only``, ``privileged``; ``gateway`` for the gateway's own routes.
        model: the model that the caller names, with the key's alias resolved.
        group: the name of its model group, which may be a pattern; empty without one.
        model_id: the id of the entry that served it; empty if none did.
        server: the name of the vLLM server; empty without one.
        status: the status sent to the client; 0 without one.
        outcome: as in the log record.
        error: the gateway's own error code, or empty.
        stream: whether the answer was a stream of events.
        prompt_tokens: tokens of the prompt, including cached ones.
        cached_tokens: those from the prefix cache.
        completion_tokens: generated tokens, including reasoning.
        reasoning_tokens: those of reasoning.
        total_tokens: the server's total.
        audio_ms: processed audio, in milliseconds.
        estimated: whether the gateway estimated the tokens.
        cost_usd: what it cost, in US dollars.
        first_byte_ms: from the head of the request to the first byte of the answer; None without one.
        total_ms: from the head of the request to its end.
        queued_ms: how long it waited for a busy server; None if it did not.
        overhead_ms: how long the gateway took to pass it on; None if it did not.
        bytes_in: received bytes of its body.
        bytes_out: sent bytes of the answer's body.
        fallback: the model that was asked in place of the one that it names; empty if none was.
        max_tokens: the limit of generated tokens that it names; None without one.
        response_id: the id of the answer, such as ``chatcmpl-…``, if the gateway knows it.
        session_id: the session that its ``x-litellm-session-id`` names; empty without.
        tags: its tags.
        metadata: its metadata, a JSON object as text; empty without.
        started: when it began, in Unix seconds.
        ended: when it ended, likewise.
        attempts: all attempts, the last one too.
        trace_id: the id of its trace, 32 hex digits; empty if it is not traced.
        span_id: the id of its own span, 16 hex digits; likewise.
        contents: its prompt and answer as JSON; None if they are not kept.
    """

    time: str
    request_id: str
    client: str
    key_name: str
    key_hash: str
    key_id: str
    method: str
    route: str
    route_class: str
    model: str
    group: str
    server: str
    status: int
    outcome: str
    total_ms: float
    started: float
    ended: float
    error: str = ""
    user_id: str | None = None
    team_id: str | None = None
    organization_id: str | None = None
    end_user: str | None = None
    model_id: str = ""
    stream: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0
    audio_ms: int = 0
    estimated: bool = False
    cost_usd: float = 0.0
    first_byte_ms: float | None = None
    queued_ms: float | None = None
    overhead_ms: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    fallback: str = ""
    max_tokens: int | None = None
    response_id: str = ""
    session_id: str = ""
    tags: tuple[str, ...] = ()
    metadata: str = ""
    attempts: tuple[Attempt, ...] = ()
    trace_id: str = ""
    span_id: str = ""
    contents: msgspec.Raw | None = None


_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_event = msgspec.json.Decoder(RequestEvent).decode
_encode = msgspec.json.Encoder().encode


def read_event(data: bytes) -> RequestEvent:
    """Return the event of its JSON.

    Raises:
        msgspec.MsgspecError: it is no JSON, or no event of a request.
    """
    members = _members(data)
    # msgspec reads no JSON in JSON where there may be none
    contents = members.pop("contents", None)
    event = _event(_encode(members))
    return event if contents is None else msgspec.structs.replace(event, contents=contents)


def is_success(status: int, outcome: str) -> bool:
    """Return whether a request counts as answered: completely, below 400."""
    return outcome == "completed" and 0 < status < 400


#: outcomes that are a fault of the gateway or of a server
FAULTS = frozenset(("upstream_failed", "upstream_error", "failed"))


def is_fault(status: int, outcome: str, error: str) -> bool:
    """Return whether a request failed by a fault of the gateway or of a server, and not by its client's mistake."""
    return outcome in FAULTS or (status >= 500 and error not in TURNED_AWAY)


#: what gets the events: the event, and the context that it was made of
Consumer = Callable[[RequestEvent, RequestContext], None]
#: tells whether a consumer wants the event of a request; called once for each
Wants = Callable[[RequestContext], bool]
#: makes JSON of what was gathered of a request, and hands it to the function: in a later turn of the reactor
Render = Callable[[Contents, RequestContext, Callable[[msgspec.Raw | None], None]], None]


#: what vLLM 0.32 writes before the ``X-Request-Id`` that it gets, to make the id of its answer, by route
_BEFORE_REQUEST_ID = {"/v1/chat/completions": "chatcmpl-", "/v1/completions": "cmpl-", "/v1/embeddings": "embd-"}


class RequestEvents(RequestObserver):
    """Makes an event of each finished request and hands it to all that want it.

    Attributes:
        consumers: what gets all events.
        selective: what gets the events of certain requests. Without `consumers`, no event is made of others.
        render: makes JSON of the prompt and the answer of a request that is over, later; None where none are kept.
    """

    _log = Logger()

    def __init__(
        self,
        text: ClientText,
        client_of: Callable[[RequestContext], str],
    ) -> None:
        """Set up; nothing gets the events yet.

        Args:
            text: removes secrets from client-supplied text.
            client_of: returns the address of a request's client.
        """
        self.consumers: tuple[Consumer, ...] = ()
        self.selective: tuple[tuple[Wants, Consumer], ...] = ()
        self._text = text
        self._client_of = client_of
        self.render: Render | None = None

    def finished(self, context: RequestContext) -> None:
        """Tell of a request: at once, or once its prompt and its answer are JSON."""
        consumers = self.consumers
        for wants, consume in self.selective:
            if wants(context):
                consumers = (*consumers, consume)
        contents, context.contents = context.contents, None
        if not consumers:
            return
        event = self.event(context)
        if contents is None or self.render is None:
            self._tell(consumers, event, context)
        else:
            self.render(contents, context, partial(self._tell_with, consumers, event, context))

    def _tell_with(
        self, consumers: tuple[Consumer, ...], event: RequestEvent, context: RequestContext, found: msgspec.Raw | None
    ) -> None:
        self._tell(consumers, event if found is None else msgspec.structs.replace(event, contents=found), context)

    def _tell(self, consumers: tuple[Consumer, ...], event: RequestEvent, context: RequestContext) -> None:
        """Hand an event to its consumers. The failure of one is logged and does not affect the others."""
        for consume in consumers:
            try:
                consume(event, context)
            except Exception:
                self._log.failure("A consumer of request events failed")

    def event(self, context: RequestContext) -> RequestEvent:
        """Return the event of a request that is over."""
        text, principal, authorization = self._text, context.principal, context.authorization
        meter, usage, trace = context.meter, context.usage, context.trace
        first = context.head.first
        said = context.all_said
        first_byte, queued, overhead = context.first_byte, context.queued, context.overhead
        who = _NOBODY if principal is None else principal
        # in the order of its fields: by their names it costs twice as much
        return RequestEvent(
            iso_time(context.started),
            text.request_id(context),
            self._client_of(context),
            who.name,
            who.hash_prefix,
            who.key_id,
            context.head.method.decode("latin-1"),
            text.route(context),
            "gateway" if authorization is None else authorization.route.route_class.value,
            text.model(context),
            context.group,
            "" if context.server is None else context.server.name,
            context.status,
            context.outcome,
            _milliseconds(context.duration),
            context.started,
            context.ended,
            context.error_code,
            who.user_id,
            who.team_id,
            who.organization_id,
            None if context.end_user is None else text.text(context, context.end_user),
            context.model_id,
            meter is not None and meter.is_stream,
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            usage.reasoning_tokens,
            usage.total_tokens,
            usage.audio_ms,
            usage.estimated,
            float_dollars(context.cost),
            None if first_byte is None else _milliseconds(first_byte - context.started),
            None if queued is None else _milliseconds(queued),
            None if overhead is None else _milliseconds(overhead),
            context.bytes_in,
            context.bytes_out,
            context.fallback and text.text(context, context.fallback),
            None if meter is None else meter.max_tokens,
            self._answer_id(context),
            text.text(context, first[SESSION_HEADER].decode("latin-1")) if SESSION_HEADER in first else "",
            tuple([text.text(context, tag) for tag in said.tags]),
            text.whole(context, said.metadata),
            _attempts(context),
            "" if trace is None else trace.trace_id,
            "" if trace is None else trace.span_id,
        )

    def _answer_id(self, context: RequestContext) -> str:
        """Return the id that the server gave its answer; empty if it cannot be told."""
        meter, authorization = context.meter, context.authorization
        if authorization is None or not context.sent or not 200 <= context.status < 300:
            return ""
        if meter is not None and (known := meter.response_id or (meter.answer_id if authorization.stores else "")):
            return known
        before = _BEFORE_REQUEST_ID.get(authorization.route.row.path)
        return "" if before is None else before + (context.repeated_as or self._text.request_id(context))


def _attempts(context: RequestContext) -> tuple[Attempt, ...]:
    before: tuple[Attempt, ...] = ()
    if context.attempts:
        before = tuple(
            Attempt(each.server, each.began, each.ended, each.status, each.reason, each.span_id)
            for each in context.attempts
        )
    if not context.sent or context.server is None:
        return before
    meter, trace = context.meter, context.trace
    began, span_id = context.attempt_began, "" if trace is None else trace.attempt_id
    if before and (before[-1].server, before[-1].began, before[-1].span_id) == (context.server.name, began, span_id):
        # no further attempt found a place
        return before
    if meter is not None:
        status = meter.status
    else:
        # not that of the gateway's own error
        status = 0 if context.error_code and context.status >= 400 else context.status
    last = Attempt(
        context.server.name,
        began,
        context.ended,
        status,
        "" if context.outcome == "completed" else context.error_code or context.outcome,
        span_id,
    )
    return (*before, last)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
