"""Single requests of the gateway itself, each on a connection of its own.

A check must tell what a new connection meets. It waits behind no queue and no limit of connections, takes none of the
pool's, and holds its descriptor no longer than its timeout.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError, ConnectionDone, TimeoutError
from twisted.internet.interfaces import IHandshakeListener, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_vllm.config.settings import Server
from twisted_vllm.errors import UpstreamProtocolError
from twisted_vllm.http.client.connect_errors import SPEAKS_TLS, TLS_ALERT, explain, with_words
from twisted_vllm.http.client.parser import ResponseParser
from twisted_vllm.http.header_cache import ResponseHeaderCache
from twisted_vllm.http.headers import write_header_lines
from twisted_vllm.upstreams.own_requests import own_headers

#: Seconds after a timeout in which an answer that has arrived is read.
GRACE = 0.01


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What a server answered: the status, and the body if it was asked for."""

    status: int
    body: bytes = b""


class Prober:
    """Sends GET requests to servers, with their own keys and TLS settings."""

    def __init__(
        self,
        endpoint_of: Callable[[Server], IStreamClientEndpoint],
        clock: Any,
        was_silent: Callable[[Server], None] | None = None,
    ) -> None:
        """Send nothing yet.

        Args:
            endpoint_of: Returns what connects to a server.
            clock: A provider of IReactorTime.
            was_silent: Called with a server that closed the connection without a byte.
        """
        self._was_silent = was_silent
        self._endpoint_of = endpoint_of
        self._clock = clock
        self._header_cache = ResponseHeaderCache()

    def get(self, server: Server, path: bytes, *, timeout: float, max_body: int = 0) -> Deferred[Answer]:
        """Ask a server.

        Args:
            server: The server.
            path: The path below its base path.
            timeout: Seconds for everything: the name, the connection, TLS and the answer.
            max_body: The maximum size of the answer's body in bytes. 0 waits for no body.

        Returns:
            The answer. It fails with what the connection met, with `TimeoutError` or with `UpstreamProtocolError`, each
            with a note for the operator (`connect_errors.words_of`). Cancelling it aborts the connection.
        """
        lines = write_header_lines([*own_headers(server, b"*/*"), (b"Connection", b"close")])
        request = b"GET %b%b HTTP/1.1\r\n%b\r\n" % (server.base_path, path, lines)
        factory = Factory.forProtocol(
            lambda: _Exchange(server, request, ResponseParser(self._header_cache), max_body, self._was_silent)
        )
        answer: Deferred[Any] = self._endpoint_of(server).connect(factory)
        answer.addCallbacks(lambda exchange: exchange.done, _not_connected, errbackArgs=(server,))
        return _limited(answer, timeout, self._clock)


def _not_connected(failure: Failure, server: Server) -> Failure:
    error = failure.value
    if error is not None and not failure.check(CancelledError, ConnectingCancelledError):
        with_words(error, explain(error, server))
    return failure


def _limited(answer: Deferred[Answer], timeout: float, clock: Any) -> Deferred[Answer]:
    """Cancel `answer` after a timeout, which it then fails with."""
    expired = False
    timer: Any = clock.callLater(timeout, lambda: expire())

    def expire() -> None:
        nonlocal timer
        # Timers come before input in a turn of the reactor. A gateway that was busy or stopped itself may have the
        # answer already.
        timer = clock.callLater(GRACE, give_up)

    def give_up() -> None:
        nonlocal expired
        expired = True
        answer.cancel()

    def ended(result: Answer | Failure) -> Answer | Failure:
        if timer.active():
            timer.cancel()
        if isinstance(result, Failure) and result.check(CancelledError, ConnectingCancelledError):
            # a connection is cancelled by a name of its own
            words = f"it gave no answer within {timeout:g} s"
            return Failure(with_words(TimeoutError(), words) if expired else CancelledError())
        return result

    answer.addBoth(ended)
    return answer


@implementer(IHandshakeListener)
class _Exchange(Protocol):
    """Sends a request, and reads the answer to it.

    Attributes:
        done: Fires with the answer.
        certificate_fault: What is wrong with the server's certificate.
        certificate_wanted: Whether the server asked for one.
    """

    transport: Any

    def __init__(
        self,
        server: Server,
        request: bytes,
        parser: ResponseParser,
        max_body: int,
        was_silent: Callable[[Server], None] | None,
    ) -> None:
        self.certificate_fault = ""
        self.certificate_wanted = False
        self._server = server
        self._handshaking = server.tls
        self._was_silent = was_silent
        self.done: Deferred[Answer] = Deferred(lambda _: self._abort())
        self._request = request
        self._parser = parser
        self._max_body = max_body
        self._body = bytearray()
        parser.expect(b"GET", None)

    def connectionMade(self) -> None:
        self.transport.write(self._request)

    def handshakeCompleted(self) -> None:
        self._handshaking = False

    def dataReceived(self, data: bytes) -> None:
        if self.done.called:
            return
        parser = self._parser
        if not parser.any_bytes and data.startswith(TLS_ALERT) and not self._server.tls:
            self._fail(with_words(UpstreamProtocolError("The server's answer is not HTTP."), SPEAKS_TLS))
            return
        well_formed = parser.feed(data)
        self._body += parser.take()
        if not well_formed:
            self._fail(UpstreamProtocolError("The server's answer is not well-formed HTTP."))
        elif parser.head_arrived and (parser.complete or not self._max_body):
            self._succeed()
        elif len(self._body) > self._max_body and parser.head_arrived:
            self._fail(UpstreamProtocolError(f"The server's answer is over {self._max_body} bytes."))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if self._parser.until_eof and reason.check(ConnectionDone):
            self._succeed()
        else:
            self.done.errback(Failure(self._explained(reason.value or ConnectionDone())))
            silent = not (self._server.tls or self._parser.any_bytes)
            if silent and self._was_silent is not None and reason.check(ConnectionDone):
                self._was_silent(self._server)

    def _explained(self, error: BaseException) -> BaseException:
        """Return an error of this connection alone, with words for the operator: others may have the same object."""
        silent = not self._parser.any_bytes
        words = explain(
            error,
            self._server,
            handshaking=self._handshaking,
            certificate=self.certificate_fault,
            wanted=self.certificate_wanted and silent,
        )
        return with_words(copy(error), words)

    def _succeed(self) -> None:
        body = bytes(self._body) if self._max_body else b""
        if len(body) > self._max_body:
            self._fail(UpstreamProtocolError(f"The server's answer is over {self._max_body} bytes."))
            return
        self._abort()
        self.done.callback(Answer(self._parser.head.status, body))

    def _fail(self, error: Exception) -> None:
        self._abort()
        self.done.errback(Failure(error))

    def _abort(self) -> None:
        self.transport.abortConnection()
