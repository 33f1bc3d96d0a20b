"""Streams of server-sent events, on a clock that the test turns."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from twisted_vllm.admin.web.events import LONGEST, MOST_OF_SESSION, MOST_STREAMS, EventStream, EventStreams
from twisted_vllm.errors import InvalidApiKey, TooManyStreams


class Request:
    """Keeps what a stream writes."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.finished = False
        self.producer: Any = None
        self._gone: Deferred[None] = Deferred()

    def notifyFinish(self) -> Deferred[None]:
        return self._gone

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        assert not self.finished
        self.written.append(data)

    def finish(self) -> None:
        self.finished = True
        self._gone.callback(None)

    def leave(self) -> None:
        self._gone.errback(ConnectionError())

    @property
    def messages(self) -> list[bytes]:
        return [each for each in self.written if each.startswith(b"data: ")]


class Stream:
    """A stream whose messages are numbers."""

    def __init__(self, interval: float = 2.0) -> None:
        self.clock, self.request = Clock(), Request()
        self.allowed: bool | Exception = True
        self.made = 0
        self.ended: list[EventStream] = []
        self.stream = EventStream(
            self.request,  # type: ignore[arg-type]  # the parts of a request that a stream uses
            self.clock,
            interval,
            self._produce,
            self._goes_on,
            self.ended.append,
        )

    async def _produce(self) -> int:
        self.made += 1
        return self.made

    async def _goes_on(self) -> bool:
        if isinstance(self.allowed, Exception):
            raise self.allowed
        return self.allowed


def test_messages_follow_each_other_until_the_client_leaves() -> None:
    made = Stream()
    made.stream.start()
    made.clock.pump([2.0, 2.0])
    assert made.request.messages == [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"]
    made.request.leave()
    assert made.ended == [made.stream]
    assert not made.clock.getDelayedCalls()


def test_a_client_that_reads_slowly_misses_messages_and_nothing_is_made_for_it() -> None:
    made = Stream()
    made.stream.start()
    made.request.producer.pauseProducing()
    made.clock.pump([2.0] * 5)
    assert made.made == 1
    made.request.producer.resumeProducing()
    made.clock.advance(2.0)
    assert made.request.messages == [b"data: 1\n\n", b"data: 2\n\n"]


@pytest.mark.parametrize("why", [False, InvalidApiKey("deleted")])
def test_it_ends_when_its_reader_may_not_see_it_any_more(why: bool | Exception) -> None:
    made = Stream()
    made.stream.start()
    made.allowed = why
    made.clock.advance(2.0)
    assert made.request.finished
    assert made.request.messages == [b"data: 1\n\n"]
    assert made.ended == [made.stream]
    assert not made.clock.getDelayedCalls()


def test_it_ends_after_a_while_so_that_the_browser_asks_anew() -> None:
    made = Stream()
    made.stream.start()
    made.clock.pump([2.0] * int(LONGEST / 2))
    assert made.request.finished
    assert made.made == LONGEST / 2


@pytest.mark.parametrize(("asked", "used"), [(0.0, 1.0), (60.0, 10.0)])
def test_the_interval_is_bounded(asked: float, used: float) -> None:
    made = Stream(asked)
    made.stream.start()
    made.clock.advance(used - 0.01)
    assert made.made == 1
    made.clock.advance(0.01)
    assert made.made == 2


def test_there_are_so_many_streams_of_a_session_and_of_all() -> None:
    streams = EventStreams()
    made = [Stream().stream for _ in range(MOST_STREAMS)]
    for number, each in enumerate(made):
        streams.check_room(f"session-{number // MOST_OF_SESSION}")
        streams.add(each, f"session-{number // MOST_OF_SESSION}")
        if (number + 1) % MOST_OF_SESSION == 0 and number + 1 < MOST_STREAMS:
            with pytest.raises(TooManyStreams):
                streams.check_room(f"session-{number // MOST_OF_SESSION}")
    with pytest.raises(TooManyStreams):
        streams.check_room("another")
    streams.remove(made[0])
    streams.check_room("another")
