"""What the spans of a request say: decided from its event, without I/O.

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


def request_attributes(event: RequestEvent, conventions: Iterable[str]) -> Attributes:
    """Return the attributes of a request's own span, which is of the server's kind.

    Args:
        event: the request.
        conventions: names of `CONVENTIONS`; what is not of a convention is always there.
    """
    facts = Facts(event, Told.of(event.contents), not event.attempts, None, 0)
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
    facts = Facts(event, told, is_last, attempt, number)
    found = dict(_server(facts, attempt))
    for name in conventions:
        found.update(CONVENTIONS[name](facts))
    return found


def _own(name: str, value: Value | None) -> Iterator[tuple[str, Value]]:
    """Yield an attribute of the gateway's own, if it says something."""
    if value is not None and value != "" and value != []:
        yield names.OWN + name, value


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
    yield from _own("contents", None if facts.told.counts is None else as_json(facts.told.counts))
    yield from _own("contents_truncated", facts.told.truncated or None)


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
    yield from _own("server", attempt.server)
    yield from _own("request_id", facts.event.request_id)


#: the conventions, by the name that settings use
CONVENTIONS: dict[str, Callable[[Facts], Iterator[tuple[str, Value]]]] = {
    "gen_ai": gen_ai,
    "gen_ai_legacy": gen_ai_legacy,
    "openinference": open_inference,
    "langfuse": langfuse,
    "mlflow": mlflow,
    "litellm": litellm,
}
