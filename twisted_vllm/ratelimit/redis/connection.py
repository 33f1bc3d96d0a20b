"""A connection to Redis that reconnects when it is lost. Nothing waits for it."""

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

#: seconds between attempts to connect
RETRY_SECONDS = 0.5
#: checks of a silent connection within its timeout; one more check without a reply closes it
CHECKS = 4


class RedisUnavailable(Exception):
    """A command failed.

    Attributes:
        answered: whether Redis replied with the failure. If not, it may have run the command, and the reply was lost.
    """

    def __init__(self, message: str, *, answered: bool) -> None:
        super().__init__(message)
        self.answered = answered


class _Factory(Factory):
    """Makes txredisapi's protocol.

    txredisapi's own factory gives up for good if Redis refuses the connection, for example while it loads.
    """

    noisy = False
    isLazy = False

    def __init__(self, server: RedisServer, refused: Callable[[str], None]) -> None:
        self._server = server
        self._refused = refused
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
            # The protocol does not report the reason, such as a certificate that cannot be verified.
            self.ended = reason.getErrorMessage()
            connection_lost(reason)

        protocol.connectionLost = lost
        made: Protocol = protocol
        return made

    def stopTrying(self) -> None:
        """Do nothing, and so keep trying: what the protocol considers a final refusal may not be one."""

    def connectionError(self, why: str) -> None:
        """Report why Redis refused the connection."""
        self._refused(f"{why} ({self.ended})" if "Lost connection" in why else why)


class RedisConnection:
    """The connection. It sends each command at once, and fails at once if there is no connection.

    Args:
        reactor: Twisted's.
        server: where Redis is.
        timeout: how long Redis may be silent while a reply is due, in seconds; then the connection is closed and made
            again. The time runs from the last reply, and is measured in checks between which the reactor sends and
            reads, so that neither a long queue of commands nor a busy process counts as silence.
        connected: called when Redis has accepted a new connection.
        lost: called with the reason when a connection is lost or refused.
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
        #: commands without a reply
        self._due = 0
        #: checks since the last reply
        self._silent_checks = 0
        self._next_check: IDelayedCall | None = None
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
        """Start to connect."""
        self._service.startService()
        self._service.whenConnected(failAfterFailures=1).addErrback(self._not_connected)

    def stop(self) -> Deferred[None]:
        """Close the connection; the Deferred fires when it is closed."""
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
                sent_whole = _send(protocol, "EVAL", script.source, len(keys), *keys, *arguments)
                return sent_whole.addErrback(_as_unavailable)
            return _as_unavailable(failure)

        if not self._due:
            self._check_later()
        self._due += 1
        sent = _send(protocol, "EVALSHA", script.digest, len(keys), *keys, *arguments)
        return sent.addErrback(failed).addBoth(self._answered)

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

        protocol.whenConnected().addCallback(in_time).addCallback(self._accepted)
        protocol.whenDisconnected().addCallback(in_time).addCallback(self._disconnected)

    def _accepted(self, protocol: Any) -> None:
        self._protocol = protocol
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


def _send(protocol: Any, *command: object) -> Deferred[str]:
    sent: Deferred[str] = protocol.execute_command(*command)
    return sent.addCallback(_as_text)


def _as_text(answer: str | bytes) -> str:
    # Where hiredis is installed, txredisapi returns bytes.
    return answer.decode() if isinstance(answer, bytes) else answer


def _as_unavailable(failure: Failure) -> Failure:
    from txredisapi import ResponseError

    return Failure(RedisUnavailable(failure.getErrorMessage(), answered=failure.check(ResponseError) is not None))
