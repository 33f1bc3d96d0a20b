"""What every blocking destination does: it takes batches in order, says in words why it cannot, and goes on after."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from zope.interface.verify import verifyObject

from tests.certificates import Authority
from twisted_vllm.config.sinks import SyslogAddress
from twisted_vllm.observability.delivery.interfaces import DeliveryFailed, IBlockingDestination
from twisted_vllm.observability.logging.sinks import RotatedFile
from twisted_vllm.observability.sinks.sockets import JournalDestination, SyslogDestination
from twisted_vllm.observability.sinks.written import LineDestination

BATCH = [b"one", b'{"two": "\xc3\xa9"}', b"three"]


class Target:
    """What a destination delivers to; it can be away."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "target"
        self.received: list[bytes] = []

    def destination(self) -> Any:
        raise NotImplementedError

    def come(self) -> None: ...

    def go(self) -> None: ...

    def wait_for(self, count: int) -> list[bytes]:
        return self.received


class FileTarget(Target):
    def destination(self) -> Any:
        return LineDestination(lambda: RotatedFile(str(self.path / "a.log"), rotate_bytes=1000, keep_files=1))

    def come(self) -> None:
        self.path.mkdir(exist_ok=True)

    def wait_for(self, count: int) -> list[bytes]:
        return (self.path / "a.log").read_bytes().splitlines()


class DatagramTarget(Target):
    """A socket for datagrams; it also reads files that come as descriptors."""

    server: socket.socket | None = None

    def come(self) -> None:
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.server.settimeout(10)
        self.server.bind(str(self.path))

    def go(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None
            self.path.unlink()

    def wait_for(self, count: int) -> list[bytes]:
        assert self.server is not None
        while len(self.received) < count:
            data, descriptors, _, _ = socket.recv_fds(self.server, 1 << 20, 1)
            for descriptor in descriptors:
                data = os.pread(descriptor, 1 << 24, 0)
                os.close(descriptor)
            self.received.append(data)
        return self.received


class UnixSyslog(DatagramTarget):
    def destination(self) -> Any:
        return SyslogDestination(SyslogAddress("unix", str(self.path)))


class Journal(DatagramTarget):
    def destination(self) -> Any:
        return JournalDestination(str(self.path))


class UdpSyslog(DatagramTarget):
    port = 0

    def destination(self) -> Any:
        return SyslogDestination(SyslogAddress("udp", "127.0.0.1", self.port))

    def come(self) -> None:
        self.server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.server.settimeout(10)
        self.server.bind(("127.0.0.1", self.port))
        self.port = self.server.getsockname()[1]

    def go(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None


class TcpSyslog(Target):
    """Reads messages with their lengths before them (RFC 6587)."""

    port = 0
    tls = False
    server: socket.socket | None = None

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.arrived = threading.Condition()
        self.connections: list[socket.socket] = []
        self.thread: threading.Thread | None = None

    def destination(self) -> Any:
        kind = "tls" if self.tls else "tcp"
        return SyslogDestination(SyslogAddress(kind, "127.0.0.1", self.port), str(self.directory / "authority.pem"))

    def come(self) -> None:
        self.server = socket.create_server(("127.0.0.1", self.port))
        self.port = self.server.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, args=(self.server,), daemon=True)
        self.thread.start()

    def go(self) -> None:
        if self.server is not None:
            self.server.shutdown(socket.SHUT_RDWR)
            self.server.close()
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
            self.connections.clear()
            assert self.thread is not None
            self.thread.join(10)
            self.server = None

    def wait_for(self, count: int) -> list[bytes]:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.received) >= count, 10)
        return self.received

    def wrapped(self, connection: socket.socket) -> socket.socket:
        return connection

    def _serve(self, server: socket.socket) -> None:
        while True:
            try:
                connection = self.wrapped(server.accept()[0])
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        data = b""
        while True:
            try:
                more = connection.recv(65536)
            except OSError:
                return
            if not more:
                return
            data += more
            while b" " in data:
                length, _, rest = data.partition(b" ")
                if len(rest) < int(length):
                    break
                with self.arrived:
                    self.received.append(rest[: int(length)])
                    self.arrived.notify_all()
                data = rest[int(length) :]


class TlsSyslog(TcpSyslog):
    tls = True

    def come(self) -> None:
        authority = Authority()
        authority.write_own(self.directory)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(authority.write(self.directory, "server", "127.0.0.1"))
        super().come()

    def wrapped(self, connection: socket.socket) -> socket.socket:
        return self.context.wrap_socket(connection, server_side=True)


TARGETS: list[Callable[[Path], Target]] = [FileTarget, UnixSyslog, Journal, UdpSyslog, TcpSyslog, TlsSyslog]


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    found = request.param(tmp_path)
    yield found
    found.go()


def test_batches_are_taken_in_order(target: Target) -> None:
    target.come()
    destination = target.destination()
    verifyObject(IBlockingDestination, destination)
    destination.deliver(BATCH[:2])
    destination.deliver(BATCH[2:])
    assert target.wait_for(3) == BATCH
    destination.close()


def test_what_is_away_can_be_delivered_to_later(target: Target) -> None:
    if isinstance(target, (TlsSyslog, UdpSyslog)):
        pytest.skip("its files are made when it comes; UDP tells nothing of who is away")
    if isinstance(target, TcpSyslog):
        target.come()
        target.go()
    with pytest.raises(DeliveryFailed) as caught:
        target.destination().deliver(BATCH)
    assert caught.value.retryable
    assert caught.value.message
    target.come()
    destination = target.destination()
    destination.deliver(BATCH)
    assert target.wait_for(3) == BATCH
    destination.close()


def test_a_server_that_came_back_gets_what_follows(tmp_path: Path) -> None:
    target = TcpSyslog(tmp_path)
    target.come()
    destination = target.destination()
    destination.deliver(BATCH[:1])
    target.wait_for(1)
    target.go()
    with pytest.raises(DeliveryFailed):
        destination.deliver(BATCH[1:])
    target.come()
    destination.deliver(BATCH[1:])
    assert target.wait_for(3) == BATCH
    destination.close()
    target.go()


def test_an_entry_that_is_too_large_for_a_datagram_comes_as_a_file(tmp_path: Path) -> None:
    target = Journal(tmp_path)
    target.come()
    large = b"MESSAGE=" + b"x" * 2_000_000 + b"\n"
    destination = target.destination()
    destination.deliver([large, b"MESSAGE=small\n"])
    assert target.wait_for(2) == [large, b"MESSAGE=small\n"]
    destination.close()
    target.go()


def test_a_message_that_is_too_large_for_a_datagram_is_cut(tmp_path: Path) -> None:
    target = UdpSyslog(tmp_path)
    target.come()
    destination = target.destination()
    destination.deliver([b"<14>1 " + b"x" * 200_000])
    (message,) = target.wait_for(1)
    assert message.startswith(b"<14>1 xxx")
    destination.close()
    target.go()


def test_a_certificate_that_is_not_trusted_is_named(tmp_path: Path) -> None:
    target = TlsSyslog(tmp_path)
    target.come()
    Authority("another").write_own(tmp_path)
    with pytest.raises(DeliveryFailed, match="TLS failed"):
        target.destination().deliver(BATCH)
    target.go()
