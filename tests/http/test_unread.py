"""Looking for bytes, or the end, in a socket without reading."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactorClock, StringTransport

from twisted_vllm.http.net.unread import HAS_POLL, look_into

pytestmark = pytest.mark.skipif(not HAS_POLL, reason="needs poll")


class Pair:
    """A connection of Twisted and the other end of its socket."""

    def __init__(self) -> None:
        self.mine, self.other = socket.socketpair()
        self.mine.setblocking(False)
        self.transport = Connection(self.mine, Protocol(), MemoryReactorClock())
        self.look = look_into(self.transport)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.mine.close()
    made.other.close()


def test_a_quiet_socket_has_nothing(pair: Pair) -> None:
    assert not pair.look(0)
    pair.mine.send(b"sent, not received")
    assert not pair.look(0)


def test_bytes_are_seen_and_stay_where_they_are(pair: Pair) -> None:
    pair.other.send(b"surplus")
    assert pair.look(0)
    assert pair.look(0)
    assert pair.mine.recv(100) == b"surplus"
    assert not pair.look(0)


@pytest.mark.parametrize("how", ["close", "shutdown"])
def test_the_end_is_seen(pair: Pair, how: str) -> None:
    if how == "close":
        pair.other.close()
    else:
        pair.other.shutdown(socket.SHUT_WR)
    assert pair.look(0)


def test_the_socket_below_tls_is_looked_into(pair: Pair) -> None:
    look = look_into(SimpleNamespace(transport=pair.transport))
    assert not look(0)
    pair.other.send(b"an alert")
    assert look(0)


def test_a_transport_without_a_socket_has_nothing() -> None:
    assert not look_into(StringTransport())(0)
