"""Formats log lines: JSON for machines, text for people."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from twisted.logger import LogEvent, LogLevel, formatEvent
from zope.interface import Interface, implementer

from twisted_vllm.observability.logging.redaction import MASK, Redactor, spellings
from twisted_vllm.observability.logging.repeats import LEFT_OUT
from twisted_vllm.observability.request_record import RequestRecord

REQUEST_NAMESPACE = "twisted_vllm.requests"
LOG_NAMESPACE = "twisted_vllm.observability"

#: the event's key with texts that its line must not show, in whatever spelling
SECRETS_KEY = "log_secrets"
INDENT = "    | "

#: longer text is cut, in characters: one traceback must not fill the writer's queue
MAX_TEXT_LENGTH = 64 * 1024

_PLAIN_WORD = re.compile(r"[\w./:@%+*?&~!$,;#()\[\]{}<>|^-]+", re.ASCII)

_PLAIN_RUN = re.compile(r"[A-Za-z0-9]+")

_RESET = "\x1b[0m"
_DIM, _RED, _GREEN, _YELLOW = "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"
_LEVEL_COLOURS = {"debug": _DIM, "warn": _YELLOW, "error": _RED, "critical": _RED}
_STATUS_COLOURS = {2: _GREEN, 3: _GREEN, 4: _YELLOW}


class ILines(Interface):
    """Formats lines: bytes that end with a newline. Never raises."""

    def request(record: RequestRecord, level: str) -> bytes:
        """Return the line of one request."""

    def event(event: LogEvent) -> bytes:
        """Return the line of any other event; its further lines are indented."""

    def dropped(count: int) -> bytes:
        """Return the line that says how many lines were dropped."""


class _Event(msgspec.Struct, omit_defaults=True):
    time: str
    level: str
    namespace: str
    message: str
    failure: str | None = None
    process: str = ""


@implementer(ILines)
class JsonLines:
    """Formats one JSON object per line, each with ``time``, ``level`` and ``namespace``."""

    def __init__(
        self,
        redact: Callable[[str], str] | None = None,
        seconds: Callable[[], float] = time.time,
        *,
        process: str = "",
    ) -> None:
        """Make the format.

        Args:
            redact: removes secrets from messages and tracebacks.
            seconds: the clock for events without a time, in seconds since 1970.
            process: the name of this process, for each line; empty for none.
        """
        self._redact = redact or Redactor()
        self._seconds = seconds
        self._encode = msgspec.json.Encoder().encode
        levels = ("debug", "info", "warn", "error", "critical")
        self._process = process
        named = f',"process":"{process}"' if process else ""
        tail = ',"level":"%s","namespace":"' + REQUEST_NAMESPACE + f'"{named}}}\n'
        self._request_tails = {level: (tail % level).encode("ascii") for level in levels}

    def request(self, record: RequestRecord, level: str) -> bytes:
        try:
            encoded = self._encode(record)
        except UnicodeEncodeError:
            encoded = self._encode({name: encodable(value) for name, value in msgspec.structs.asdict(record).items()})
        return json_line(encoded)[:-1] + self._request_tails[level]

    def event(self, event: LogEvent) -> bytes:
        return self._line(_read_event(event, self._redact, self._seconds))

    def dropped(self, count: int) -> bytes:
        return self._line(_read_event(_dropped_event(count), self._redact, self._seconds))

    def _line(self, event: _Event) -> bytes:
        event.process = self._process
        return json_line(self._encode(event)) + b"\n"


@implementer(ILines)
class TextLines:
    """Formats one line per request or event for people to read. Tracebacks follow, indented."""

    def __init__(
        self,
        redact: Callable[[str], str] | None = None,
        seconds: Callable[[], float] = time.time,
        *,
        terminal: bool = False,
        process: str = "",
    ) -> None:
        """Make the format.

        Args:
            redact: removes secrets from messages and tracebacks.
            seconds: the clock for events without a time, in seconds since 1970.
            terminal: whether to use colours, and times without the date.
            process: the name of this process, for each line; empty for none.
        """
        self._process = f" {process}" if process else ""
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
        if record.attempts:
            parts.append(f"attempts={word(record.attempts)}")
        if record.fallback:
            parts.append(f"fallback={word(record.fallback)}")
        if record.trace_id:
            parts.append(f"trace={record.trace_id}")
        if record.repeated_as:
            parts.append(self._coloured(f"repeated_as={record.repeated_as}", _DIM))
        return (" ".join(parts) + "\n").encode("utf-8")

    def event(self, event: LogEvent) -> bytes:
        return self._line(_read_event(event, self._redact, self._seconds))

    def dropped(self, count: int) -> bytes:
        return self._line(_read_event(_dropped_event(count), self._redact, self._seconds))

    def _line(self, event: _Event) -> bytes:
        message = event.message if event.failure is None else f"{event.message}\n{event.failure}".rstrip()
        level = self._coloured(f"{event.level:<5}", _LEVEL_COLOURS.get(event.level, ""))
        namespace = self._coloured(f"[{one_line(event.namespace)}]", _DIM)
        return f"{self._when(event.time)} {level} {namespace} {many_lines(message, INDENT)}\n".encode()

    def _when(self, iso: str) -> str:
        return one_line(iso[11:23] if self._terminal else iso) + self._process

    def _coloured(self, text: str, colour: str) -> str:
        return f"{colour}{text}{_RESET}" if self._terminal and colour else text


def _read_event(event: LogEvent, redact: Callable[[str], str], seconds: Callable[[], float]) -> _Event:
    failure = event.get("log_failure")
    message = None
    if failure is None and event.get("failure") is not None:
        # An event of twisted.python.log.err: its text contains the traceback, so take its parts.
        failure = event["failure"]
        message = str(event.get("why") or "Unhandled error")
    if message is None:
        message = formatEvent(event)
    secrets = frozenset(event.get(SECRETS_KEY, ()))
    if event.get(LEFT_OUT):
        message += f" (lines like this left out: {event[LEFT_OUT]})"
    level = event.get("log_level")
    return _Event(
        time=iso_time(event.get("log_time") or seconds()),
        level="info" if level is None else level.name,
        namespace=str(encodable(str(event.get("log_namespace") or event.get("log_system") or "-"))),
        message=_clean(message, redact, secrets),
        failure=None if failure is None else _clean(_traceback(failure), redact, secrets),
    )


def iso_time(seconds: float) -> str:
    """Return seconds since 1970 as ISO 8601 in UTC with milliseconds."""
    milliseconds = int(seconds * 1000)
    return f"{_whole_second(milliseconds // 1000)}.{milliseconds % 1000:03}Z"


@lru_cache(maxsize=64)
def _whole_second(seconds: int) -> str:
    # Cached, because the date is the most expensive part of a line.
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _dropped_event(count: int) -> LogEvent:
    text = "{count} log lines were dropped: the log's target did not take them in time"
    return {"log_level": LogLevel.warn, "log_namespace": LOG_NAMESPACE, "log_format": text, "count": count}


def _traceback(failure: Any) -> str:
    # An exception's own __str__ may fail, which must not hide the first error.
    try:
        return str(failure.getTraceback())
    except Exception as error:
        return f"(no traceback: {type(error).__name__})"


def _clean(text: str, redact: Callable[[str], str], secrets: Iterable[str]) -> str:
    # Redact before cutting: half a secret would not be recognised.
    for secret in secrets:
        # every spelling has these characters; to spell takes 10 µs
        if max(_PLAIN_RUN.findall(secret), key=len, default="") in text:
            for spelling in spellings(secret):
                text = text.replace(spelling, MASK)
    return str(encodable(cut(redact(text))))


def encodable(value: object) -> object:
    """Return text with lone surrogates escaped, as UTF-8 cannot encode them; anything else unchanged."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value


def _duration(milliseconds: float) -> str:
    return f"{milliseconds:.1f}ms" if milliseconds < 10_000 else f"{milliseconds / 1000:.1f}s"


def _size(count: int) -> str:
    if count < 1000:
        return f"{count}B"
    if count < 1_000_000:
        return f"{count / 1000:.1f}kB"
    return f"{count / 1_000_000:.1f}MB"


# Escaping keeps text from a client from acting in the log: no forged lines, no terminal escapes, no reversed text.


def one_line(text: str) -> str:
    """Return text with everything that is not printable escaped, newlines included."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def many_lines(text: str, indent: str) -> str:
    """Return text with all lines but the first indented, so that none looks like a log line."""
    return f"\n{indent}".join(one_line(line.expandtabs(4)) for line in text.split("\n"))


def word(text: str) -> str:
    """Return text as one word of a line, quoted where it could be read as several."""
    if _PLAIN_WORD.fullmatch(text):
        return text
    return '"' + one_line(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def json_line(encoded: bytes) -> bytes:
    """Return encoded JSON with everything that is not printable escaped, such as U+0085 and U+2028."""
    if encoded.isascii() and b"\x7f" not in encoded:
        return encoded
    text = encoded.decode("utf-8")
    if text.isprintable():
        return encoded
    return "".join(c if c.isprintable() else _json_escape(c) for c in text).encode("utf-8")


def cut(text: str) -> str:
    """Return the text, or its beginning and the number of characters that were cut."""
    if len(text) <= MAX_TEXT_LENGTH:
        return text
    return f"{text[:MAX_TEXT_LENGTH]} ... ({len(text) - MAX_TEXT_LENGTH} more characters)"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))
