"""Log lines: JSON for machines, text for people. Plain functions of a request record or of a log event."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from twisted.logger import LogEvent, LogLevel, formatEvent
from zope.interface import Interface, implementer

from twisted_vllm.observability.logging.escape import cut, json_line, many_lines, one_line, word
from twisted_vllm.observability.logging.redaction import Redactor
from twisted_vllm.observability.request_record import RequestRecord

REQUEST_NAMESPACE = "twisted_vllm.requests"
LOG_NAMESPACE = "twisted_vllm.observability"
INDENT = "    | "

_RESET = "\x1b[0m"
_DIM, _RED, _GREEN, _YELLOW = "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"
_LEVEL_COLOURS = {"debug": _DIM, "warn": _YELLOW, "error": _RED, "critical": _RED}
_STATUS_COLOURS = {2: _GREEN, 3: _GREEN, 4: _YELLOW}


class ILines(Interface):
    """Turns what is logged into lines: bytes that end with a newline. Never raises."""

    def request(record: RequestRecord, level: str) -> bytes:
        """Return the line of one request."""

    def event(event: LogEvent) -> bytes:
        """Return the line, or the indented lines, of one other event."""

    def loss(count: int) -> bytes:
        """Return the line that tells how many lines were dropped."""


class _Event(msgspec.Struct, omit_defaults=True):
    time: str
    level: str
    namespace: str
    message: str
    failure: str | None = None


@implementer(ILines)
class JsonLines:
    """One JSON object per line; every one has ``time``, ``level`` and ``namespace``."""

    def __init__(self, redact: Callable[[str], str] | None = None, seconds: Callable[[], float] = time.time) -> None:
        self._redact = redact or Redactor()
        self._seconds = seconds
        self._encode = msgspec.json.Encoder().encode
        levels = ("debug", "info", "warn", "error", "critical")
        tail = ',"level":"%s","namespace":"' + REQUEST_NAMESPACE + '"}\n'
        self._request_tails = {level: (tail % level).encode("ascii") for level in levels}

    def request(self, record: RequestRecord, level: str) -> bytes:
        try:
            encoded = self._encode(record)
        except UnicodeEncodeError:
            encoded = self._encode({name: _encodable(value) for name, value in msgspec.structs.asdict(record).items()})
        return json_line(encoded)[:-1] + self._request_tails[level]

    def event(self, event: LogEvent) -> bytes:
        return self._line(_read_event(event, self._redact, self._seconds))

    def loss(self, count: int) -> bytes:
        return self._line(_read_event(_loss_event(count), self._redact, self._seconds))

    def _line(self, event: _Event) -> bytes:
        return json_line(self._encode(event)) + b"\n"


@implementer(ILines)
class TextLines:
    """One line per request or event for a person to read; tracebacks follow indented."""

    def __init__(
        self,
        redact: Callable[[str], str] | None = None,
        seconds: Callable[[], float] = time.time,
        *,
        terminal: bool = False,
    ) -> None:
        """Make the format.

        Args:
            redact: takes secrets out of messages and tracebacks.
            seconds: the clock for events that have no time, in seconds since 1970.
            terminal: colours, and times without their date.
        """
        self._redact = redact or Redactor()
        self._seconds = seconds
        self._terminal = terminal

    def request(self, record: RequestRecord, level: str) -> bytes:
        status = str(record.status or "---")
        parts = [
            self._when(record.time),
            self._coloured(status, _STATUS_COLOURS.get(record.status // 100, _RED)),
            word(record.method),
            word(record.route),
        ]
        if record.model:
            parts.append(word(record.model))
        if record.key_name:
            parts.append(f"key={word(record.key_name)}")
        parts.append(_duration(record.total_ms))
        if record.first_byte_ms is not None:
            parts.append(f"ttfb={_duration(record.first_byte_ms)}")
        if record.queued_ms is not None:
            parts.append(f"queued={_duration(record.queued_ms)}")
        parts.append(_size(record.bytes_out))
        if record.server:
            parts.append(f"→ {word(record.server)}")
        if record.outcome != "completed":
            parts.append(self._coloured(word(record.outcome), _LEVEL_COLOURS.get(level, "")))
        if record.error:
            parts.append(f"error={word(record.error)}")
        parts.append(self._coloured(f"rid={word(record.request_id)}", _DIM))
        return (" ".join(parts) + "\n").encode("utf-8")

    def event(self, event: LogEvent) -> bytes:
        return self._line(_read_event(event, self._redact, self._seconds))

    def loss(self, count: int) -> bytes:
        return self._line(_read_event(_loss_event(count), self._redact, self._seconds))

    def _line(self, event: _Event) -> bytes:
        message = event.message if event.failure is None else f"{event.message}\n{event.failure}".rstrip()
        level = self._coloured(f"{event.level:<5}", _LEVEL_COLOURS.get(event.level, ""))
        namespace = self._coloured(f"[{one_line(event.namespace)}]", _DIM)
        return f"{self._when(event.time)} {level} {namespace} {many_lines(message, INDENT)}\n".encode()

    def _when(self, iso: str) -> str:
        return one_line(iso[11:23] if self._terminal else iso)

    def _coloured(self, text: str, colour: str) -> str:
        return f"{colour}{text}{_RESET}" if self._terminal and colour else text


def _read_event(event: LogEvent, redact: Callable[[str], str], seconds: Callable[[], float]) -> _Event:
    failure = event.get("log_failure")
    message = None
    if failure is None and event.get("failure") is not None:
        # log.err of twisted.python.log: its text holds the traceback already, so take its parts.
        failure = event["failure"]
        message = str(event.get("why") or "Unhandled error")
    if message is None:
        message = formatEvent(event)
    level = event.get("log_level")
    return _Event(
        time=iso_time(event.get("log_time") or seconds()),
        level="info" if level is None else level.name,
        namespace=str(_encodable(str(event.get("log_namespace") or event.get("log_system") or "-"))),
        message=_clean(message, redact),
        failure=None if failure is None else _clean(_traceback(failure), redact),
    )


def iso_time(seconds: float) -> str:
    """Return seconds since 1970 as ISO 8601 in UTC with milliseconds."""
    milliseconds = int(seconds * 1000)
    return f"{_whole_second(milliseconds // 1000)}.{milliseconds % 1000:03}Z"


@lru_cache(maxsize=64)
def _whole_second(seconds: int) -> str:
    # a date is the dearest part of a line, and the same for a whole second of requests
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _loss_event(count: int) -> LogEvent:
    text = "{count} log lines were dropped: the log's target did not take them in time"
    return {"log_level": LogLevel.warn, "log_namespace": LOG_NAMESPACE, "log_format": text, "count": count}


def _traceback(failure: Any) -> str:
    # An exception's own __str__ may fail; a log that raises would hide the first error.
    try:
        return str(failure.getTraceback())
    except Exception as error:
        return f"(no traceback: {type(error).__name__})"


def _clean(text: str, redact: Callable[[str], str]) -> str:
    # Redacted before it is cut: half a secret would not be recognised.
    return str(_encodable(cut(redact(text))))


def _encodable(value: object) -> object:
    """Return text without lone surrogates, which UTF-8 has no form for; everything else as it is."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value


def _duration(milliseconds: float) -> str:
    return f"{milliseconds:.1f}ms" if milliseconds < 10_000 else f"{milliseconds / 1000:.1f}s"


def _size(count: int) -> str:
    if count < 1000:
        return f"{count}B"
    if count < 1_000_000:
        return f"{count / 1000:.1f}kB"
    return f"{count / 1_000_000:.1f}MB"
