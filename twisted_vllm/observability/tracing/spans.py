"""Makes OpenTelemetry spans of finished requests, off the reactor.

It imports the OpenTelemetry SDK, so it is imported only where traces are configured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from twisted_vllm.observability.request_event import RequestEvent, is_fault
from twisted_vllm.observability.tracing.attributes import attempt_attributes, request_attributes
from twisted_vllm.observability.tracing.facts import (
    Attributes,
    Value,
    attempt_failure,
    attempt_name,
    request_name,
)
from twisted_vllm.observability.tracing.told_contents import Told
from twisted_vllm.observability.tracing.traced_request import TracedRequest

#: the names of events
QUEUED, RETRY, FALLBACK, FIRST_BYTE, FIRST_TOKEN = "queued", "retry", "fallback", "first_byte", "first_token"
_PREFIX = "vllm_passthrough."

_SCOPE = InstrumentationScope("twisted_vllm", version("twisted-vllm"))


class SpanMaker:
    """Makes the spans for one destination."""

    def __init__(self, resource: Mapping[str, str], conventions: Sequence[str]) -> None:
        """Make it.

        Args:
            resource: attributes of the gateway.
            conventions: which names of attributes the spans have.
        """
        sdk = {"language": "python", "name": "opentelemetry", "version": version("opentelemetry-sdk")}
        self._resource = Resource({**{f"telemetry.sdk.{name}": value for name, value in sdk.items()}, **resource})
        self._conventions = tuple(conventions)

    def spans(self, traced: TracedRequest) -> Iterator[ReadableSpan]:
        """Yield the span of a request, and one for each of its attempts."""
        event = traced.event
        told = Told.of(event.contents)
        state = TraceState.from_header([traced.state]) if traced.state else TraceState()
        parent = _context(event.trace_id, traced.parent_id, state, is_remote=True) if traced.parent_id else None
        own = _context(event.trace_id, event.span_id, state)
        yield ReadableSpan(
            name=_sendable(request_name(event)),
            context=own,
            parent=parent,
            resource=self._resource,
            attributes=_all_sendable(request_attributes(event, self._conventions, told)),
            events=tuple(events_of(event)),
            kind=SpanKind.SERVER,
            # OpenTelemetry, "Semantic conventions for HTTP spans": a mistake of the client is no error of a server
            status=_status(error_of(event) if is_fault(event.status, event.outcome, event.error) else ""),
            start_time=_nanoseconds(event.started),
            end_time=_nanoseconds(event.ended),
            instrumentation_scope=_SCOPE,
        )
        for number, attempt in enumerate(event.attempts):
            if not attempt.span_id:
                continue
            yield ReadableSpan(
                name=_sendable(attempt_name(event)),
                context=_context(event.trace_id, attempt.span_id, state),
                parent=own,
                resource=self._resource,
                attributes=_all_sendable(attempt_attributes(event, number, self._conventions, told)),
                events=tuple(_first_byte(event)) if number == len(event.attempts) - 1 else (),
                kind=SpanKind.CLIENT,
                status=_status(attempt_failure(attempt)),
                start_time=_nanoseconds(attempt.began),
                end_time=_nanoseconds(max(attempt.ended, attempt.began)),
                instrumentation_scope=_SCOPE,
            )


def error_of(event: RequestEvent) -> str:
    """Return why a request failed: its error's code, its outcome, or its status; empty if all is well."""
    if event.error:
        return event.error
    if event.outcome != "completed":
        return event.outcome
    return str(event.status) if event.status >= 400 else ""


def events_of(event: RequestEvent) -> Iterator[Event]:
    """Yield what happened to a request, in order of time."""
    found = [*_queued(event), *_retries(event), *_first_byte(event)]
    yield from sorted(found, key=lambda each: each.timestamp)


def _queued(event: RequestEvent) -> Iterator[Event]:
    if event.queued_ms is None:
        return
    queued = event.queued_ms / 1000
    if not event.attempts:
        began = event.ended - queued
    elif queued <= event.attempts[0].began - event.started or len(event.attempts) == 1:
        # it went to a server as soon as its wait was over
        began = event.attempts[0].began - queued
    else:
        # it waited for another server after one had failed
        began = event.attempts[-2].ended
    yield Event(QUEUED, {f"{_PREFIX}queued_ms": event.queued_ms}, _nanoseconds(max(began, event.started)))


def _retries(event: RequestEvent) -> Iterator[Event]:
    for number, attempt in enumerate(event.attempts[:-1]):
        following = event.attempts[number + 1]
        said: dict[str, str | int] = {
            f"{_PREFIX}attempt": number + 1,
            f"{_PREFIX}server": attempt.server,
            f"{_PREFIX}reason": attempt.reason,
            f"{_PREFIX}next_server": following.server,
        }
        yield Event(RETRY, said, _nanoseconds(attempt.ended))
    if event.fallback:
        last = event.attempts[-1].began if event.attempts else event.ended
        yield Event(FALLBACK, {f"{_PREFIX}fallback": _sendable(event.fallback)}, _nanoseconds(last))


def _first_byte(event: RequestEvent) -> Iterator[Event]:
    # an answer of the gateway's own is not a server's
    is_own = bool(event.error) and event.status >= 400
    if event.first_byte_ms is not None and event.attempts and not is_own:
        at = event.started + event.first_byte_ms / 1000
        yield Event(FIRST_TOKEN if event.stream else FIRST_BYTE, {}, _nanoseconds(at))


def _status(error: str) -> Status:
    return Status(StatusCode.ERROR, error) if error else Status(StatusCode.UNSET)


def _context(trace_id: str, span_id: str, state: TraceState, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote, TraceFlags(TraceFlags.SAMPLED), state)


def _all_sendable(attributes: Attributes) -> Attributes:
    return {_sendable(name): _sendable_value(value) for name, value in attributes.items()}


def _sendable_value(value: Value) -> Value:
    if isinstance(value, str):
        return _sendable(value)
    return [_sendable(each) for each in value] if isinstance(value, list) else value


def _sendable(text: str) -> str:
    """Return a text as protobuf takes it: half a surrogate pair, from a client's JSON, becomes its escape.

    Protobuf would refuse the whole export, with the spans of others.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _nanoseconds(seconds: float) -> int:
    # a float of today's time has no more than microseconds
    return round(seconds * 1_000_000) * 1_000
