"""The observer that turns events of ``twisted.logger`` into lines of the gateway's log."""

from __future__ import annotations

import re

from twisted.logger import ILogObserver, LogEvent, LogLevel
from zope.interface import implementer

from twisted_vllm.observability.logging.lines import ILines
from twisted_vllm.observability.logging.writer import LogWriter
from twisted_vllm.observability.request_record import RequestRecord

#: the key of an event under which a request's record stands
REQUEST_KEY = "request_record"

#: what Twisted logs at info once per connection: of use to a developer only
DEMOTED_FORMATS = frozenset(
    {
        "Starting factory {factory!r}",
        "Stopping factory {factory!r}",
        "Timing out client: {peer}",
    }
)

#: what Twisted's ports log at info in the old way: the gateway says better where it listens
_PORT_TEXT = re.compile(r"\S+ starting on \S+|\(.{1,20}Port .+ Closed\)")

_LEVELS = {level.name: number for number, level in enumerate(LogLevel.iterconstants())}
_INFO = _LEVELS["info"]
#: a request that failed is worth a higher level; a refused one is the client's affair
_OUTCOME_LEVELS = {"upstream_failed": "warn", "failed": "error"}


@implementer(ILogObserver)
class LineObserver:
    """Formats events and queues them; safe to call from any thread, and never raises.

    Attributes:
        writer: the writer that holds the lines, to be started and stopped by who owns the observer.
    """

    def __init__(self, writer: LogWriter, lines: ILines, level: str = "info") -> None:
        """Make an observer.

        Args:
            writer: takes the finished lines.
            lines: how a line looks.
            level: the lowest level that is written.

        Raises:
            ValueError: there is no such level.
        """
        if level not in _LEVELS:
            raise ValueError(f"{level!r} is not a log level; use one of {', '.join(_LEVELS)}")
        self.writer = writer
        self._lines = lines
        self._lowest = _LEVELS[level]

    def __call__(self, event: LogEvent) -> None:
        """Write the event, if its level is high enough."""
        record: RequestRecord | None = event.get(REQUEST_KEY)
        if record is not None:
            self.request(record)
        elif self._is_wanted(event):
            self.writer.write(self._lines.event(event))

    def request(self, record: RequestRecord) -> None:
        """Write the line of one request, if its level is high enough."""
        name = _OUTCOME_LEVELS.get(record.outcome, "info")
        if _LEVELS[name] >= self._lowest:
            self.writer.write(self._lines.request(record, name))

    def _is_wanted(self, event: LogEvent) -> bool:
        level = event.get("log_level")
        number = _INFO if level is None else _LEVELS[level.name]
        if number == _INFO and _is_demoted(event):
            number = _LEVELS["debug"]
        if number < self._lowest:
            return False
        # An event without a text (trial and twisted.python.log publish such ones) has nothing to say.
        return event.get("log_format") is not None or "log_failure" in event or "failure" in event


def _is_demoted(event: LogEvent) -> bool:
    if event.get("log_namespace") == "log_legacy":
        return _PORT_TEXT.fullmatch(str(event.get("log_text"))) is not None
    return event.get("log_format") in DEMOTED_FORMATS
