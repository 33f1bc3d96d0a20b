"""Limits how often lines of one kind are written, and counts those that are left out.

Clients, tenants and servers decide how often some events happen. Without a limit one of them can fill the log, and hide
what else it says.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Hashable

from twisted.logger import LogEvent, LogLevel

#: the event's key that limits its kind to one line a second; its value tells kinds apart that have the same format,
#: such as the name of a server
ONCE_A_SECOND = "once_a_second"

#: the event's key that holds how many events of its kind were left out before it
LEFT_OUT = "left_out"

#: lines of any other kind in a second
MOST_A_SECOND = 20

#: lines in a second of what a program prints, which are one kind: a traceback has many, and the last says what it was
MOST_PRINTED = 1_000

#: how Twisted formats what is written to standard output and error (``twisted.logger.LoggingFile``)
_PRINTED = "{log_io}"

#: kinds to track at a time; the one that was written longest ago is forgotten first
MAX_KINDS = 256

#: seconds in which lines are counted
WINDOW = 1.0

#: the place of a value in an event's format
_VALUE = re.compile(r"\{[^{}]*\}")


class _Kind:
    """One kind of event: its current second, and what is needed to say how many were left out."""

    __slots__ = ("about", "began", "event", "left_out", "most", "written")

    def __init__(self, event: LogEvent, now: float) -> None:
        self.about = event.get(ONCE_A_SECOND)
        other = MOST_PRINTED if event.get("log_format") == _PRINTED else MOST_A_SECOND
        self.most = other if self.about is None else 1
        self.began = now
        self.written = self.left_out = 0
        # not the whole event: its failure may hold a request's body
        self.event = {name: event.get(name) for name in ("log_level", "log_namespace", "log_format")}

    def summary(self) -> LogEvent:
        """Return an event that says how many were left out; the kind is named by its text without the values."""
        text = _VALUE.sub("…", str(self.event["log_format"] or "an event without a text"))
        return {
            "log_level": self.event["log_level"],
            "log_namespace": self.event["log_namespace"],
            "log_format": "Lines left out: {count}, like {text}",
            "count": self.left_out,
            "text": f"{text} ({self.about})" if isinstance(self.about, str) else text,
        }


class Repeats:
    """Admits at most one line a second of a marked kind, and `MOST_A_SECOND` of any other; safe in any thread.

    Of what is printed it admits `MOST_PRINTED`.

    Events at level debug are all admitted.

    Attributes:
        pending: whether events were left out that no line has told of yet.
    """

    def __init__(self) -> None:
        """Start without any kind."""
        self.pending = False
        # when `summaries` looks through the kinds
        self._due = 0.0
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kinds)

    def admit(self, event: LogEvent, now: float) -> list[LogEvent]:
        """Return the events to write: `event` unless it is left out, after summaries that are due.

        Args:
            event: the event.
            now: the time in seconds.
        """
        if event.get("log_level") is LogLevel.debug:
            return [event]
        name = (event.get("log_namespace"), event.get("log_format"), event.get(ONCE_A_SECOND))
        with self._lock:
            due: list[LogEvent] = []
            kind = self._kinds.get(name)
            if kind is None:
                kind = self._kinds[name] = _Kind(event, now)
                if len(self._kinds) > MAX_KINDS:
                    _, forgotten = self._kinds.popitem(last=False)
                    if forgotten.left_out:
                        due.append(forgotten.summary())
            if not 0 <= now - kind.began < WINDOW:
                kind.began, kind.written = now, 0
            if kind.written >= kind.most:
                kind.left_out += 1
                if not self.pending:
                    self.pending = True
                    self._due = now + WINDOW
            else:
                kind.written += 1
                self._kinds.move_to_end(name)
                left_out, kind.left_out = kind.left_out, 0
                due.append({**event, LEFT_OUT: left_out} if left_out else event)
        return [*self.summaries(now), *due] if self.pending else due

    def summaries(self, now: float, *, all_of_them: bool = False) -> list[LogEvent]:
        """Return events that say how many were left out of each kind whose second is over.

        Args:
            now: the time in seconds.
            all_of_them: whether to include kinds whose second is not over: the log ends.
        """
        if now < self._due and not all_of_them:
            return []
        with self._lock:
            self._due = now + WINDOW
            counted = [kind for kind in self._kinds.values() if kind.left_out]
            over = [kind for kind in counted if all_of_them or not 0 <= now - kind.began < WINDOW]
            self.pending = len(over) < len(counted)
            events = []
            for kind in over:
                events.append(kind.summary())
                kind.began, kind.written, kind.left_out = now, 1, 0
            return events
