"""Stopping: the first SIGTERM or SIGINT drains, the second cuts the requests that are left."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from twisted_vllm.http.server.site import GatewaySite

#: the signals that stop the process
SIGNALS = (signal.SIGTERM, signal.SIGINT)

GetHandler = Callable[[int], Any]
SetHandler = Callable[[int, Any], Any]


class StopSignals:
    """Handles the signals that stop the process, in the reactor's thread.

    Twisted's handlers ignore a second signal, and end the process by the signal even after a clean stop, which an
    orchestrator may take for a crash. These replace them while the reactor runs.
    """

    def __init__(
        self,
        reactor: Any,
        get_handler: GetHandler = signal.getsignal,
        set_handler: SetHandler = signal.signal,
    ) -> None:
        """Make the handlers; nothing is installed yet.

        Args:
            reactor: its handlers are replaced; others, such as a debugger's, stay.
            get_handler: returns the handler of a signal.
            set_handler: sets it.
        """
        self._reactor = reactor
        self._get_handler = get_handler
        self._set_handler = set_handler
        self._replaced: dict[int, Any] = {}

    def install(self, told: Callable[[str], None]) -> None:
        """Call `told` with the name of each signal, once the reactor runs and has installed its own handlers."""
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
        """Restore the reactor's handlers."""
        replaced, self._replaced = self._replaced, {}
        for number, handler in replaced.items():
            self._set_handler(number, handler)


class Drain:
    """Drains the gateway: accepts no new clients, lets running requests end, and cuts those that do not.

    Attributes:
        begun: whether it has begun; from then on the gateway is not ready.
    """

    _log = Logger()

    def __init__(self, reactor: Any, site: GatewaySite, delay: float, timeout: float) -> None:
        """Make the drain.

        Args:
            reactor: the clock, and what the first signal stops.
            site: the connections.
            delay: seconds in which the gateway still serves, so that load balancers notice that it is not ready.
            timeout: seconds after the delay in which running requests may end.
        """
        self.begun = False
        self._reactor = reactor
        self._site = site
        self._delay = delay
        self._timeout = timeout
        self._stopping = self._hurried = self._over = False
        self._serving_on: Deferred[None] | None = None

    def signalled(self, name: str) -> None:
        """Handle a signal: the first stops the reactor, which begins the drain; the next one cuts."""
        if self.begun or self._stopping:
            self._log.warn("Received {name} again: what still runs is cut", name=name)
            self.hurry()
        else:
            self._stopping = True
            self._log.info("Received {name}: draining; once more cuts what still runs", name=name)
            self._reactor.stop()

    def hurry(self) -> None:
        """Cut what is left, without waiting."""
        self._hurried = True
        if self._serving_on is not None:
            self._end_delay()
        elif self._site.draining and not self._over:
            self._cut()

    @inlineCallbacks
    def run(self, ports: list[IListeningPort]) -> Any:
        """Drain, and fire when no client is left.

        Args:
            ports: the listening ports; the list is emptied when they are closed.
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
