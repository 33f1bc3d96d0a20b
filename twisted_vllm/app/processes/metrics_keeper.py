"""The supervisor's part of the metrics: it collects those of all processes, and keeps what ended ones counted.

A sum over processes must not fall when one of them ends: Prometheus would take that for a counter that began anew. So
every answer goes through here, and the last one of a process that ended, or that does not answer, goes on counting. A
process that ends by itself tells its last figures; of one that was killed, those of the last collection count.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from twisted_vllm.observability.metrics.messages import Family, RawPart, add_ended
from twisted_vllm.workers.hub import Hub
from twisted_vllm.workers.messages import encode
from twisted_vllm.workers.processes import name_of

#: the supervisor asks a process for its families; a process asks the supervisor for those of all, and for numbers in
#: place of names; a process that ends tells its last families
OWN, ALL, NUMBERS, LAST = "metrics.own", "metrics.all", "metrics.numbers", "metrics.last"

#: seconds that a process has to tell its metrics
ANSWER_SECONDS = 1.0
#: seconds between two collections that nobody asked for: what a killed process counted later than that is lost
KEEP_SECONDS = 10.0
#: the most names that have a number; the one that was longest not asked for is forgotten
MOST_NUMBERS = 20_000

_families = msgspec.msgpack.Decoder(list[Family])


class Described(Protocol):
    """What the supervisor knows of itself: `SupervisorMetrics`."""

    def families(self, answered: int, ready: int) -> list[Family]:
        """Return its own families."""


class MetricsKeeper:
    """Collects the metrics of all processes."""

    _log = Logger()

    def __init__(self, hub: Hub, own: Described, reactor: Any) -> None:
        """Set up; `start` begins to collect.

        Args:
            hub: talks to the processes.
            own: the supervisor's own metrics.
            reactor: the clock.
        """
        self._hub = hub
        self._own = own
        self._last: dict[int, tuple[str, bytes]] = {}
        self._ended: list[Family] = []
        self._ended_raw = b""
        self._numbers: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._counts: dict[str, int] = {}
        self._collecting: list[Deferred[list[RawPart]]] | None = None
        self._collected_at = float("-inf")
        self._clock = reactor
        self._loop = LoopingCall(self._keep)
        self._loop.clock = reactor
        hub.answers(ALL, type(None), lambda question, asker: self.collect())
        hub.answers(NUMBERS, list[tuple[str, str]], lambda names, asker: self._numbered(names))
        hub.on(LAST, msgspec.Raw, self._told)
        hub.on_left(self._left)

    def start(self) -> None:
        """Collect now and then, also if nobody asks."""
        if not self._loop.running:
            self._loop.start(KEEP_SECONDS, now=False)

    def stop(self) -> None:
        """Collect no more."""
        if self._loop.running:
            self._loop.stop()

    def collect(self) -> Deferred[list[RawPart]]:
        """Return the families of all processes: the housekeeper's, the workers', the supervisor's, the ended ones'."""
        result: Deferred[list[RawPart]] = Deferred()
        if self._collecting is not None:
            self._collecting.append(result)
            return result
        self._collecting = [result]
        self._hub.ask_all(OWN, None, msgspec.Raw, ANSWER_SECONDS).addCallback(self._collected)
        return result

    def _collected(self, answers: dict[int, msgspec.Raw]) -> None:
        ready = self._hub.ready
        for number, raw in answers.items():
            if number in ready:
                self._last[number] = name_of(ready[number]), bytes(raw)
        self._collected_at = self._clock.seconds()
        # a new process of a slot before the one that it replaces
        order = sorted(ready, key=lambda number: (ready[number], -number))
        parts = [
            RawPart(self._last[number][0], msgspec.Raw(self._last[number][1]), number in answers)
            for number in order
            if number in self._last
        ]
        own = self._own.families(answered=len(answers.keys() & ready.keys()), ready=len(ready))
        parts.append(RawPart("supervisor", msgspec.Raw(encode(own))))
        if self._ended_raw:
            parts.append(RawPart("", msgspec.Raw(self._ended_raw), is_current=False))
        waiting, self._collecting = self._collecting or [], None
        for each in waiting:
            each.callback(parts)

    def _keep(self) -> None:
        if self._clock.seconds() - self._collected_at >= KEEP_SECONDS / 2:
            self.collect()

    def _told(self, families: msgspec.Raw, sender: int) -> None:
        slot = self._hub.ready.get(sender)
        if slot is not None:
            self._last[sender] = name_of(slot), bytes(families)

    def _left(self, number: int) -> None:
        _, raw = self._last.pop(number, ("", b""))
        if not raw:
            return
        try:
            families = _families.decode(raw)
        except msgspec.DecodeError as error:
            self._log.error("What an ended process counted is lost: {reason}", reason=str(error))
            return
        self._ended = add_ended(self._ended, families)
        self._ended_raw = encode(self._ended)

    def _numbered(self, names: Sequence[tuple[str, str]]) -> list[str]:
        """Return a number for each label and value, the same as before."""
        return [self._number(label, value) for label, value in names[:MOST_NUMBERS]]

    def _number(self, label: str, value: str) -> str:
        numbers, key = self._numbers, (label, value)
        number = numbers.get(key)
        if number is None:
            self._counts[label] = self._counts.get(label, 0) + 1
            number = numbers[key] = str(self._counts[label])
            if len(numbers) > MOST_NUMBERS:
                numbers.popitem(last=False)
        else:
            numbers.move_to_end(key)
        return number
