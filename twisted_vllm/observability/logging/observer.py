"""Writes events of ``twisted.logger`` to the gateway's log."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from math import inf

from twisted.logger import ILogObserver, LogEvent, LogLevel
from zope.interface import implementer

from twisted_vllm.observability.logging.lines import SECRETS_KEY, ILines
from twisted_vllm.observability.logging.repeats import Repeats
from twisted_vllm.observability.logging.writer import LogWriter
from twisted_vllm.observability.request_record import RequestRecord

#: the event's key that holds a request's record
REQUEST_KEY = "request_record"

#: what Twisted logs at info for every connection, of use only to developers
DEMOTED_FORMATS = frozenset(
    {
        "Starting factory {factory!r}",
        "Stopping factory {factory!r}",
        "Timing out client: {peer}",
        # every half second while Redis is away, of which a line of the gateway's own tells
        "Scheduling retry {attempt} to connect {endpoint} in {delay} seconds.",
    }
)

#: what Twisted's ports log at info through the legacy API; the gateway logs its addresses itself
_PORT_TEXT = re.compile(r"\S+(?: \(TLS\))? starting on \S+|\(.{1,20}Port .+ Closed\)")

_LEVELS: dict[str, int] = {level.name: number for number, level in enumerate(LogLevel.iterconstants())}
_INFO = _LEVELS["info"]
#: failed requests have a higher level; a refused one is the client's error
_OUTCOME_LEVELS = {"upstream_failed": "warn", "upstream_error": "warn", "failed": "error"}


def request_level(status: int, outcome: str) -> str:
    """Return the level of a request's line.

    Args:
        status: the status of its answer; 0 without one.
        outcome: how it ended.
    """
    name = _OUTCOME_LEVELS.get(outcome, "info")
    # the server's error
    return "warn" if name == "info" and status >= 500 and outcome == "completed" else name


@implementer(ILogObserver)
class EventObserver:
    """Passes on the events of the log that are to be shown; safe to call from any thread.

    Events that repeat are limited (`Repeats`).

    Attributes:
        secrets_in_flight: returns what no failure's line may show, in any thread. The owner of the requests sets it.
    """

    secrets_in_flight: Callable[[], Iterable[str]] = staticmethod(lambda: ())

    def __init__(self, level: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Make an observer.

        Args:
            level: the lowest level that is passed on.
            monotonic: the clock, in seconds.

        Raises:
            ValueError: the level does not exist.
        """
        if level not in _LEVELS:
            raise ValueError(f"{level!r} is not a log level; use one of {', '.join(_LEVELS)}")
        self.level = level
        self._monotonic = monotonic
        self._repeats = Repeats()

    @property
    def level(self) -> str:
        """The lowest level that is passed on."""
        return list(_LEVELS)[self._lowest]

    @level.setter
    def level(self, level: str) -> None:
        self._lowest = _LEVELS[level]

    def __call__(self, event: LogEvent) -> None:
        """Pass the event on, if its level is high enough and its kind did not come too often."""
        record: RequestRecord | None = event.get(REQUEST_KEY)
        if record is not None:
            self.request(record)
        elif self._is_wanted(event):
            if SECRETS_KEY not in event and ("log_failure" in event or "failure" in event):
                # an exception's text may hold whatever a client sent
                event = {**event, SECRETS_KEY: self.secrets_in_flight()}
            self._pass_on(self._repeats.admit(event, self._monotonic()))

    def report(self) -> None:
        """Tell how many events were left out before this second, if that was not told yet."""
        if self._repeats.pending:
            self._pass_on(self._repeats.summaries(self._monotonic()))

    def finish(self) -> None:
        """Tell how many events were left out: the log ends."""
        self._pass_on(self._repeats.summaries(self._monotonic(), all_of_them=True))

    def request(self, record: RequestRecord) -> None:
        """Take the record of a request."""

    def event(self, event: LogEvent) -> None:
        """Take an event that is to be shown."""

    def _pass_on(self, events: list[LogEvent]) -> None:
        for event in events:
            self.event(event)

    def _is_wanted(self, event: LogEvent) -> bool:
        level = event.get("log_level")
        number = _INFO if level is None else _LEVELS[level.name]
        if number == _INFO and _is_demoted(event):
            number = _LEVELS["debug"]
        if number < self._lowest:
            return False
        # trial and twisted.python.log publish events without a text.
        return event.get("log_format") is not None or "log_failure" in event or "failure" in event


class LineObserver(EventObserver):
    """Formats events and queues them; safe to call from any thread, and never raises.

    Lines that repeat are limited; those of requests are not.

    Attributes:
        writer: takes the lines. The owner of the observer starts and stops it.
    """

    def __init__(
        self,
        writer: LogWriter,
        lines: ILines,
        level: str = "info",
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make an observer.

        Args:
            writer: takes the finished lines.
            lines: formats the lines.
            level: the lowest level that is written.
            monotonic: the clock, in seconds.

        Raises:
            ValueError: the level does not exist.
        """
        super().__init__(level, monotonic)
        self.writer = writer
        self.reconfigure(lines, level)

    def reconfigure(self, lines: ILines, level: str, slow: float | None = None) -> None:
        """Write other lines from now on.

        Args:
            lines: as the constructor's.
            level: likewise.
            slow: seconds that a client waited in vain for its answer, from which its line has the level ``warn``; None
                for none.
        """
        self._lines = lines
        self.level = level
        self._slow_ms = inf if slow is None else slow * 1000

    def event(self, event: LogEvent) -> None:
        """Write the line of an event."""
        self.writer.write(self._lines.event(event))

    def request(self, record: RequestRecord) -> None:
        """Write the line of one request, if its level is high enough."""
        if self._repeats.pending:
            self.report()
        name = request_level(record.status, record.outcome)
        # no answer at all until its client gave up
        if name == "info" and not record.status and record.total_ms >= self._slow_ms:
            name = "warn"
        if _LEVELS[name] >= self._lowest:
            self.writer.write(self._lines.request(record, name))


def _is_demoted(event: LogEvent) -> bool:
    if event.get("log_namespace") == "log_legacy":
        return _PORT_TEXT.fullmatch(str(event.get("log_text"))) is not None
    return event.get("log_format") in DEMOTED_FORMATS
