"""The attributes of a request's spans, made from its event without I/O.

A request has one span of the server's kind, and for each attempt one of the client's kind, which says what the model
did. Tokens, cost and answer are on the last attempt's span alone, so that receivers that add up the spans of a trace
count them once; on the request's span where nothing was sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from twisted_vllm.observability.request_event import Attempt, RequestEvent
from twisted_vllm.observability.tracing import names
from twisted_vllm.observability.tracing.conventions import gen_ai, gen_ai_legacy, litellm
from twisted_vllm.observability.tracing.facts import Attributes, Facts, Value
from twisted_vllm.observability.tracing.told_contents import NOTHING_TOLD, Told, as_json
from twisted_vllm.observability.tracing.vendor_conventions import langfuse, mlflow, open_inference


def request_attributes(event: RequestEvent, conventions: Iterable[str], told: Told | None = None) -> Attributes:
    """Return the attributes of a request's own span, which is of the server's kind.

    Args:
        event: the request.
        conventions: names of `CONVENTIONS`; what is not of a convention is always there.
        told: its contents; None reads them.
    """
    facts = Facts(event, Told.of(event.contents) if told is None else told, not event.attempts, None, 0)
    found = dict(_gateway(facts))
    for name in conventions:
        found.update(CONVENTIONS[name](facts))
    return found


def attempt_attributes(
    event: RequestEvent, number: int, conventions: Iterable[str], told: Told | None = None
) -> Attributes:
    """Return the attributes of the span of one attempt, which is of the client's kind.

    Args:
        event: the request.
        number: the place of the attempt in `RequestEvent.attempts`.
        conventions: as in `request_attributes`; likewise `told`.
    """
    attempt = event.attempts[number]
    is_last = number == len(event.attempts) - 1
    # what failed before has no answer
    if not is_last:
        told = NOTHING_TOLD
    elif told is None:
        told = Told.of(event.contents)
    facts = Facts(event, told, is_last, attempt, number)
    found = dict(_server(facts, attempt))
    for name in conventions:
        found.update(CONVENTIONS[name](facts))
    return found


#: the gateway's own attributes that repeat a member of the event: those that are there if they say something
_SAID = tuple(
    (names.OWN + name, member)
    for name, member in (
        *((each, each) for each in ("request_id", "outcome", "route_class", "key_name", "key_id", "user_id")),
        *((each, each) for each in ("team_id", "organization_id", "end_user", "model", "model_id", "fallback")),
        *((each, each) for each in ("server", "audio_ms", "cost_usd")),
        *(("model_group", "group"), ("tokens_estimated", "estimated")),
    )
)
#: and durations, of which 0 says something
_DURATIONS = tuple((names.OWN + each, each) for each in ("first_byte_ms", "queued_ms", "overhead_ms"))


def _own(facts: Facts) -> Iterator[tuple[str, Value]]:
    """Yield the gateway's own attributes of a request, as far as they say something."""
    event, told = facts.event, facts.told
    for name, member in _SAID:
        if value := getattr(event, member):
            yield name, value
    for name, member in _DURATIONS:
        if (value := getattr(event, member)) is not None:
            yield name, value
    if event.tags:
        yield names.OWN + "tags", list(event.tags)
    if event.attempts:
        yield names.OWN + "attempts", len(event.attempts)
    if told.counts is not None:
        yield names.OWN + "contents", as_json(told.counts)
    if told.truncated:
        yield names.OWN + "contents_truncated", True


def _gateway(facts: Facts) -> Iterator[tuple[str, Value]]:
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
    yield from _own(facts)


def _server(facts: Facts, attempt: Attempt) -> Iterator[tuple[str, Value]]:
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
    if attempt.server:
        yield names.OWN + "server", attempt.server
    if facts.event.request_id:
        yield names.OWN + "request_id", facts.event.request_id


#: the conventions, by the name that settings use
CONVENTIONS: dict[str, Callable[[Facts], Iterator[tuple[str, Value]]]] = {
    "gen_ai": gen_ai,
    "gen_ai_legacy": gen_ai_legacy,
    "openinference": open_inference,
    "langfuse": langfuse,
    "mlflow": mlflow,
    "litellm": litellm,
}
