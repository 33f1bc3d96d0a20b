"""Single requests of the gateway to a server, each on a connection of its own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import (
    ConnectingCancelledError,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    TimeoutError,
)
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.proxy.gateway_fakes import server
from twisted_vllm.errors import UpstreamProtocolError
from twisted_vllm.http.client.connect_errors import words_of
from twisted_vllm.http.client.parser import MAX_HEAD_BYTES
from twisted_vllm.upstreams.probe import GRACE, Answer, Prober

TIMEOUT = 2.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class Transport(StringTransport):
    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


@implementer(IStreamClientEndpoint)
class Endpoint:
    """Connects when the test says so."""

    def __init__(self) -> None:
        self.given_up = False
        self.connecting: Deferred[Any] = Deferred(self._cancelled)
        self.transport = Transport()

    def _cancelled(self, connecting: Deferred[Any]) -> None:
        self.given_up = True
        # as Twisted's endpoints do
        connecting.errback(ConnectingCancelledError(None))

    def connect(self, factory: Any) -> Deferred[Any]:
        self.factory = factory
        return self.connecting

    def accept(self) -> Any:
        protocol = self.factory.buildProtocol(None)
        protocol.makeConnection(self.transport)
        self.connecting.callback(protocol)
        return protocol


class Asked:
    """A question, and what came of it."""

    def __init__(self, api_key: str | None = None, base_path: bytes = b"", max_body: int = 0) -> None:
        self.clock, self.endpoint = Clock(), Endpoint()
        prober = Prober(lambda _: self.endpoint, self.clock)
        self.results: list[Any] = []
        self.asking = prober.get(
            server("gpu-1:8000", api_key, base_path), b"/health", timeout=TIMEOUT, max_body=max_body
        )
        self.asking.addBoth(self.results.append)

    @property
    def error(self) -> type[BaseException]:
        [failure] = self.results
        assert isinstance(failure, Failure)
        assert failure.type is not None
        return failure.type

    def over(self) -> None:
        """Nothing is left of it: no timer and no connection."""
        assert self.clock.getDelayedCalls() == []
        assert self.endpoint.transport.aborted


def test_it_asks_with_the_servers_own_key_and_keeps_no_connection() -> None:
    asked = Asked("sk-of-the-server", b"/prefix")
    protocol = asked.endpoint.accept()
    head, _, rest = asked.endpoint.transport.value().partition(b"\r\n\r\n")
    line, *headers = head.split(b"\r\n")
    assert (line, rest) == (b"GET /prefix/health HTTP/1.1", b"")
    assert set(headers) == {
        b"Host: gpu-1:8000",
        b"Accept: */*",
        b"Authorization: Bearer sk-of-the-server",
        b"Connection: close",
    }
    protocol.dataReceived(OK)
    assert asked.results == [Answer(200)]
    asked.over()


def test_what_is_wrong_is_told_in_words() -> None:
    told = []
    for error in (ConnectionRefusedError(), ConnectionDone()):
        asked = Asked()
        if isinstance(error, ConnectionDone):
            asked.endpoint.accept().connectionLost(Failure(error))
        else:
            asked.endpoint.connecting.errback(error)
        told.append(words_of(asked.results[0].value))
    asked = Asked()
    asked.endpoint.accept()
    asked.clock.pump([TIMEOUT, 1])
    told.append(words_of(asked.results[0].value))
    assert told == [
        "it refuses connections: nothing listens on its port 8000",
        "it closed the connection",
        f"it gave no answer within {TIMEOUT:g} s",
    ]


def test_the_words_of_one_connection_are_not_those_of_the_next() -> None:
    shared = ConnectionDone()
    for _ in range(2):
        asked = Asked()
        asked.endpoint.accept().connectionLost(Failure(shared))
        assert asked.results[0].value.__notes__ == ["it closed the connection"]


def test_a_server_that_answers_with_an_alert_speaks_tls() -> None:
    asked = Asked()
    asked.endpoint.accept().dataReceived(b"\x15\x03\x01\x00\x02\x02\x28")
    assert words_of(asked.results[0].value).startswith("it speaks TLS")
    asked.over()


def test_the_head_is_enough_where_the_body_is_not_asked_for() -> None:
    asked = Asked()
    asked.endpoint.accept().dataReceived(b"HTTP/1.1 503 No\r\nContent-Length: 1000000\r\n\r\n")
    assert asked.results == [Answer(503)]
    asked.over()


@given(
    answer=st.sampled_from(
        [
            OK,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        ]
    ),
    cut=st.integers(0, 100),
)
def test_a_body_is_read_in_any_pieces(answer: bytes, cut: int) -> None:
    asked = Asked(max_body=5)
    protocol = asked.endpoint.accept()
    for piece in filter(None, (answer[:cut], answer[cut:])):
        protocol.dataReceived(piece)
    assert asked.results == [Answer(200, b"hello")]
    asked.over()


def test_a_body_may_end_with_the_connection() -> None:
    asked = Asked(max_body=5)
    protocol = asked.endpoint.accept()
    protocol.dataReceived(b"HTTP/1.0 200 OK\r\n\r\nhello")
    assert asked.results == []
    protocol.connectionLost(Failure(ConnectionDone()))
    assert asked.results == [Answer(200, b"hello")]


@pytest.mark.parametrize(
    "answer",
    [OK, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"HTTP/1.0 200 OK\r\n\r\nhello"],
)
def test_a_body_over_the_limit_is_refused(answer: bytes) -> None:
    asked = Asked(max_body=4)
    asked.endpoint.accept().dataReceived(answer)
    assert asked.error is UpstreamProtocolError
    asked.over()


def test_a_head_without_end_is_refused() -> None:
    asked = Asked()
    protocol = asked.endpoint.accept()
    protocol.dataReceived(b"HTTP/1.1 200 OK\r\n")
    for _ in range(MAX_HEAD_BYTES // 1000 + 1):
        protocol.dataReceived(b"X: " + b"y" * 1000 + b"\r\n")
    assert asked.error is UpstreamProtocolError
    asked.over()


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9\r\n", b"\x15\x03\x03\x00\x02\x02\x16", b"HTTP/1.1 200\x00OK\r\n"]
)
def test_what_is_not_http_is_refused(answer: bytes) -> None:
    asked = Asked()
    asked.endpoint.accept().dataReceived(answer)
    assert asked.error is UpstreamProtocolError
    asked.over()


def test_a_connection_that_is_refused_or_lost_is_told_as_it_is() -> None:
    refused = Asked()
    refused.endpoint.connecting.errback(ConnectionRefusedError())
    assert refused.error is ConnectionRefusedError
    assert refused.clock.getDelayedCalls() == []
    lost = Asked()
    lost.endpoint.accept().connectionLost(Failure(ConnectionLost()))
    assert lost.error is ConnectionLost
    assert lost.clock.getDelayedCalls() == []


def test_a_server_that_does_not_accept_or_does_not_answer_is_given_up_in_time() -> None:
    silent = Asked()
    silent.clock.pump([TIMEOUT, GRACE])
    assert silent.error is TimeoutError
    assert silent.endpoint.given_up
    frozen = Asked()
    frozen.endpoint.accept()
    frozen.clock.advance(TIMEOUT - 0.1)
    assert frozen.results == []
    frozen.clock.pump([0.1, GRACE])
    assert frozen.error is TimeoutError
    frozen.over()


def test_an_answer_that_lay_there_while_the_gateway_was_busy_is_read() -> None:
    """In a turn of the reactor, timers come before input."""
    asked = Asked()
    protocol = asked.endpoint.accept()
    asked.clock.advance(60)
    protocol.dataReceived(OK)
    assert asked.results == [Answer(200)]
    asked.over()


def test_it_can_be_given_up_while_it_connects() -> None:
    asked = Asked()
    asked.asking.cancel()
    assert asked.error is CancelledError
    assert asked.endpoint.given_up
    assert asked.clock.getDelayedCalls() == []


def test_it_can_be_given_up() -> None:
    asked = Asked()
    protocol = asked.endpoint.accept()
    asked.asking.cancel()
    assert asked.error is CancelledError
    asked.over()
    protocol.dataReceived(OK)
    protocol.connectionLost(Failure(ConnectionDone()))
