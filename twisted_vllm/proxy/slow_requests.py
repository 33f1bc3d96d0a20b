"""Finds requests that wait for long: for a place, for the first byte of an answer, or for the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.context import RequestContext
from twisted_vllm.http.net.bounded_turns import Cooperate
from twisted_vllm.http.server.connection import DownstreamConnection
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.proxy.in_flight import in_batches
from twisted_vllm.proxy.pending_step import PendingStep
from twisted_vllm.proxy.relay import Relay

#: seconds between two looks
INTERVAL = 1.0

#: what requests wait for
QUEUED, FIRST_BYTE, STALLED = "queued", "first_byte", "stalled"


class Slow(msgspec.Struct, frozen=True, gc=False):
    """Requests that wait for the same, and the one that has waited longest.

    Attributes:
        waits: `QUEUED`: for a server with room; `FIRST_BYTE`: for the answer to begin; `STALLED`: for it to go on.
        server: the server's name; for `QUEUED` the name of the model group, empty for the default server's.
        route: the route, ``/v1/chat/completions``; empty for one that vLLM does not have.
        count: how many there are.
        age: how long the oldest has waited, in seconds.
        request_id: the oldest request; likewise `model` and `key_name`, all without secrets.
    """

    waits: str
    server: str
    route: str
    count: int
    age: float
    request_id: str
    model: str
    key_name: str


class _Kind:
    """What waits for the same: how many, and the oldest."""

    __slots__ = ("age", "context", "count")

    def __init__(self) -> None:
        self.count = 0
        self.age = -1.0
        self.context: RequestContext


class SlowRequests:
    """Looks through the requests in flight once a second. The requests themselves do nothing for it.

    Requests for the same route of the same server are told together: when the first has waited long enough, and again
    each time as long, while any of them waits.
    """

    _log = Logger()

    def __init__(
        self,
        connections: Callable[[], Iterable[DownstreamConnection]],
        text: ClientText,
        cooperate: Cooperate,
        clock: Any,
        tell: Callable[[Slow], None],
        interval: float = INTERVAL,
    ) -> None:
        """Set up; nothing is looked at before `reconfigure`.

        Args:
            connections: returns the client connections.
            text: removes secrets from text of clients.
            cooperate: runs an iterator in steps.
            clock: the reactor.
            tell: gets what waits for long; it must not raise.
            interval: seconds between two looks.
        """
        self._connections = connections
        self._text = text
        self._cooperate = cooperate
        self._clock = clock
        self._tell = tell
        self._interval = interval
        self._threshold: float | None = None
        # the bytes that a client had of its answer at the last look, and since when it has no more
        self._progress: dict[GatewayRequest, tuple[int, float]] = {}
        # when each kind was told
        self._told: dict[tuple[str, str, str], float] = {}
        self._loop = LoopingCall(self.look)
        self._loop.clock = clock

    def reconfigure(self, threshold: float | None) -> None:
        """Look for requests that wait for `threshold` seconds; None looks no more."""
        self._threshold = threshold
        if threshold is not None and not self._loop.running:
            self._loop.start(self._interval, now=False)
        elif threshold is None:
            self.stop()

    def stop(self) -> None:
        """Look no more. Idempotent."""
        if self._loop.running:
            self._loop.stop()
        self._progress.clear()
        self._told.clear()

    def look(self) -> Deferred[Any]:
        """Look through the requests once; the Deferred fires when that is done, and never fails."""
        return self._cooperate(self._steps()).whenDone().addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("The requests in flight could not be looked through", failure)

    def _steps(self) -> Iterator[None]:
        found: dict[tuple[str, str, str], _Kind] = {}
        progress: dict[GatewayRequest, tuple[int, float]] = {}
        for requests in in_batches(self._connections()):
            now = self._clock.seconds()
            for request in requests:
                self._look_at(request, now, found, progress)
            yield
        self._progress = progress
        threshold = self._threshold
        if threshold is None:
            return
        now = self._clock.seconds()
        self._told = {kind: told for kind, told in self._told.items() if kind in found}
        for kind, waiting in found.items():
            told = self._told.get(kind)
            if told is None or not 0 <= now - told < threshold:
                self._told[kind] = now
                self._tell(self._slow(kind, waiting))

    def _look_at(
        self,
        request: GatewayRequest,
        now: float,
        found: dict[tuple[str, str, str], _Kind],
        progress: dict[GatewayRequest, tuple[int, float]],
    ) -> None:
        context, work = request.context, request.work
        if context.first_byte is not None:
            if context.head.protocols or not isinstance(work, Relay):
                # a tunnel may be silent
                return
            sent = request.sentLength
            before = self._progress.get(request)
            if before is None or before[0] != sent or work.paused:
                progress[request] = (sent, now)
                return
            progress[request] = before
            waits, since = STALLED, before[1]
        elif isinstance(work, PendingStep):
            waits, since = QUEUED, context.received or context.started
        elif isinstance(work, Relay):
            # a body that is still sent is no wait
            waits, since = FIRST_BYTE, max(context.attempt_began, context.sent_at or 0.0)
        else:
            return
        age = now - since
        threshold = self._threshold
        if threshold is None or age < threshold:
            return
        authorization, server = context.authorization, context.server
        assert authorization is not None
        place = context.group if waits == QUEUED else "" if server is None else server.name
        kind = found.setdefault((waits, place, authorization.route.name), _Kind())
        kind.count += 1
        if age > kind.age:
            kind.age, kind.context = age, context

    def _slow(self, kind: tuple[str, str, str], waiting: _Kind) -> Slow:
        context, text = waiting.context, self._text
        return Slow(
            *kind,
            count=waiting.count,
            age=waiting.age,
            request_id=text.request_id(context),
            model=text.model(context),
            key_name="" if context.principal is None else context.principal.name,
        )
