"""txredisapi's protocol without its factory, and one question to one server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure

from twisted_vllm.config.urls import RedisServer


class RedisUnavailable(Exception):
    """A command failed.

    Attributes:
        answered: whether Redis replied with the failure. If not, it may have run the command, and the reply was lost.
    """

    def __init__(self, message: str, *, answered: bool) -> None:
        super().__init__(message)
        self.answered = answered


class ProtocolFactory(Factory):
    """Makes txredisapi's protocol.

    txredisapi's own factory gives up for good if Redis refuses the connection, for example while it loads.

    Attributes:
        server: how the next connection logs in.
        ended: why the last connection ended.
    """

    noisy = False
    isLazy = False

    def __init__(self, server: RedisServer, refused: Callable[[str], None]) -> None:
        """Make no connection yet; `refused` is told why a server does not accept one."""
        self.server = server
        self.ended = ""
        self._refused = refused

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """Return a protocol that logs in."""
        # Imported here: txredisapi imports the reactor, which tap.py must be able to choose.
        from txredisapi import RedisProtocol

        password = self.server.password
        protocol: Any = RedisProtocol(
            charset=None,
            password=None if password is None else password.reveal(),
            dbid=self.server.database or None,
            convertNumbers=False,
            username=self.server.username,
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


def endpoint_of(reactor: Any, server: RedisServer, timeout: float) -> IStreamClientEndpoint:
    """Return the endpoint of a server; connecting takes `timeout` seconds at most."""
    endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, server.host, server.port, timeout=timeout)
    return wrapClientTLS(optionsForClientTLS(server.host), endpoint) if server.tls else endpoint


def send(protocol: Any, *command: object) -> Deferred[Any]:
    """Send a command on a connection; the Deferred fails with `RedisUnavailable`."""
    sent: Deferred[Any] = protocol.execute_command(*command)
    return sent.addCallbacks(as_text, as_unavailable)


def ask(reactor: Any, server: RedisServer, timeout: float, *command: str) -> Deferred[Any]:
    """Send one command on a connection of its own.

    Returns:
        A Deferred of the reply; it fails with `RedisUnavailable`. Cancelling it closes the connection.
    """
    made: list[Any] = []

    def close(_: object = None) -> None:
        if made:
            made[0].transport.abortConnection()

    def cancel(_: object) -> None:
        connecting.cancel()
        close()

    result: Deferred[Any] = Deferred(cancel)

    def fail(reason: str, *, answered: bool = False) -> None:
        if not result.called:
            result.errback(RedisUnavailable(reason, answered=answered))

    factory = ProtocolFactory(server, fail)

    def connected(protocol: Any) -> None:
        made.append(protocol)
        if result.called:
            close()
            return
        protocol.whenDisconnected().addCallback(lambda _: fail(f"the connection was lost ({factory.ended})"))
        protocol.whenConnected().addCallback(lambda real: send(real, *command)).addCallbacks(
            lambda reply: None if result.called else result.callback(reply),
            lambda failure: None if result.called else result.errback(failure),
        )

    def out_of_time() -> None:
        fail(f"it gave no answer for {timeout:g} seconds")
        connecting.cancel()

    deadline = reactor.callLater(timeout, out_of_time)

    def ended(outcome: Any) -> Any:
        if deadline.active():
            deadline.cancel()
        close()
        return outcome

    result.addBoth(ended)
    connecting: Deferred[Any] = endpoint_of(reactor, server, timeout).connect(factory)
    connecting.addCallbacks(connected, lambda failure: fail(failure.getErrorMessage()))
    return result


def as_text(answer: Any) -> Any:
    """Return a reply with text in place of bytes, which txredisapi returns where hiredis is installed."""
    if isinstance(answer, list):
        return [as_text(each) for each in answer]
    return answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer


def as_unavailable(failure: Failure) -> Failure:
    """Return the same failure as `RedisUnavailable`."""
    from txredisapi import ResponseError

    return Failure(RedisUnavailable(failure.getErrorMessage(), answered=failure.check(ResponseError) is not None))
