"""Server-sent events (HTML §9.2) of JSON, for pages that show what changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Any, cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from zope.interface import implementer

from twisted_vllm.errors import GatewayError, TooManyStreams

#: streams of all sessions, and of one
MOST_STREAMS, MOST_OF_SESSION = 200, 10
#: seconds after which a stream ends: the browser asks again, and gets what a new version of the page's server says
LONGEST = 600.0
#: the least and most seconds between two messages: a shutdown waits for the next one
LEAST_INTERVAL, MOST_INTERVAL = 1.0, 10.0

_HEAD = b"retry: 3000\n\n"


@implementer(IPushProducer)
class EventStream:
    """Sends one JSON message after the other until the client leaves or may not have more.

    A client that reads slowly misses messages: nothing is kept for it.
    """

    _log = Logger()

    def __init__(
        self,
        request: IRequest,
        clock: IReactorTime,
        interval: float,
        produce: Callable[[], Awaitable[Any]],
        goes_on: Callable[[], Awaitable[bool]],
        ended: Callable[[EventStream], None],
    ) -> None:
        """Make it; `start` begins.

        Args:
            request: the request, whose headers are set.
            clock: the reactor.
            interval: seconds between two messages, from `LEAST_INTERVAL` to `MOST_INTERVAL`.
            produce: returns the next message, which is encoded as JSON, or `msgspec.Raw`.
            goes_on: returns whether the client may have another message.
            ended: called once it is over.
        """
        self._request = request
        self._clock = clock
        self._interval = min(max(interval, LEAST_INTERVAL), MOST_INTERVAL)
        self._produce = produce
        self._goes_on = goes_on
        self._ended = ended
        self._paused = False
        self._over = False
        self._next: Any = None
        self._until = clock.seconds() + LONGEST

    def start(self) -> None:
        """Send the first message now, and the others in turn."""
        cast(Any, self._request).notifyFinish().addBoth(lambda _: self._end())
        # what the type of IRequest does not say: the gateway's own request is a consumer
        cast(Any, self._request).registerProducer(self, True)
        self._request.write(_HEAD)
        self._turn()

    def pauseProducing(self) -> None:
        """The client does not read as fast as we write."""
        self._paused = True

    def resumeProducing(self) -> None:
        """It does again."""
        self._paused = False

    def stopProducing(self) -> None:
        """The client has gone."""
        self._end()

    def close(self) -> None:
        """End the stream in good order. Idempotent."""
        if not self._over:
            cast(Any, self._request).unregisterProducer()
            self._request.finish()
            self._end()

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        if self._next is not None and self._next.active():
            self._next.cancel()
        self._ended(self)

    def _turn(self) -> None:
        Deferred.fromCoroutine(self._send_one()).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        if not failure.check(GatewayError):
            self._log.failure("A stream of events of the console failed", failure)
        self.close()

    async def _send_one(self) -> None:
        if self._clock.seconds() >= self._until or not await self._goes_on():
            self.close()
            return
        if not self._paused:
            message = await self._produce()
            if self._over:
                return
            self._request.write(b"data: " + msgspec.json.encode(message) + b"\n\n")
        if not self._over:
            self._next = self._clock.callLater(self._interval, self._turn)


class EventStreams:
    """The streams that are open, of which there may be so many."""

    def __init__(self) -> None:
        self._open: dict[EventStream, Hashable] = {}

    def __len__(self) -> int:
        return len(self._open)

    def check_room(self, owner: Hashable) -> None:
        """Check that a session may have another stream.

        Raises:
            TooManyStreams: it has enough, or all sessions together have.
        """
        owned = sum(each == owner for each in self._open.values())
        if owned >= MOST_OF_SESSION or len(self._open) >= MOST_STREAMS:
            raise TooManyStreams(
                "Too many pages of the console are open that update themselves. Close some of them.", retry_after=30
            )

    def add(self, stream: EventStream, owner: Hashable) -> None:
        """Count a stream in; `remove` counts it out."""
        self._open[stream] = owner

    def remove(self, stream: EventStream) -> None:
        """Count a stream out."""
        self._open.pop(stream, None)
