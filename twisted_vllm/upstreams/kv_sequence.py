"""Which batches of a server's KV events to apply, to ask for again, or to drop: each once, and in order.

ZMQ drops messages while a subscriber is not connected or too slow, and says nothing; the numbers of the batches show
it. A server with a replay endpoint sends its last batches again. Of one without, all that was known is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted_vllm.upstreams.kv_messages import KvEvent

#: batches that are kept while a replay runs, and the events in them. What does not fit is asked for again.
MAX_HELD, MAX_HELD_EVENTS = 256, 4_096


class BatchSequence:
    """The sequence of one server's batches."""

    __slots__ = ("_apply", "_clear", "_expected", "_held", "_held_events", "_replay", "replaying")

    def __init__(
        self,
        apply: Callable[[Sequence[KvEvent]], None],
        clear: Callable[[], None],
        replay: Callable[[int], None] | None,
    ) -> None:
        """Wait for the first batch.

        Args:
            apply: takes the events of the next batch.
            clear: forgets all that was applied.
            replay: asks the server for its batches from a number on; None if it has no replay endpoint.
        """
        #: whether the end of a replay is awaited
        self.replaying = False
        self._apply = apply
        self._clear = clear
        self._replay = replay
        #: None takes the next batch, whatever its number
        self._expected: int | None = None
        self._held: dict[int, Sequence[KvEvent]] = {}
        self._held_events = 0

    @property
    def current(self) -> bool:
        """Whether every batch since the first that was applied has been applied, up to the last that is known of."""
        return self._expected is not None and not self.replaying

    def connected(self) -> None:
        """Note that the connection stands."""
        if self._replay is not None and not self.replaying:
            self._ask(0 if self._expected is None else self._expected)

    def disconnected(self) -> None:
        """Note that the connection broke. The server may have been restarted, and begin again with number 0."""
        self._start_anew()

    def published(self, number: int, events: Sequence[KvEvent]) -> None:
        """Take a batch as it is published."""
        if self.replaying:
            self._hold(number, events)
        elif self._expected is None or (number > self._expected and self._replay is None):
            # what was missed may have removed blocks
            self._skip_to(number)
            self._next(events)
        elif number == self._expected:
            self._next(events)
        elif number > self._expected:
            self._hold(number, events)
            self._ask(self._expected)
        # one that the replay had already is dropped

    def replayed(self, number: int, events: Sequence[KvEvent]) -> None:
        """Take a batch of a replay."""
        if not self.replaying or self._expected is None or number < self._expected:
            return
        if number > self._expected:
            # the server keeps only its last batches
            self._skip_to(number)
        self._next(events)

    def replay_ended(self) -> None:
        """Note that the replay is complete: go on with what was published meanwhile."""
        if self.replaying:
            self._go_on()

    def replay_failed(self) -> None:
        """Note that no replay came: forget what was known, and go on with what is published."""
        if self.replaying:
            held = self._held
            self._start_anew()
            self._held = held
            self._go_on()

    def unreadable(self) -> None:
        """Note that a batch could not be read: nothing is known any more, until the next."""
        self._start_anew()

    def _go_on(self) -> None:
        self.replaying = False
        held, self._held, self._held_events = self._held, {}, 0
        for number in sorted(held):
            self.published(number, held[number])

    def _next(self, events: Sequence[KvEvent]) -> None:
        assert self._expected is not None
        self._expected += 1
        self._apply(events)

    def _hold(self, number: int, events: Sequence[KvEvent]) -> None:
        if len(self._held) < MAX_HELD and self._held_events + len(events) <= MAX_HELD_EVENTS:
            self._held[number] = events
            self._held_events += len(events)

    def _ask(self, number: int) -> None:
        assert self._replay is not None
        self._expected = number
        self.replaying = True
        self._replay(number)

    def _skip_to(self, number: int) -> None:
        self._expected = number
        self._clear()

    def _start_anew(self) -> None:
        self.replaying = False
        self._held, self._held_events = {}, 0
        self._expected = None
        self._clear()
