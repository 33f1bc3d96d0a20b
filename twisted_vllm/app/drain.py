"""Graceful shutdown: the first SIGTERM or SIGINT drains, the second aborts the remaining requests."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

if TYPE_CHECKING:
    # the supervisor of several processes has no site, and does not pay for its modules
    from twisted_vllm.http.server.site import GatewaySite

#: the signals that stop the process
SIGNALS = (signal.SIGTERM, signal.SIGINT)

GetHandler = Callable[[int], Any]
SetHandler = Callable[[int, Any], Any]


class StopSignals:
    """Handles the signals that stop the process, in the reactor's thread.

    Twisted's handlers ignore a second signal, and end the process by the signal even after a clean stop, which an
    orchestrator may interpret as a crash. These replace them while the reactor runs.
    """

    def __init__(
        self,
        reactor: Any,
        get_handler: GetHandler = signal.getsignal,
        set_handler: SetHandler = signal.signal,
    ) -> None:
        """Create the handlers; nothing is installed yet.

        Args:
            reactor: its handlers are replaced; other handlers, such as a debugger's, stay.
            get_handler: returns the handler of a signal.
            set_handler: sets the handler of a signal.
        """
        self._reactor = reactor
        self._get_handler = get_handler
        self._set_handler = set_handler
        self._replaced: dict[int, Any] = {}

    def install(self, on_signal: Callable[[str], None]) -> None:
        """Call `on_signal` with the name of each signal, once the reactor runs and has installed its own handlers."""
        self._reactor.callWhenRunning(self._install, on_signal)

    def _install(self, on_signal: Callable[[str], None]) -> None:
        def received(number: int, frame: FrameType | None) -> None:
            self._reactor.callFromThread(on_signal, signal.Signals(number).name)

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
    """Drains the gateway: accepts no new clients, lets running requests complete, and aborts the rest after a timeout.

    Attributes:
        begun: whether the drain has begun; then the gateway is no longer ready.
        after_ports: called when the listening ports are closed.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        site: GatewaySite,
        delay: float,
        timeout: float,
        refuse_waiting: Callable[[], int] = lambda: 0,
    ) -> None:
        """Create the drain.

        Args:
            reactor: the clock; the first signal stops it.
            site: the client connections.
            delay: seconds to keep serving while not ready, so that load balancers notice.
            timeout: seconds after the delay for running requests to complete.
            refuse_waiting: refuses the requests that wait for a server; returns how many there were.
        """
        self.begun = False
        self.after_ports: Callable[[], None] = _nothing
        self._refuse_waiting = refuse_waiting
        self._reactor = reactor
        self._site = site
        self.reconfigure(delay, timeout)
        self._stopping = self._aborting = self._finished = False
        self._is_signalled = self._is_told = False
        self._delayed: Deferred[None] | None = None

    def reconfigure(self, delay: float, timeout: float) -> None:
        """Use other settings from now on; a drain that has begun keeps its own. The arguments are the constructor's."""
        self._delay = delay
        self._timeout = timeout

    def signalled(self, name: str) -> None:
        """Handle a signal: the first stops the reactor, which starts the drain; the next one aborts."""
        is_first, self._is_signalled = not self._is_signalled, True
        if self.begun or self._stopping:
            # a supervisor may have said so just before the signal, which is not the second then
            if not (is_first and self._is_told):
                self._log.warn("Received {name} again: what still runs is cut", name=name)
                self.abort()
        else:
            self._stopping = True
            self._log.info("Received {name}: draining; once more cuts what still runs", name=name)
            self._reactor.stop()

    def begin(self, reason: str, *, at_once: bool = False) -> None:
        """Stop the reactor, which starts the drain, unless it was stopped; the log says the reason.

        Args:
            reason: why.
            at_once: whether to serve nobody else, without the delay for load balancers.
        """
        self._is_told = True
        if not self._stopping and not self.begun:
            self._stopping = True
            if at_once:
                self._delay = 0.0
            self._log.info("Draining: {reason}", reason=reason)
            self._reactor.stop()

    def abort(self) -> None:
        """Abort the remaining connections without waiting."""
        self._aborting = True
        if self._delayed is not None:
            self._end_delay()
        elif self._site.draining and not self._finished:
            self._cut()

    @inlineCallbacks
    def run(self, ports: list[IListeningPort]) -> Any:
        """Drain, and fire when no client is left.

        Args:
            ports: the listening ports; the list is emptied when they are closed.
        """
        self.begun = True
        if self._delay and ports and not self._aborting:
            # who asks again connects anew, and elsewhere by then: nobody keeps a connection that is about to close
            self._site.leaving = True
            self._delayed = Deferred()
            call = self._reactor.callLater(self._delay, self._end_delay)
            yield self._delayed
            if call.active():
                call.cancel()
        closing = [maybeDeferred(port.stopListening) for port in ports]
        ports.clear()
        self.after_ports()
        timer = self._reactor.callLater(0 if self._aborting else self._timeout, self._cut)
        drained = self._site.drain()
        yield gatherResults(closing)
        yield drained
        self._finished = True
        if timer.active():
            timer.cancel()

    def _end_delay(self) -> None:
        waiting, self._delayed = self._delayed, None
        if waiting is not None:
            waiting.callback(None)

    def _cut(self) -> None:
        # before any place gets free: a server must not begin what is cut at once
        if self._refuse_waiting():
            # in the next turn, when the refusals were sent
            self._reactor.callLater(0, self._abort)
        else:
            self._abort()

    def _abort(self) -> None:
        if self._finished:
            return
        count = self._site.abort()
        self._log.warn("Cut {count} connections that were still in work", count=count)


def _nothing() -> None:
    """Do nothing."""
