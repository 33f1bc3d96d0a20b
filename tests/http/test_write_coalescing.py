"""Coalesced writes: the same bytes in the same order as Twisted's own, only sooner."""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import tcp
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from twisted_vllm.http.net.write_coalescing import (
    MAX_PENDING_BYTES,
    MAX_PENDING_CONNECTIONS,
    WriteCoalescer,
    unsent_bytes,
)


class Kernel:
    """A socket that takes as much as a test lets it.

    Attributes:
        room: bytes that it takes before it is full.
        taken: what it took.
        broken: the error that it answers with from now on.
    """

    def __init__(self, room: int = 1_000_000) -> None:
        self.room = room
        self.taken = b""
        self.sends = 0
        self.broken: int | None = None

    def send(self, data: bytes) -> int:
        self.sends += 1
        if self.broken is not None:
            raise OSError(self.broken, "broken")
        if not self.room:
            raise BlockingIOError(errno.EWOULDBLOCK, "full")
        piece = bytes(data[: self.room])
        self.room -= len(piece)
        self.taken += piece
        return len(piece)

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""

    def fileno(self) -> int:
        return 1_000_000

    def close(self) -> None:
        """Nothing is open."""

    def shutdown(self, how: int) -> None:
        self.broken = errno.EPIPE

    def getsockopt(self, *args: int) -> int:
        return 0

    def setsockopt(self, *args: object) -> None:
        """There are no options."""


class ClosedProtocol(Protocol):
    """Keeps why its connection ended."""

    reason: Failure | None = None

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008 - Twisted's signature
        self.reason = reason


def connection(kernel: Kernel) -> tuple[Any, MemoryReactorClock]:
    reactor: Any = MemoryReactorClock()
    made: Any = tcp.Connection(kernel, ClosedProtocol(), reactor)  # type: ignore[arg-type]  # a socket for this purpose
    made.connected = 1
    made.logstr = "test"
    return made, reactor


def writing(made: Any) -> tuple[WriteCoalescer, Callable[[bytes], None], Callable[[], None]]:
    """Return writes to `made` in a turn that goes on."""
    writes = WriteCoalescer()
    writes.hold()
    return writes, *writes.writer(made)


def be_writable(made: Any, reactor: MemoryReactorClock) -> None:
    """Do what the reactor does when the kernel has room."""
    if made in reactor.getWriters():
        reason = made.doWrite()
        if reason is not None:
            made.connectionLost(Failure(reason))


def test_what_the_kernel_takes_is_sent_in_one_piece_at_the_end_of_the_turn() -> None:
    kernel = Kernel()
    made, reactor = connection(kernel)
    writes, write, _ = writing(made)
    write(b"one ")
    write(b"two")
    assert (kernel.taken, unsent_bytes(made)) == (b"", 7)
    writes.release()
    assert (kernel.taken, kernel.sends) == (b"one two", 1)
    assert reactor.getWriters() == []
    assert unsent_bytes(made) == 0


def test_what_the_kernel_does_not_take_is_sent_when_it_has_room() -> None:
    kernel = Kernel(room=4)
    made, reactor = connection(kernel)
    writes, write, _ = writing(made)
    write(b"one two")
    writes.release()
    assert (kernel.taken, unsent_bytes(made)) == (b"one ", 3)
    assert reactor.getWriters() == [made]
    kernel.room = 100
    write(b" three")
    assert kernel.taken == b"one ", "nothing overtakes what is queued"
    be_writable(made, reactor)
    assert kernel.taken == b"one two three"
    be_writable(made, reactor)
    write(b" four")
    writes.release()
    assert kernel.taken == b"one two three four"


def test_pending_bytes_are_sent_before_the_close() -> None:
    kernel = Kernel()
    made, reactor = connection(kernel)
    writes, write, _ = writing(made)
    write(b"last words")
    made.loseConnection()
    writes.release()
    be_writable(made, reactor)
    assert kernel.taken == b"last words"


def test_pending_bytes_are_sent_at_once_on_request() -> None:
    kernel = Kernel()
    made, _ = connection(kernel)
    writes, write, send_now = writing(made)
    write(b"one")
    send_now()
    assert kernel.taken == b"one"
    writes.release()
    assert kernel.sends == 1


def test_outside_of_a_turn_it_is_sent_at_once() -> None:
    kernel = Kernel()
    made, reactor = connection(kernel)
    writes, write, _ = writing(made)
    writes.release()
    write(b"one")
    assert kernel.taken == b"one"
    assert reactor.getWriters() == []


def test_a_busy_turn_does_not_hold_back_the_first_of_many_connections() -> None:
    writes = WriteCoalescer()
    writes.hold()
    kernels = [Kernel() for _ in range(MAX_PENDING_CONNECTIONS)]
    for at, kernel in enumerate(kernels):
        made, _ = connection(kernel)
        assert kernels[0].taken == b"", (
            f"nothing is sent before the {MAX_PENDING_CONNECTIONS}th, and this is number {at}"
        )
        writes.writer(made)[0](b"one")
    assert [kernel.taken for kernel in kernels] == [b"one"] * MAX_PENDING_CONNECTIONS


def test_much_for_one_connection_does_not_wait_for_the_end_of_the_turn() -> None:
    kernel = Kernel(room=MAX_PENDING_BYTES * 2)
    made, _ = connection(kernel)
    _, write, _ = writing(made)
    write(bytes(MAX_PENDING_BYTES))
    write(b"more")
    assert len(kernel.taken) == MAX_PENDING_BYTES + 4


def test_a_full_kernel_takes_it_later() -> None:
    kernel = Kernel(room=0)
    made, reactor = connection(kernel)
    writes, write, _ = writing(made)
    write(b"one")
    writes.release()
    assert unsent_bytes(made) == 3
    kernel.room = 100
    be_writable(made, reactor)
    assert (kernel.taken, unsent_bytes(made)) == (b"one", 0)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("eager"), st.binary(max_size=20)),
            st.tuples(st.just("write"), st.binary(max_size=20)),
            st.tuples(st.just("sequence"), st.binary(max_size=20)),
            st.tuples(st.just("room"), st.integers(0, 30)),
            st.tuples(st.just("turn"), st.none()),
        ),
        max_size=25,
    )
)
def test_bytes_keep_the_order_of_the_calls(steps: list[tuple[str, Any]]) -> None:
    kernel = Kernel(room=0)
    made, reactor = connection(kernel)
    writes, write, _ = writing(made)
    expected = b""
    for what, value in steps:
        if what == "room":
            kernel.room = value
            be_writable(made, reactor)
            continue
        if what == "turn":
            writes.release()
            continue
        expected += value
        if what == "eager":
            write(value)
        elif what == "write":
            made.write(value)
        else:
            made.writeSequence([value[:3], value[3:]])
        assert expected.startswith(kernel.taken)
        assert len(kernel.taken) + unsent_bytes(made) == len(expected)
    kernel.room = 1_000_000
    writes.release()
    while made in reactor.getWriters():
        be_writable(made, reactor)
    assert kernel.taken == expected


@pytest.mark.parametrize("broken", [errno.EPIPE, errno.ECONNRESET])
def test_the_transport_detects_a_broken_socket(broken: int) -> None:
    kernel = Kernel()
    made, reactor = connection(kernel)
    writes, write, _ = writing(made)
    kernel.broken = broken
    write(b"one")
    writes.release()
    assert made.protocol.reason is None
    protocol = made.protocol
    be_writable(made, reactor)
    assert protocol.reason is not None


def test_nothing_is_sent_once_the_connection_was_cut() -> None:
    kernel = Kernel()
    made, reactor = connection(kernel)
    writes, write, _ = writing(made)
    write(b"one")
    writes.release()
    made.abortConnection()
    write(b"two")
    be_writable(made, reactor)
    reactor.advance(1)
    write(b"three")
    assert kernel.taken == b"one"


def test_nothing_is_sent_once_the_connection_was_lost() -> None:
    kernel = Kernel()
    made, _ = connection(kernel)
    writes, write, _ = writing(made)
    write(b"too late")
    made.connectionLost(Failure(ConnectionError()))
    write(b"late")
    writes.release()
    assert kernel.taken == b""


def test_nothing_is_sent_once_the_sending_half_is_closed() -> None:
    kernel = Kernel()
    made, reactor = connection(kernel)
    writes, write, _ = writing(made)
    made.loseWriteConnection()
    be_writable(made, reactor)
    write(b"late")
    writes.release()
    be_writable(made, reactor)
    assert (kernel.taken, unsent_bytes(made)) == (b"", 0)
    assert made.protocol.reason is None, "reading goes on"


def test_a_producer_is_paused_when_what_is_queued_is_much() -> None:
    class Producer:
        told = ""

        def pauseProducing(self) -> None:
            self.told += "pause "

        def resumeProducing(self) -> None:
            self.told += "resume "

        def stopProducing(self) -> None:
            self.told += "stop "

    kernel = Kernel(room=10)
    made, reactor = connection(kernel)
    producer = Producer()
    made.registerProducer(producer, True)
    writes, write, _ = writing(made)
    write(bytes(1_000_000))
    writes.release()
    assert producer.told == "pause "
    kernel.room = 10_000_000
    while made in reactor.getWriters():
        be_writable(made, reactor)
    assert producer.told == "pause resume "


def test_other_transports_are_written_to_directly() -> None:
    transport = StringTransport()
    WriteCoalescer().writer(transport)[0](b"one")
    assert transport.value() == b"one"
    assert unsent_bytes(transport) == 0


def test_a_connection_with_tls_is_never_bypassed() -> None:
    kernel = Kernel()
    made, _ = connection(kernel)
    made.TLS = True
    writes = WriteCoalescer()
    written: list[bytes] = []
    before: list[int] = []
    writes.before_send = lambda: before.append(len(written))
    writes.hold()
    made.write = written.append
    writes.writer(made)[0](b"one")
    # at once, in a turn as well, and after what must come first
    assert (written, before) == ([b"one"], [0])


def test_what_is_queued_below_tls_is_counted() -> None:
    kernel = Kernel(room=0)
    made, _ = connection(kernel)
    made.write(b"one")

    class Above:
        transport = made

    assert unsent_bytes(Above()) == 3


def test_twisted_s_private_queue_is_unchanged() -> None:
    descriptor: Any = FileDescriptor(MemoryReactorClock())
    descriptor.connected = 1
    assert (descriptor.dataBuffer, descriptor._tempDataBuffer, descriptor._tempDataLen) == (b"", [], 0)
    assert (descriptor.offset, descriptor.disconnecting) == (0, False)
    descriptor.write(b"one")
    assert (descriptor._tempDataBuffer, descriptor._tempDataLen) == ([b"one"], 3)
    made, _ = connection(Kernel())
    assert made._aborting is False


@pytest_twisted.inlineCallbacks
def test_a_slow_reader_gets_all_bytes_in_order(reactor: Any) -> Generator[Deferred[Any], Any, None]:
    whole = b"".join(b"%07d " % at for at in range(500_000))
    received: list[bytes] = []
    done: Deferred[None] = Deferred()

    class Server(Protocol):
        def connectionMade(self) -> None:
            assert self.transport is not None
            write, _ = WriteCoalescer().writer(self.transport)
            for at in range(0, len(whole), 65_536):
                piece = whole[at : at + 65_536]
                # now and then by the transport's own way
                (write if at % 3 else self.transport.write)(piece)
            self.transport.loseConnection()

    class Reader(Protocol):
        transport: Any

        def connectionMade(self) -> None:
            self.transport.pauseProducing()
            reactor.callLater(0, reactor.callLater, 0, self.transport.resumeProducing)

        def dataReceived(self, data: bytes) -> None:
            received.append(data)

        def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008 - Twisted's signature
            done.callback(None)

    port = reactor.listenTCP(0, Factory.forProtocol(Server), interface="127.0.0.1")
    yield connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port), Reader())
    yield done
    yield port.stopListening()
    assert b"".join(received) == whole


def test_what_is_called_at_the_end_of_a_turn_comes_before_the_turn_is_over() -> None:
    coalescer, called = WriteCoalescer(), list[str]()
    coalescer.at_send(lambda: called.append("outside"))
    assert called == ["outside"]
    coalescer.hold()
    coalescer.at_send(lambda: called.append("inside"))
    assert called == ["outside"]
    coalescer.release()
    assert called == ["outside", "inside"]


def test_a_long_turn_does_not_put_off_what_is_called_at_its_end() -> None:
    coalescer, called = WriteCoalescer(), list[int]()
    coalescer.hold()
    for number in range(MAX_PENDING_CONNECTIONS):
        coalescer.at_send(partial(called.append, number))
    assert called == list(range(MAX_PENDING_CONNECTIONS))


def test_each_turn_has_a_number_of_its_own() -> None:
    coalescer, turns = WriteCoalescer(), list[int]()
    for _ in range(3):
        assert coalescer.turn == 0
        coalescer.hold()
        turns.append(coalescer.turn)
        coalescer.release()
    assert len(set(turns)) == 3
    assert 0 not in turns
