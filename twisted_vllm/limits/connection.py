"""One connection to Redis that is always wanted: made again when it is lost, and never waited for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.internet import ClientService
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure

from twisted_vllm.config.redis import RedisServer
from twisted_vllm.limits.scripts import Script

#: seconds between two attempts to connect
RETRY_SECONDS = 0.5


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

    def __init__(self, server: RedisServer, timeout: float, told: Callable[[str], None]) -> None:
        self._server = server
        self._timeout = timeout
        self._told = told

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        # Imported here: txredisapi imports the reactor, which tap.py must be able to choose.
        from txredisapi import RedisProtocol

        password = self._server.password
        protocol: Protocol = RedisProtocol(
            charset=None,
            replyTimeout=self._timeout,
            password=None if password is None else password.reveal(),
            dbid=self._server.database or None,
            convertNumbers=False,
            username=self._server.username,
        )
        protocol.factory = self
        return protocol

    def stopTrying(self) -> None:
        """Go on trying: what the protocol takes for final may not be."""

    def connectionError(self, why: str) -> None:
        """Take the protocol's word for why it was not let in."""
        self._told(why)


class RedisConnection:
    """The connection. Commands are sent at once, one behind the other, and fail at once where there is none.

    Args:
        reactor: Twisted's.
        server: where Redis is.
        timeout: seconds that an answer and a connection may take. A connection on which one took longer is closed.
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
        self._connected = connected
        self._lost = lost
        self._protocol: Any = None
        endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, server.host, server.port, timeout=timeout)
        if server.tls:
            endpoint = wrapClientTLS(optionsForClientTLS(server.host), endpoint)
        self._service = ClientService(
            endpoint,
            _Factory(server, timeout, lost),
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
        return stopped

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

        return _send(protocol, "EVALSHA", script.digest, len(keys), *keys, *arguments).addErrback(failed)

    def drop(self) -> None:
        """Close the connection; another is made."""
        if self._protocol is not None:
            self._protocol.transport.abortConnection()

    def _prepare(self, protocol: Any) -> None:
        # This one is ClientService's stand-in; the Deferreds bring the protocol itself.
        protocol.whenConnected().addCallback(self._let_in)
        protocol.whenDisconnected().addCallback(self._left)

    def _let_in(self, protocol: Any) -> None:
        self._protocol = protocol
        self._connected()

    def _left(self, protocol: Any) -> None:
        if protocol is self._protocol:
            self._protocol = None
            self._lost("the connection was lost")

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
