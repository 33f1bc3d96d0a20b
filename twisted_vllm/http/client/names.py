"""Resolves the names of servers: in bounded time, and again while they are used."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError, succeed
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IAddress, IDelayedCall, IHostResolution, IResolutionReceiver
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_vllm.http.client.addresses import MAX_ADDRESSES, Addresses
from twisted_vllm.http.net.deadlines import DeadlineSweeper

#: seconds after which a name is resolved again; the system's resolver does not tell for how long an answer is valid
FRESH = 30.0
#: the same after the resolver failed
RETRY = 5.0
#: seconds that a new connection waits for the resolver if the addresses are known and older than `FRESH`
PATIENCE = 1.0
#: seconds after which no answer of the resolver is expected any more
GIVE_UP = 20.0
#: names to resolve at a time: each may hold a thread of the reactor's pool
MAX_RESOLUTIONS = 4


class Resolver:
    """Asks the reactor's resolver for few names at a time, and does not wait for ever."""

    def __init__(self, reactor: Any) -> None:
        """Create it; `reactor` provides IReactorPluggableNameResolver and IReactorTime."""
        self._reactor = reactor
        self._timers: set[IDelayedCall] = set()
        self._waiting: deque[tuple[str, int, Deferred[tuple[str, ...]]]] = deque()

    def resolve(self, host: str, port: int) -> Deferred[tuple[str, ...]]:
        """Return a Deferred of a name's addresses; it fails if there is none, or no answer."""
        result: Deferred[tuple[str, ...]] = Deferred()
        self._waiting.append((host, port, result))
        self._go_on()
        return result

    def _go_on(self) -> None:
        while self._waiting and len(self._timers) < MAX_RESOLUTIONS:
            host, port, result = self._waiting.popleft()
            receiver = _Receiver(host)
            timer = self._reactor.callLater(GIVE_UP, receiver.give_up)
            self._timers.add(timer)
            receiver.done.addBoth(partial(self._ended, timer, result))
            try:
                self._reactor.nameResolver.resolveHostName(receiver, host, portNumber=port)
            except Exception:
                receiver.fail(Failure())

    def close(self) -> None:
        """Wait for nothing any more: the Deferreds do not fire."""
        self._waiting.clear()
        timers, self._timers = self._timers, set()
        for timer in timers:
            timer.cancel()

    def _ended(
        self, timer: IDelayedCall, result: Deferred[tuple[str, ...]], outcome: tuple[str, ...] | Failure
    ) -> None:
        if timer not in self._timers:
            return
        self._timers.discard(timer)
        if timer.active():
            timer.cancel()
        result.callback(outcome)
        self._go_on()


@implementer(IResolutionReceiver)
class _Receiver:
    """Collects the addresses of one name."""

    def __init__(self, host: str) -> None:
        self.done: Deferred[tuple[str, ...]] = Deferred()
        self._host = host
        self._found: list[str] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """Begin."""

    def addressResolved(self, address: IAddress) -> None:
        """Add an address."""
        host = getattr(address, "host", None)
        if isinstance(host, str) and len(self._found) < MAX_ADDRESSES:
            self._found.append(host)

    def resolutionComplete(self) -> None:
        """End."""
        if self._found:
            if not self.done.called:
                self.done.callback(tuple(self._found))
        else:
            self.fail(Failure(DNSLookupError(f"no address of {self._host}")))

    def give_up(self) -> None:
        """Wait no longer; a late answer is dropped."""
        self.fail(Failure(DNSLookupError(f"the resolver gave no answer within {GIVE_UP:g} s")))

    def fail(self, failure: Failure) -> None:
        if not self.done.called:
            self.done.errback(failure)


class ResolvedName:
    """The name of one server. It is resolved when it is needed, and every `FRESH` seconds while it is in use.

    Attributes:
        addresses: its addresses; the last ones that are known, if it cannot be resolved.
        deadline: when `expired` is called, in the reactor's seconds.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, deadlines: DeadlineSweeper, resolver: Resolver, host: str, port: int, changed: Any
    ) -> None:
        """Create it; nothing is resolved yet.

        Args:
            reactor: a provider of IReactorTime.
            deadlines: checks the deadline while the name is in use.
            resolver: resolves it.
            host: the name.
            port: the TCP port, for the resolver.
            changed: called with the addresses that are gone when the addresses have changed.
        """
        self.addresses = Addresses()
        self.deadline: float | None = None
        self._reactor = reactor
        self._deadlines = deadlines
        self._resolver = resolver
        self._host = host
        self._port = port
        self._changed = changed
        self._fresh_until = 0.0
        self._resolving = False
        self._overdue = self._failing = False
        self._waiting: list[Deferred[None]] = []
        self._is_used = self._is_forgotten = False

    def ready(self) -> Deferred[None]:
        """Return a Deferred that fires when `addresses` can be used; it fails if none was ever known."""
        known = bool(self.addresses.known)
        if known and self._deadlines.seconds() < self._fresh_until:
            return succeed(None)
        self.resolve()
        if not self._resolving or (known and (self._overdue or self._failing)):
            return succeed(None) if self.addresses.known else self._not_resolved()
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        if known:
            waiting.addTimeout(PATIENCE, self._reactor).addErrback(self._go_on_with_known)
        return waiting

    def resolve(self) -> None:
        """Resolve it now, unless that is going on."""
        if self._resolving:
            return
        self._resolving = True
        self._resolver.resolve(self._host, self._port).addCallbacks(self._resolved, self._failed).addErrback(
            lambda failure: self._log.failure("The addresses of {host} could not be used", failure, host=self._host)
        )

    def use(self, is_used: bool) -> None:
        """Say whether there are connections, and so whether to resolve it again and again."""
        if is_used == self._is_used or self._is_forgotten:
            return
        self._is_used = is_used
        if is_used:
            self.deadline = self._fresh_until
            self._deadlines.add(self)
        else:
            self.deadline = None
            self._deadlines.discard(self)

    def forget(self) -> None:
        """Resolve it no more: its server is not used any more, though connections may last."""
        self.use(False)
        self._is_forgotten = True

    def expired(self) -> None:
        """Resolve it again."""
        self.deadline = None
        self.resolve()

    def _not_resolved(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        waiting.errback(DNSLookupError(f"no address of {self._host}"))
        return waiting

    def _resolved(self, found: tuple[str, ...]) -> None:
        before = frozenset(self.addresses.known)
        gone = self.addresses.update(found)
        if self._failing or self._overdue:
            self._log.info("{host} is resolved again", host=self._host)
        self._ended(FRESH)
        self._failing = self._overdue = False
        if frozenset(self.addresses.known) != before:
            if before:
                self._log.info(
                    "{host} has other addresses now: {found}", host=self._host, found=", ".join(self.addresses.known)
                )
            if not self._is_forgotten:
                self._changed(gone)
        self._fire(None)

    def _failed(self, failure: Failure) -> None:
        self._ended(RETRY)
        if not self.addresses.known:
            self._fire(failure)
            return
        if not self._failing:
            self._failing = True
            self._log.warn(
                "{host} cannot be resolved ({reason}): its last known addresses are used, {known}",
                host=self._host,
                reason=failure.getErrorMessage(),
                known=", ".join(self.addresses.known),
                once_a_second=self._host,
            )
        self._fire(None)

    def _ended(self, seconds: float) -> None:
        self._resolving = False
        self._fresh_until = self._deadlines.seconds() + seconds
        if self._is_used:
            self.deadline = self._fresh_until

    def _fire(self, outcome: Failure | None) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.called:
                each.callback(outcome)

    def _go_on_with_known(self, failure: Failure) -> None:
        # anything else is that the request was given up
        failure.trap(TimeoutError)
        if self._resolving and not self._overdue:
            self._overdue = True
            self._log.warn(
                "The resolver gives no answer for {host}: its last known addresses are used, {known}",
                host=self._host,
                known=", ".join(self.addresses.known),
                once_a_second=self._host,
            )
