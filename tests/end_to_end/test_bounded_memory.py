"""The gateway's memory stays bounded however large a body is and however slowly it is read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from ssl import CERT_NONE, PROTOCOL_TLS_CLIENT, SSLContext

import pytest

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import HOST
from tests.end_to_end.messages import OK, length_of
from tests.end_to_end.process_harness import (
    BLOCKED,
    FULL,
    MEBIBYTE,
    BlockSender,
    Connection,
    MeasuredGateway,
    ThreadedServer,
    blocks,
    connected,
    digest_of,
    request_head,
)
from tests.end_to_end.twistd_harness import wait_until
from tests.self_signed import self_signed_pem

#: bytes of a large body
LARGE = 1_024 * MEBIBYTE if FULL else 128 * MEBIBYTE
#: bytes of a body whose reader stalls: far more than two sockets' buffers in the kernel
STALLED = 500_000_000 if FULL else 100_000_000
#: bytes by which the process may grow while it carries a large body
CARRYING = 30 * MEBIBYTE
#: bytes by which it may grow for a stream that is not read
HELD = MEBIBYTE
#: the same for pipelined requests whose answers are not read, which includes the answers until the client is stopped
HELD_PIPELINE = 2 * MEBIBYTE


class Upstream:
    """A server that sends as much as the path says, and hashes what it is sent.

    Attributes:
        sender: sends the bodies.
        reading: whether it reads bodies; otherwise it waits until that is set.
        digest: the hash of the last body that came.
    """

    def __init__(self) -> None:
        self.sender = BlockSender()
        self.reading = threading.Event()
        self.reading.set()
        self.digest = ""
        self.server = ThreadedServer(self._serve)

    def _serve(self, connection: Connection) -> None:
        while head := connection.read_head():
            method, target = head.split(b" ")[:2]
            if method == b"POST":
                size = length_of(head)
                self.reading.wait()
                self.digest = connection.digest(size)
                connection.send(OK)
            elif target == b"/version":
                connection.send(OK)
            else:
                size = int(target.rpartition(b"/")[2])
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
                self.sender.send(connection, size)


class Listeners:
    """The gateway's other listeners: TLS and a UNIX socket.

    Attributes:
        directory: where its socket and its certificate are.
        listen: the options that open them.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        certificate = directory / "certificate.pem"
        certificate.write_bytes(self_signed_pem())
        self._tls_port = free_port()
        self._socket = directory / "socket"
        self.listen = (
            f"--listen=ssl:{self._tls_port}:interface={HOST}:privateKey={certificate}",
            f"--listen=unix:{self._socket}",
        )

    def connected(self, gateway: MeasuredGateway, transport: str) -> AbstractContextManager[Connection]:
        """Connect over `transport`, with a small receive buffer."""
        if transport == "tls":
            context = SSLContext(PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = CERT_NONE
            return connected(self._tls_port, 65_536, context)
        return connected(gateway.port if transport == "tcp" else self._socket, 65_536)


over_each_transport = pytest.mark.parametrize("transport", ["tcp", "unix", "tls"])


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.reading.set()
    made.server.stop()


@pytest.fixture(scope="module")
def listeners(tmp_path_factory: pytest.TempPathFactory) -> Listeners:
    return Listeners(tmp_path_factory.mktemp("measured"))


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, listeners: Listeners) -> Iterator[MeasuredGateway]:
    with MeasuredGateway(listeners.directory, upstream.server.port, *listeners.listen) as made:
        # the first of each kind loads code and widens buffers that stay
        for _ in range(2):
            download(made, 16 * MEBIBYTE)
            upload(made, 16 * MEBIBYTE)
        yield made


def download(gateway: MeasuredGateway, size: int) -> str:
    with connected(gateway.port) as client:
        client.send(request_head("GET", f"/vllm/bytes/{size}"))
        assert b"Content-Length: %d\r\n" % size in client.read_head()
        return client.digest(size)


def upload(
    gateway: MeasuredGateway, size: int, content_type: str = "application/octet-stream", rest: bytes = b""
) -> None:
    with connected(gateway.port) as client:
        length = size + len(rest)
        client.send(
            request_head(
                "POST", "/vllm/v1/audio/transcriptions", f"Content-Type: {content_type}", f"Content-Length: {length}"
            )
        )
        for block in blocks(size):
            client.send(block)
        client.send(rest)
        assert client.read_until(b"ok").startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_large_download_arrives_byte_for_byte_in_bounded_memory(gateway: MeasuredGateway) -> None:
    before = gateway.forget_peak()
    assert download(gateway, LARGE) == digest_of(LARGE)
    print(f"download of {LARGE >> 20} MiB: peak +{(gateway.peak - before) / MEBIBYTE:.1f} MiB")
    assert gateway.peak - before < CARRYING


def test_a_large_upload_arrives_byte_for_byte_in_bounded_memory(gateway: MeasuredGateway, upstream: Upstream) -> None:
    before = gateway.forget_peak()
    upload(gateway, LARGE)
    assert upstream.digest == digest_of(LARGE)
    print(f"upload of {LARGE >> 20} MiB: peak +{(gateway.peak - before) / MEBIBYTE:.1f} MiB")
    assert gateway.peak - before < CARRYING


def test_a_large_form_streams_through_in_bounded_memory_where_no_model_is_needed(
    gateway: MeasuredGateway, upstream: Upstream
) -> None:
    before = gateway.forget_peak()
    upload(gateway, LARGE, "multipart/form-data; boundary=b", b"\r\n--b--\r\n")
    print(f"form of {LARGE >> 20} MiB: peak +{(gateway.peak - before) / MEBIBYTE:.1f} MiB")
    assert gateway.peak - before < CARRYING


@over_each_transport
def test_a_server_is_stopped_while_its_client_does_not_read_and_nothing_is_held(
    gateway: MeasuredGateway, upstream: Upstream, listeners: Listeners, transport: str
) -> None:
    upstream.sender = sender = BlockSender()
    with listeners.connected(gateway, transport) as client:
        client.send(request_head("GET", "/vllm/bytes/10"))
        assert client.read_head().startswith(b"HTTP/1.1 200 OK\r\n")
        client.read(10)
        before = gateway.forget_peak()
        client.send(request_head("GET", f"/vllm/bytes/{STALLED}"))
        assert client.read_head().startswith(b"HTTP/1.1 200 OK\r\n")
        assert sender.blocked.wait(30), "the server was never stopped"
        print(f"stalled download, {transport}: sent {sender.sent:,}, peak +{(gateway.peak - before) / 1024:.0f} KiB")
        assert sender.sent < STALLED
        assert gateway.peak - before <= HELD
        assert client.digest(STALLED) == digest_of(STALLED)
    wait_until(lambda: sender.sent == STALLED + 10)


@over_each_transport
def test_a_client_is_stopped_while_the_server_does_not_read_and_nothing_is_held(
    gateway: MeasuredGateway, upstream: Upstream, listeners: Listeners, transport: str
) -> None:
    sender = BlockSender()
    with listeners.connected(gateway, transport) as client:
        client.send(request_head("GET", "/vllm/bytes/10"))
        assert client.read_head().startswith(b"HTTP/1.1 200 OK\r\n")
        client.read(10)
        before = gateway.forget_peak()
        upstream.reading.clear()
        client.send(request_head("POST", "/vllm/v1/audio/transcriptions", f"Content-Length: {STALLED}"))
        sending = threading.Thread(target=sender.send, args=(client, STALLED))
        sending.start()
        try:
            assert sender.blocked.wait(30), "the client was never stopped"
            print(f"stalled upload, {transport}: sent {sender.sent:,}, peak +{(gateway.peak - before) / 1024:.0f} KiB")
            assert sender.sent < STALLED
            assert gateway.peak - before <= HELD
        finally:
            upstream.reading.set()
            sending.join()
        assert client.read_until(b"ok").startswith(b"HTTP/1.1 200 OK\r\n")
    assert upstream.digest == digest_of(STALLED)


@over_each_transport
def test_a_client_that_asks_on_and_on_and_reads_no_answer_is_stopped_and_nothing_is_held(
    gateway: MeasuredGateway, listeners: Listeners, transport: str
) -> None:
    requests = request_head("GET", "/vllm/bytes/20000") * 100
    with listeners.connected(gateway, transport) as client:
        client.send(requests)
        assert client.read_head().startswith(b"HTTP/1.1 200 OK\r\n")
        before = gateway.forget_peak()
        client.socket.settimeout(BLOCKED)
        with pytest.raises(TimeoutError):
            for _ in range(0, STALLED, len(requests)):
                client.send(requests)
        print(f"pipelined and not read, {transport}: peak +{(gateway.peak - before) / 1024:.0f} KiB")
        assert gateway.peak - before <= HELD_PIPELINE
    with listeners.connected(gateway, transport) as client:
        client.send(request_head("GET", "/vllm/bytes/10"))
        assert client.read_head().startswith(b"HTTP/1.1 200 OK\r\n")
