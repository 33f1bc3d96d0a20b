"""The end of the process: it drains at the first SIGTERM or SIGINT, and cuts what is left at the second."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from twisted_vllm.http.server.site import GatewaySite

#: what asks the process to end
SIGNALS = (signal.SIGTERM, signal.SIGINT)

GetHandler = Callable[[int], Any]
SetHandler = Callable[[int, Any], Any]


class StopSignals:
    """Tells of each signal that asks the process to end, in the reactor's own thread and turn.

    Twisted's own handlers take no notice of a second signal, and end the process by the first one when it is done, as
    if it had not ended in order. These take their place while the reactor runs.
    """

    def __init__(
        self,
        reactor: Any,
        get_handler: GetHandler = signal.getsignal,
        set_handler: SetHandler = signal.signal,
    ) -> None:
        """Make it; nothing is installed yet.

        Args:
            reactor: whose handlers are replaced; others, such as a debugger's, stay.
            get_handler: returns the handler of a signal.
            set_handler: sets it.
        """
        self._reactor = reactor
        self._get_handler = get_handler
        self._set_handler = set_handler
        self._replaced: dict[int, Any] = {}

    def install(self, told: Callable[[str], None]) -> None:
        """Call `told` with the name of each signal from when the reactor runs: its handlers come with that."""
        self._reactor.callWhenRunning(self._install, told)

    def _install(self, told: Callable[[str], None]) -> None:
        def received(number: int, frame: FrameType | None) -> None:
            self._reactor.callFromThread(told, signal.Signals(number).name)

        for number in SIGNALS:
            handler = self._get_handler(number)
            if getattr(handler, "__self__", None) is self._reactor:
                self._replaced[number] = handler
                self._set_handler(number, received)

    def restore(self) -> None:
        """Put back what was there."""
        replaced, self._replaced = self._replaced, {}
        for number, handler in replaced.items():
            self._set_handler(number, handler)


class Drain:
    """How the gateway ends: new clients are sent away, what runs may end, and what does not is cut.

    Attributes:
        begun: whether it has begun: the gateway is not ready for anything new.
    """

    _log = Logger()

    def __init__(self, reactor: Any, site: GatewaySite, delay: float, timeout: float) -> None:
        """Make it.

        Args:
            reactor: the clock, and what a first signal stops.
            site: the connections.
            delay: seconds in which the gateway serves on, so that those who ask for readiness learn of its end.
            timeout: seconds after these that running requests are given.
        """
        self.begun = False
        self._reactor = reactor
        self._site = site
        self._delay = delay
        self._timeout = timeout
        self._stopping = self._hurried = self._over = False
        self._serving_on: Deferred[None] | None = None

    def signalled(self, name: str) -> None:
        """Act on a signal of this name: stop the reactor, which has the drain begin; at the next one, hurry."""
        if self.begun or self._stopping:
            self._log.warn("Received {name} again: what still runs is cut", name=name)
            self.hurry()
        else:
            self._stopping = True
            self._log.info("Received {name}: draining; once more cuts what still runs", name=name)
            self._reactor.stop()

    def hurry(self) -> None:
        """Wait for nothing any more."""
        self._hurried = True
        if self._serving_on is not None:
            self._end_delay()
        elif self._site.draining and not self._over:
            self._cut()

    @inlineCallbacks
    def run(self, ports: list[IListeningPort]) -> Any:
        """Drain, and fire when no client is left.

        Args:
            ports: what is listened on; the list is emptied when that ends.
        """
        self.begun = True
        if self._delay and ports and not self._hurried:
            self._serving_on = Deferred()
            call = self._reactor.callLater(self._delay, self._end_delay)
            yield self._serving_on
            if call.active():
                call.cancel()
        closing = [maybeDeferred(port.stopListening) for port in ports]
        ports.clear()
        late = self._reactor.callLater(0 if self._hurried else self._timeout, self._cut)
        drained = self._site.drain()
        yield gatherResults(closing)
        yield drained
        self._over = True
        if late.active():
            late.cancel()

    def _end_delay(self) -> None:
        waiting, self._serving_on = self._serving_on, None
        if waiting is not None:
            waiting.callback(None)

    def _cut(self) -> None:
        count = self._site.abort()
        self._log.warn("Cut {count} connections that were still in work", count=count)
