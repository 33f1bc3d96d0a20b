"""One connection to Redis that is always wanted: made again when it is lost, and never waited for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.internet import ClientService
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IAddress, IDelayedCall, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure

from twisted_vllm.config.urls import RedisServer
from twisted_vllm.ratelimit.redis.scripts import Script

#: seconds between two attempts to connect
RETRY_SECONDS = 0.5
#: looks at a silent connection within its timeout; one more in vain ends it
LOOKS = 4


class RedisAway(Exception):
    """Redis did not do what it was asked to.

    Attributes:
        answered: whether it said so. Otherwise it may have done it, and the answer was lost.
    """

    def __init__(self, message: str, *, answered: bool) -> None:
        super().__init__(message)
        self.answered = answered


class _Factory(Factory):
    """Makes txredisapi's protocol. Its own factory gives up for good where it is not let in, as while Redis loads."""

    noisy = False
    isLazy = False

    def __init__(self, server: RedisServer, told: Callable[[str], None]) -> None:
        self._server = server
        self._told = told
        #: why the last connection ended
        self.ended = ""

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        # Imported here: txredisapi imports the reactor, which tap.py must be able to choose.
        from txredisapi import RedisProtocol

        password = self._server.password
        protocol: Any = RedisProtocol(
            charset=None,
            password=None if password is None else password.reveal(),
            dbid=self._server.database or None,
            convertNumbers=False,
            username=self._server.username,
        )
        protocol.factory = self
        connection_lost = protocol.connectionLost

        def lost(reason: Failure) -> None:
            # The protocol tells no reason, such as a certificate that nobody vouches for.
            self.ended = reason.getErrorMessage()
            connection_lost(reason)

        protocol.connectionLost = lost
        made: Protocol = protocol
        return made

    def stopTrying(self) -> None:
        """Go on trying: what the protocol takes for final may not be."""

    def connectionError(self, why: str) -> None:
        """Take the protocol's word for why it was not let in."""
        self._told(f"{why} ({self.ended})" if "Lost connection" in why else why)


class RedisConnection:
    """The connection. Commands are sent at once, one behind the other, and fail at once where there is none.

    Args:
        reactor: Twisted's.
        server: where Redis is.
        timeout: seconds for which Redis may give no answer while one is due; then the connection is closed, and another
            is made. The time runs from the last answer, and is counted in looks between which the reactor sends and
            reads: neither a long line of commands nor this process' own being busy is a reason to give up.
        connected: called with a new connection that was let in.
        lost: called when a connection is lost, or was not let in, with the reason.
    """

    def __init__(
        self,
        reactor: Any,
        server: RedisServer,
        timeout: float,
        connected: Callable[[], None],
        lost: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._timeout = timeout
        self._connected = connected
        self._lost = lost
        self._due = 0
        #: looks since the last answer that found none, while one was due
        self._silent_looks = 0
        self._watch: IDelayedCall | None = None
        self._protocol: Any = None
        endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, server.host, server.port, timeout=timeout)
        if server.tls:
            endpoint = wrapClientTLS(optionsForClientTLS(server.host), endpoint)
        self._factory = _Factory(server, lost)
        self._service = ClientService(
            endpoint,
            self._factory,
            retryPolicy=lambda attempts: RETRY_SECONDS,
            clock=reactor,
            prepareConnection=self._prepare,
        )

    def start(self) -> None:
        """Begin to connect."""
        self._service.startService()
        self._service.whenConnected(failAfterFailures=1).addErrback(self._not_connected)

    def stop(self) -> Deferred[None]:
        """Close the connection; the Deferred fires when it is closed."""
        stopped: Deferred[None] = self._service.stopService()
        return stopped.addCallback(self._stopped)

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[str]) -> Deferred[str]:
        """Run a script; its text is sent only where Redis does not know it.

        Returns:
            A Deferred of what it says, or of `RedisAway`.
        """
        protocol = self._protocol
        if protocol is None:
            return fail(RedisAway("there is no connection", answered=True))

        def failed(failure: Failure) -> Any:
            if str(failure.value).startswith("NOSCRIPT") and protocol is self._protocol:
                return _send(protocol, "EVAL", script.source, len(keys), *keys, *arguments).addErrback(_as_away)
            return _as_away(failure)

        if not self._due:
            self._look_later()
        self._due += 1
        sent = _send(protocol, "EVALSHA", script.digest, len(keys), *keys, *arguments)
        return sent.addErrback(failed).addBoth(self._heard)

    def drop(self) -> None:
        """Close the connection; another is made."""
        if self._protocol is not None:
            self._protocol.transport.abortConnection()

    def _prepare(self, protocol: Any) -> None:
        # This one is ClientService's stand-in; the Deferreds bring the protocol itself. Until that is let in, nothing
        # else looks after it.
        deadline = self._reactor.callLater(self._timeout, protocol.transport.abortConnection)

        def in_time(real: Any) -> Any:
            if deadline.active():
                deadline.cancel()
            return real

        protocol.whenConnected().addCallback(in_time).addCallback(self._let_in)
        protocol.whenDisconnected().addCallback(in_time).addCallback(self._left)

    def _let_in(self, protocol: Any) -> None:
        self._protocol = protocol
        self._connected()

    def _left(self, protocol: Any) -> None:
        if protocol is self._protocol:
            self._protocol = None
            self._lost(f"the connection was lost ({self._factory.ended})")

    def _heard(self, result: Any) -> Any:
        self._due -= 1
        self._silent_looks = 0
        return result

    def _look_later(self) -> None:
        if self._watch is None:
            self._watch = self._reactor.callLater(self._timeout / LOOKS, self._look)

    def _look(self) -> None:
        """Give up, if one look too many found nothing. However late it comes, a look counts once."""
        self._watch = None
        if not self._due:
            return
        self._silent_looks += 1
        if self._silent_looks <= LOOKS:
            self._look_later()
        else:
            self._lost(f"it gave no answer for {self._timeout:g} seconds")
            self.drop()

    def _stopped(self, _: None) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _not_connected(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._lost(failure.getErrorMessage())


def _send(protocol: Any, *command: object) -> Deferred[str]:
    sent: Deferred[str] = protocol.execute_command(*command)
    return sent.addCallback(_as_text)


def _as_text(answer: str | bytes) -> str:
    # With hiredis beside it, txredisapi gives the bytes.
    return answer.decode() if isinstance(answer, bytes) else answer


def _as_away(failure: Failure) -> Failure:
    from txredisapi import ResponseError

    return Failure(RedisAway(failure.getErrorMessage(), answered=failure.check(ResponseError) is not None))
