"""A connection to Redis that reconnects when it is lost. Nothing waits for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.internet import ClientService
from twisted.internet.defer import CancelledError, Deferred, fail, inlineCallbacks
from twisted.internet.interfaces import IDelayedCall, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_vllm.config.redis_places import RedisPlace
from twisted_vllm.config.urls import RedisServer
from twisted_vllm.ratelimit.redis.client import ProtocolFactory, RedisUnavailable, endpoint_of, send
from twisted_vllm.ratelimit.redis.discovery import Finder, finder_of
from twisted_vllm.ratelimit.redis.scripts import Script

#: seconds between the first attempts to connect, and between later ones
RETRY_SECONDS, MAX_RETRY_SECONDS = 0.5, 3.0
#: seconds between questions who the master is, while a connection works
WATCH_SECONDS = 2.0
#: checks of a silent connection within its timeout; one more check without a reply closes it
CHECKS = 4
_VERSION_LENGTH = 40


@implementer(IStreamClientEndpoint)
class _Found:
    """The endpoint of the server that a `Finder` finds."""

    def __init__(self, reactor: Any, finder: Finder, factory: ProtocolFactory, timeout: float) -> None:
        self._reactor = reactor
        self._finder = finder
        self._factory = factory
        self._timeout = timeout

    @inlineCallbacks
    def connect(self, factory: IProtocolFactory) -> Any:
        """Find the server, and connect to it."""
        self._factory.server = yield self._finder.find()
        return (yield endpoint_of(self._reactor, self._factory.server, self._timeout).connect(factory))


class RedisConnection:
    """The connection. It sends each command at once, and fails at once if there is no connection.

    Where another server may take over, it asks for the master before each connection and every `WATCH_SECONDS`, and
    looks whether it is one.

    Args:
        reactor: Twisted's.
        place: where Redis is.
        timeout: how long Redis may be silent while a reply is due, in seconds; then the connection is closed and made
            again. The time runs from the last reply, and is measured in checks between which the reactor sends and
            reads, so that neither a long queue of commands nor a busy process counts as silence.
        connected: called when Redis has accepted a new connection.
        lost: called with the reason when a connection is lost or refused.
    """

    def __init__(
        self,
        reactor: Any,
        place: RedisPlace,
        timeout: float,
        connected: Callable[[], None],
        lost: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._timeout = timeout
        self._connected = connected
        self._lost = lost
        #: commands without a reply
        self._due = 0
        #: checks since the last reply
        self._silent_checks = 0
        self._next_check: IDelayedCall | None = None
        self._protocol: Any = None
        self._finder = finder_of(reactor, place, timeout)
        self._factory = ProtocolFactory(self._finder.login, lost)
        self._watch = LoopingCall(self._look)
        self._watch.clock = reactor
        self._looking: Deferred[RedisServer] | None = None
        self._service = ClientService(
            _Found(reactor, self._finder, self._factory, timeout),
            self._factory,
            retryPolicy=_delay,
            clock=reactor,
            prepareConnection=self._prepare,
        )

    def start(self) -> None:
        """Start to connect."""
        self._service.startService()
        self._service.whenConnected(failAfterFailures=1).addErrback(self._not_connected)

    def stop(self) -> Deferred[None]:
        """Close the connection; the Deferred fires when it is closed."""
        if self._watch.running:
            self._watch.stop()
        if self._looking is not None:
            self._looking.cancel()
        stopped: Deferred[None] = self._service.stopService()
        return stopped.addCallback(self._stopped)

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[str]) -> Deferred[str]:
        """Run a script; its source is sent only if Redis does not know it.

        Returns:
            A Deferred of its reply; it fails with `RedisUnavailable`.
        """
        protocol = self._protocol
        if protocol is None:
            return fail(RedisUnavailable("there is no connection", answered=True))

        def failed(failure: Failure) -> Any:
            if str(failure.value).startswith("NOSCRIPT") and protocol is self._protocol:
                return send(protocol, "EVAL", script.source, len(keys), *keys, *arguments).addErrback(misdirected)
            return misdirected(failure)

        def misdirected(failure: Failure) -> Failure:
            if protocol is self._protocol and _is_misdirected(failure.getErrorMessage()):
                self._lost(f"{self._factory.server.address} is not the master any more")
                self.drop()
            return failure

        if not self._due:
            self._check_later()
        self._due += 1
        sent = send(protocol, "EVALSHA", script.digest, len(keys), *keys, *arguments)
        return sent.addErrback(failed).addBoth(self._answered)

    @inlineCallbacks
    def describe(self) -> Any:
        """Return a Deferred of where the connection goes to: address, program, version, role.

        It fails with `RedisUnavailable`, also if that is a replica.
        """
        protocol = self._protocol
        if protocol is None:
            raise RedisUnavailable("there is no connection", answered=True)
        found = [self._factory.server.address]
        for command, read in ((("INFO", "server"), _version), (("ROLE",), _role)):
            try:
                found.append(read((yield send(protocol, *command))))
            except RedisUnavailable as error:
                if not error.answered:
                    raise
                # its user may not ask
                found.append(f"{command[0]} is refused")
        return ", ".join(each for each in found if each)

    def drop(self) -> None:
        """Close the connection; a new one is made."""
        if self._protocol is not None:
            self._protocol.transport.abortConnection()

    def _prepare(self, protocol: Any) -> None:
        # ClientService passes a wrapper; the Deferreds deliver the protocol itself. Until Redis accepts the connection,
        # only this deadline limits it.
        deadline = self._reactor.callLater(self._timeout, protocol.transport.abortConnection)

        def in_time(real: Any) -> Any:
            if deadline.active():
                deadline.cancel()
            return real

        accepted = protocol.whenConnected()
        if self._finder.moves:
            accepted.addCallback(self._check_role)
        accepted.addCallback(in_time).addCallback(self._accepted)
        protocol.whenDisconnected().addCallback(in_time).addCallback(self._disconnected)

    def _check_role(self, protocol: Any) -> Deferred[Any]:
        """Deliver the protocol only if it is that of a master."""

        def told(role: Any) -> Any:
            if isinstance(role, list) and role and role[0] == "master":
                return protocol
            self._lost(f"{self._factory.server.address} is no master, or not yet")
            protocol.transport.abortConnection()
            return Deferred()

        def refused(failure: Failure) -> Any:
            # A user who may not ask sees it with the first change: a replica answers READONLY.
            error: Any = failure.value
            return protocol if error.answered else Deferred()

        return send(protocol, "ROLE").addCallbacks(told, refused)

    def _look(self) -> Deferred[None]:
        """Leave a server that is not the master any more, though it may not know: it was cut off from the others."""

        def found(server: RedisServer) -> None:
            self._looking = None
            if self._protocol is not None and server.address != self._factory.server.address:
                self._lost(f"{server.address} is the master now, and not {self._factory.server.address}")
                self.drop()

        def not_found(failure: Failure) -> None:
            self._looking = None
            failure.trap(RedisUnavailable, CancelledError)

        self._looking = self._finder.find()
        return self._looking.addCallbacks(found, not_found)

    def _accepted(self, protocol: Any) -> None:
        self._protocol = protocol
        if self._finder.moves and not self._watch.running and self._service.running:
            self._watch.start(WATCH_SECONDS, now=False)
        self._connected()

    def _disconnected(self, protocol: Any) -> None:
        if protocol is self._protocol:
            self._protocol = None
            self._lost(f"the connection was lost ({self._factory.ended})")

    def _answered(self, result: Any) -> Any:
        self._due -= 1
        self._silent_checks = 0
        return result

    def _check_later(self) -> None:
        if self._next_check is None:
            self._next_check = self._reactor.callLater(self._timeout / CHECKS, self._check)

    def _check(self) -> None:
        """Close the connection after too many silent checks. A check counts once, however late it runs."""
        self._next_check = None
        if not self._due:
            return
        self._silent_checks += 1
        if self._silent_checks <= CHECKS:
            self._check_later()
        else:
            self._lost(f"it gave no answer for {self._timeout:g} seconds")
            self.drop()

    def _stopped(self, _: None) -> None:
        if self._next_check is not None:
            self._next_check.cancel()
            self._next_check = None

    def _not_connected(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._lost(failure.getErrorMessage())


def _delay(attempts: int) -> float:
    return min(RETRY_SECONDS * 1.5 ** min(max(attempts - 1, 0), 10), MAX_RETRY_SECONDS)


def _is_misdirected(message: str) -> bool:
    """Return whether a reply says that another server has the keys, or takes the changes."""
    return message.startswith(("MOVED ", "ASK ")) or "READONLY " in message


def _version(info: Any) -> str:
    """Return the program and its version. Valkey names Redis' version too, for clients that look at it."""
    if isinstance(info, dict):
        fields = info
    else:
        fields = dict(line.split(":", 1) for line in str(info).splitlines() if ":" in line)
    for program in ("valkey", "redis"):
        if version := fields.get(f"{program}_version"):
            return f"{program.capitalize()} {str(version)[:_VERSION_LENGTH]}"
    return ""


def _role(role: Any) -> str:
    match role:
        case ["master", _, list(replicas)]:
            return f"master with {len(replicas)} replica{'' if len(replicas) == 1 else 's'}"
        case ["slave", *_]:
            raise RedisUnavailable("it is a replica, which takes no changes: name its master", answered=False)
    return ""
