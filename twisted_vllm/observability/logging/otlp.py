"""Exports the log by OTLP: requests and the gateway's own lines become OpenTelemetry's log records.

It imports the OpenTelemetry SDK, so it is imported only where a sink of this kind is configured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any

import msgspec
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
from zope.interface import implementer

from twisted_vllm.config.tracing_destinations import TraceDestination
from twisted_vllm.observability.delivery.interfaces import DeliveryFailed, IBlockingDestination
from twisted_vllm.observability.logging.observer import request_level
from twisted_vllm.observability.otlp_exporter import LOGS, OtlpExporter
from twisted_vllm.observability.request_event import RequestEvent, read_event
from twisted_vllm.observability.tracing.attributes import attempt_attributes, request_attributes
from twisted_vllm.observability.tracing.facts import operation, request_name
from twisted_vllm.observability.tracing.names import OWN
from twisted_vllm.observability.tracing.told_contents import Told

#: the names of the records' events: of a model's answer as the GenAI conventions call it, and of any other request
ANSWERED, REQUESTED = "gen_ai.client.inference.operation.details", "vllm_passthrough.request"

#: by the log's levels (OpenTelemetry, "Log data model", severity)
_SEVERITIES = {
    "debug": SeverityNumber.DEBUG,
    "info": SeverityNumber.INFO,
    "warn": SeverityNumber.WARN,
    "error": SeverityNumber.ERROR,
    "critical": SeverityNumber.FATAL,
}
_SCOPE = InstrumentationScope("twisted_vllm", version("twisted-vllm"))

#: members of a line that are no attributes
_SAID_ELSEWHERE = frozenset(("time", "level", "message", "trace_id", "span_id"))


@implementer(IBlockingDestination)
class OtlpLogs:
    """Exports lines of the log, each one JSON object in bytes.

    A line is a `RequestEvent`, or what `JsonLines` writes: a request's record, or another event of the log.
    """

    def __init__(self, destination: TraceDestination, resource: Mapping[str, str]) -> None:
        """Make the exporter.

        Args:
            destination: where they go; the names of its files are absolute.
            resource: attributes of the gateway.
        """
        self._exporter = OtlpExporter(destination, LOGS)
        self._resource = Resource({**resource, **destination.resource})
        self._conventions = destination.conventions

    def deliver(self, batch: Sequence[bytes]) -> None:
        """Export a batch of lines.

        Raises:
            DeliveryFailed: the receiver did not take it.
        """
        self._exporter.export([ReadableLogRecord(self._record(line), self._resource, _SCOPE) for line in batch])

    def close(self) -> None:
        """Close the connections."""
        self._exporter.close()

    def _record(self, line: bytes) -> LogRecord:
        try:
            found = msgspec.json.decode(line)
        except msgspec.MsgspecError:
            # the others of the batch may be taken
            raise DeliveryFailed("a line is not JSON", retryable=False, too_large=True) from None
        if not isinstance(found, dict):
            found = {"message": found}
        if "route_class" in found:
            try:
                return self._of_request(read_event(line))
            except msgspec.ValidationError:
                # of another version of the gateway, from a spool: its members say what there is to say
                pass
        return _of_line(found)

    def _of_request(self, event: RequestEvent) -> LogRecord:
        level = request_level(event.status, event.outcome)
        told = Told.of(event.contents)
        said = request_attributes(event, self._conventions, told)
        if event.attempts:
            said = {**attempt_attributes(event, len(event.attempts) - 1, self._conventions, told), **said}
        return _record(
            moment=event.ended,
            level=level,
            body=f"{request_name(event)} {event.status or '---'} {event.outcome}",
            attributes=said,
            name=ANSWERED if operation(event) and event.attempts else REQUESTED,
            trace_id=event.trace_id,
            span_id=event.span_id,
        )


def _of_line(found: Mapping[str, Any]) -> LogRecord:
    is_request = "outcome" in found and "message" not in found
    body = (
        f"{found.get('method', '')} {found.get('route', '')} {found.get('status') or '---'} {found['outcome']}".strip()
        if is_request
        else _text(found.get("message", ""))
    )
    said = {
        OWN + name: _value(value) for name, value in found.items() if name not in _SAID_ELSEWHERE and value is not None
    }
    if failure := said.pop(f"{OWN}failure", None):
        said["exception.stacktrace"] = failure
    return _record(
        moment=_seconds(found.get("time")),
        level=_text(found.get("level") or "info"),
        body=body,
        attributes=said,
        name=REQUESTED if is_request else "",
        trace_id=_text(found.get("trace_id", "")),
        span_id=_text(found.get("span_id", "")),
    )


def _record(
    *,
    moment: float,
    level: str,
    body: str,
    attributes: Mapping[str, Any],
    name: str,
    trace_id: str,
    span_id: str,
) -> LogRecord:
    context = None
    if is_hex(trace_id, 32):
        span = SpanContext(
            int(trace_id, 16), int(span_id, 16) if is_hex(span_id, 16) else 0, False, TraceFlags(TraceFlags.SAMPLED)
        )
        context = set_span_in_context(NonRecordingSpan(span))
    nanoseconds = round(moment * 1_000_000) * 1_000
    return LogRecord(
        timestamp=nanoseconds,
        observed_timestamp=nanoseconds,
        context=context,
        severity_text=level.upper(),
        severity_number=_SEVERITIES.get(level, SeverityNumber.INFO),
        body=body,
        attributes=dict(attributes),
        event_name=name or None,
    )


def is_hex(text: str, length: int) -> bool:
    """Return whether a text is an id of a trace or a span: hex digits, not all of them 0."""
    return len(text) == length and set(text) <= set("0123456789abcdef") and text.strip("0") != ""


def _seconds(time: object) -> float:
    """Return a time as `iso_time` writes it in Unix seconds; 0, which means unknown, for any other."""
    try:
        return datetime.fromisoformat(str(time)).timestamp()
    except ValueError:
        return 0.0


def _value(value: Any) -> str | bool | int | float:
    return value if isinstance(value, (str, bool, int, float)) else msgspec.json.encode(value).decode()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(_value(value))
