"""Finds out whether a server that was taken for one without TLS speaks it.

Python's servers, and so vLLM, close such a connection without a word.
"""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_vllm.config.settings import Server
from twisted_vllm.http.client.connect_errors import SPEAKS_TLS
from twisted_vllm.http.client.endpoints import Endpoints
from twisted_vllm.http.client.tls import ServerTlsCreator

#: seconds in which a server is asked once
INTERVAL = 60.0


@implementer(IHandshakeListener)
class TlsQuestion(Protocol):
    """Finds out whether the other side speaks TLS at all, whatever its certificate; sends nothing.

    Attributes:
        answer: fires with whether it does; cancelling it closes the connection.
    """

    transport: Any

    def __init__(self) -> None:
        """Ask, once it is connected."""
        self.answer: Deferred[bool] = Deferred(lambda _: self._close())

    def handshakeCompleted(self) -> None:
        """It does."""
        self._tell(True)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """An alert is TLS as well; anything else is not."""
        self._tell(isinstance(reason.value, SSL.Error) and "alert" in str(reason.value))

    def _tell(self, answer: bool) -> None:
        if not self.answer.called:
            self.answer.callback(answer)
        self._close()

    def _close(self) -> None:
        if self.transport is not None:
            self.transport.abortConnection()


class TlsQuestions:
    """Asks servers, and tells the operator. Nothing waits for the answer."""

    _log = Logger()

    def __init__(self, reactor: Any, endpoints: Endpoints) -> None:
        """Ask nothing yet.

        Args:
            reactor: a provider of IReactorTime.
            endpoints: connects to servers.
        """
        self._reactor = reactor
        self._endpoints = endpoints
        # when each was asked, in the reactor's seconds
        self._asked: dict[Server, float] = {}
        self._running: set[Deferred[None]] = set()

    def ask(self, server: Server) -> None:
        """Ask a server with http://, unless it was asked lately."""
        now = self._reactor.seconds()
        if self._asked.get(server, -INTERVAL) + INTERVAL > now:
            return
        self._asked[server] = now
        asking = self.speaks_tls(server).addCallback(self._told, server)
        self._running.add(asking)
        asking.addBoth(lambda _: self._running.discard(asking))

    def speaks_tls(self, server: Server) -> Deferred[bool]:
        """Return whether a server speaks TLS; False if it cannot be asked."""
        seconds = server.timeouts.connect
        question = TlsQuestion()
        factory = Factory.forProtocol(lambda: question)
        factory.noisy = False
        creator = ServerTlsCreator(CertificateOptions().getContext(), server.host, verify=False)
        connecting: Deferred[Any] = self._endpoints.of(server).connect(TLSMemoryBIOFactory(creator, True, factory))
        connecting.addTimeout(seconds, self._reactor)
        asked: Deferred[bool] = connecting.addCallback(lambda _: question.answer.addTimeout(seconds, self._reactor))
        # why it cannot be asked is why a request cannot be sent either, and the next one tells
        return asked.addErrback(lambda _: False)

    def forget(self, server: Server) -> None:
        """Forget a server that is not used any more."""
        self._asked.pop(server, None)

    def close(self) -> None:
        """Wait for no answer."""
        for asking in list(self._running):
            asking.cancel()

    def _told(self, speaks_tls: bool, server: Server) -> None:
        if speaks_tls:
            self._log.warn("Lost {server}: {reason}", server=server.name, reason=SPEAKS_TLS)
