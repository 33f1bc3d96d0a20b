"""Encodes requests and log lines for sinks: one item of bytes each, without a newline at its end."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec
from twisted.logger import LogEvent

from twisted_vllm.context import RequestContext
from twisted_vllm.observability.logging.lines import ILines, JsonLines, TextLines, encodable, iso_time, json_line
from twisted_vllm.observability.logging.observer import request_level
from twisted_vllm.observability.request_event import RequestEvent
from twisted_vllm.observability.request_record import RequestRecord
from twisted_vllm.observability.sinks.litellm_payload import payload_of

RecordOf = Callable[[RequestContext], RequestRecord]

#: syslog's severities (RFC 5424 §6.2.1), which the journal has too
SEVERITIES = {"debug": 7, "info": 6, "warn": 4, "error": 3, "critical": 2}


class Encoder(Protocol):
    """Makes the items of a sink; in any thread for log lines, in the reactor's for requests."""

    def request(self, event: RequestEvent, context: RequestContext) -> bytes:
        """Return the item of a request; an empty one is left out."""

    def line(self, event: LogEvent) -> bytes:
        """Return the item of a log line."""


class LogEncoder:
    """Items as the log has them, in JSON or in text."""

    def __init__(self, lines: ILines, record_of: RecordOf) -> None:
        """Set up.

        Args:
            lines: formats the lines.
            record_of: returns the log record of a request.
        """
        self._lines = lines
        self._record_of = record_of

    def request(self, event: RequestEvent, context: RequestContext) -> bytes:
        """Return the line of a request."""
        level = request_level(event.status, event.outcome)
        return bytes(self._lines.request(self._record_of(context), level)[:-1])

    def line(self, event: LogEvent) -> bytes:
        """Return the line of any other event."""
        return bytes(self._lines.event(event)[:-1])


class EventEncoder:
    """Requests with all that is known of them."""

    def __init__(self, lines: ILines) -> None:
        """Set up; `lines` formats log lines."""
        self._lines = lines
        self._encode = msgspec.json.Encoder().encode

    def request(self, event: RequestEvent, context: RequestContext) -> bytes:
        """Return a request as one JSON object."""
        return encoded(self._encode, event)

    def line(self, event: LogEvent) -> bytes:
        """Return the line of any other event."""
        return bytes(self._lines.event(event)[:-1])


class LitellmEncoder(EventEncoder):
    """Requests as LiteLLM's ``StandardLoggingPayload``."""

    def request(self, event: RequestEvent, context: RequestContext) -> bytes:
        """Return a request as one JSON object."""
        return encoded(self._encode, payload_of(event))


def make_encoder(format: str, redact: Callable[[str], str], record_of: RecordOf) -> Encoder:
    """Return the encoder of a format of the settings."""
    if format == "text":
        return LogEncoder(TextLines(redact), record_of)
    lines = JsonLines(redact)
    if format == "event":
        return EventEncoder(lines)
    if format == "litellm":
        return LitellmEncoder(lines)
    return LogEncoder(lines, record_of)


def encoded(encode: Callable[[object], bytes], value: object) -> bytes:
    """Return a value as JSON on one line; half a surrogate pair, from a client's JSON, becomes its escape."""
    try:
        return json_line(encode(value))
    except UnicodeEncodeError:
        return json_line(encode(_encodable(msgspec.to_builtins(value, builtin_types=(bytes,)))))


def _encodable(value: object) -> object:
    if isinstance(value, dict):
        return {_encodable(name): _encodable(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encodable(each) for each in value]
    return encodable(value)


class SyslogEncoder:
    """Messages of RFC 5424 whose text another encoder makes."""

    def __init__(
        self, inner: Encoder, facility: int, app_name: str, seconds: Callable[[], float], host: str | None = None
    ) -> None:
        """Set up.

        Args:
            inner: makes the text.
            facility: the number of the facility.
            app_name: the name of the program.
            seconds: the clock for events without a time, in Unix seconds.
            host: the name of this machine; None asks it.
        """
        self._inner = inner
        self._facility = facility * 8
        self._seconds = seconds
        name = (host or socket.gethostname()).encode("ascii", "replace")[:255] or b"-"
        self._origin = b"%b %b %d" % (name, app_name.encode("ascii"), os.getpid())

    def request(self, event: RequestEvent, context: RequestContext) -> bytes:
        """Return the message of a request."""
        severity = SEVERITIES[request_level(event.status, event.outcome)]
        return self._message(severity, event.ended, b"request", self._inner.request(event, context))

    def line(self, event: LogEvent) -> bytes:
        """Return the message of any other event."""
        level = event.get("log_level")
        severity = SEVERITIES["info" if level is None else level.name]
        return self._message(severity, event.get("log_time") or self._seconds(), b"log", self._inner.line(event))

    def _message(self, severity: int, seconds: float, kind: bytes, text: bytes) -> bytes:
        when = iso_time(seconds).encode("ascii")
        return b"<%d>1 %b %b %b - %b" % (self._facility + severity, when, self._origin, kind, text)


class JournalEncoder:
    """Entries of the journal's native protocol (systemd's JOURNAL_NATIVE_PROTOCOL): a field on each line."""

    def __init__(self, inner: Encoder, app_name: str) -> None:
        """Set up.

        Args:
            inner: makes the text, the field MESSAGE.
            app_name: the name of the program.
        """
        self._inner = inner
        self._identifier = field("SYSLOG_IDENTIFIER", app_name.encode("ascii"))

    def request(self, event: RequestEvent, context: RequestContext) -> bytes:
        """Return the entry of a request, whose fields can be searched for."""
        values: Iterable[tuple[str, str | int | None]] = (
            ("PRIORITY", SEVERITIES[request_level(event.status, event.outcome)]),
            ("VLLM_EVENT", "request"),
            ("VLLM_REQUEST_ID", event.request_id),
            ("VLLM_CLIENT", event.client),
            ("VLLM_KEY_NAME", event.key_name),
            ("VLLM_USER_ID", event.user_id),
            ("VLLM_TEAM_ID", event.team_id),
            ("VLLM_ROUTE", event.route),
            ("VLLM_MODEL", event.model),
            ("VLLM_SERVER", event.server),
            ("VLLM_STATUS", event.status),
            ("VLLM_OUTCOME", event.outcome),
            ("VLLM_ERROR", event.error),
            ("VLLM_TOTAL_TOKENS", event.total_tokens),
            ("TRACE_ID", event.trace_id),
        )
        return self._entry(self._inner.request(event, context), values)

    def line(self, event: LogEvent) -> bytes:
        """Return the entry of any other event."""
        level = event.get("log_level")
        return self._entry(
            self._inner.line(event),
            (
                ("PRIORITY", SEVERITIES["info" if level is None else level.name]),
                ("VLLM_EVENT", "log"),
                ("VLLM_NAMESPACE", str(event.get("log_namespace") or "")),
            ),
        )

    def _entry(self, message: bytes, values: Iterable[tuple[str, str | int | None]]) -> bytes:
        fields = [
            field(name, str(value).encode("utf-8", "backslashreplace"))
            for name, value in values
            if value is not None and value != ""
        ]
        return b"".join([field("MESSAGE", message), self._identifier, *fields])


def field(name: str, value: bytes) -> bytes:
    """Return a field of the journal; a value with a newline has its length before it."""
    if b"\n" not in value:
        return b"%b=%b\n" % (name.encode("ascii"), value)
    return b"%b\n%b%b\n" % (name.encode("ascii"), len(value).to_bytes(8, "little"), value)
