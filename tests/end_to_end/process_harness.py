"""A gateway in a process that can be measured, with blocking sockets in threads as its clients and servers."""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from ssl import SSLContext

import pytest

from benchmarks.measure import parse_memory
from tests.end_to_end.end_to_end_harness import HOST
from tests.end_to_end.twistd_harness import MASTER_KEY, PATIENCE, Configured, wait_until

MEBIBYTE = 1 << 20
#: whether to run with the full counts, which takes minutes
FULL = os.environ.get("FULL_LOAD", "") not in ("", "0")
#: one block of a large body; each block that is sent begins with its offset
BLOCK = bytes(range(256)) * 1_024
#: seconds after which a send that takes nothing counts as blocked
BLOCKED = 0.5

HEAD_END = b"\r\n\r\n"


class MeasuredGateway(Configured):
    """``twistd -n vllm-passthrough`` in front of one server, with the kernel's figures of the process."""

    def __init__(
        self,
        directory: Path,
        server: int,
        *arguments: str,
        settings: str = "",
        passthrough: str = "",
        **variables: str,
    ) -> None:
        # a log file: the pipe of standard output is not read while it runs
        super().__init__(
            directory,
            server,
            f"passthrough: {{log: {{file: gateway.log, format: json}}{passthrough}}}\n{settings}",
            *arguments,
            **variables,
        )

    def _memory(self, name: str) -> int:
        found = parse_memory(Path(f"/proc/{self.pid}/status").read_text(), name)
        assert found is not None
        return found

    @property
    def memory(self) -> int:
        """Resident memory in bytes."""
        return self._memory("VmRSS")

    @property
    def peak(self) -> int:
        """The most resident memory since `forget_peak`, in bytes."""
        return self._memory("VmHWM")

    def forget_peak(self) -> int:
        """Reset `peak`; return the resident memory in bytes."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self.memory

    @property
    def open_files(self) -> list[str]:
        """What the open descriptors refer to: a path, or the kernel's name of it."""
        found = []
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found.append(os.readlink(descriptor))
        return found

    @property
    def sockets(self) -> int:
        """How many sockets are open."""
        return sum(name.startswith("socket:") for name in self.open_files)


class Connection:
    """A blocking socket with reads that fit HTTP messages.

    Attributes:
        socket: the socket.
    """

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.settimeout(PATIENCE)
        self._ahead = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read_until(self, end: bytes) -> bytes:
        """Return what comes up to and with `end`; nothing if the other side closes instead."""
        found = self._ahead
        while end not in found:
            piece = self.socket.recv(65_536)
            if not piece:
                self._ahead = b""
                return b""
            found += piece
        found, end, self._ahead = found.partition(end)
        return found + end

    def read_head(self) -> bytes:
        return self.read_until(HEAD_END)

    def pieces(self, size: int) -> Iterator[bytes]:
        """Give the next `size` bytes as they come."""
        while size:
            piece = self._ahead[:size] or self.socket.recv(min(size, 262_144))
            self._ahead = self._ahead[len(piece) :] if self._ahead else b""
            assert piece, f"closed {size} bytes too early"
            size -= len(piece)
            yield piece

    def read(self, size: int) -> bytes:
        return b"".join(self.pieces(size))

    def digest(self, size: int) -> str:
        """Read so many bytes and return their hash."""
        seen = hashlib.sha256()
        for piece in self.pieces(size):
            seen.update(piece)
        return seen.hexdigest()

    def read_to_end(self) -> bytes:
        """Return what comes until the other side closes or resets."""
        found, self._ahead = self._ahead, b""
        with suppress(ConnectionResetError):
            while piece := self.socket.recv(65_536):
                found += piece
        return found

    def reset(self) -> None:
        """End with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def close(self) -> None:
        self.socket.close()


def blocks(size: int) -> Iterator[bytes]:
    """Give `size` bytes, no two blocks of which are alike."""
    for number in range(0, size, len(BLOCK)):
        yield (b"%016d" % number + BLOCK[16:])[: size - number]


@cache
def digest_of(size: int) -> str:
    """Return the hash of `blocks`."""
    found = hashlib.sha256()
    for block in blocks(size):
        found.update(block)
    return found.hexdigest()


class BlockSender:
    """Sends `blocks` over a connection and counts the bytes.

    Attributes:
        sent: bytes that the kernel took so far.
        blocked: set when the kernel took nothing for `BLOCKED` seconds.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.blocked = threading.Event()

    def send(self, connection: Connection, size: int) -> None:
        """Send `size` bytes in the calling thread."""
        for block in blocks(size):
            view = memoryview(block)
            while view:
                connection.socket.settimeout(PATIENCE if self.blocked.is_set() else BLOCKED)
                try:
                    taken = connection.socket.send(view)
                except TimeoutError:
                    assert not self.blocked.is_set(), "the receiver never went on"
                    self.blocked.set()
                    continue
                self.sent += taken
                view = view[taken:]


class ThreadedServer:
    """A server that calls a function for each connection, in a thread of its own.

    A handler that returns True leaves its connection open, without a thread, until the server stops.

    Attributes:
        port: where it listens.
        failures: what its handlers raised, other than by the end of their connections.
    """

    def __init__(self, handler: Callable[[Connection], bool | None], buffer: int = 0) -> None:
        self._handler = handler
        self._listening = socket.create_server((HOST, 0), backlog=1_024)
        if buffer:
            self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.port = int(self._listening.getsockname()[1])
        self.failures: list[BaseException] = []
        self._threads: set[threading.Thread] = set()
        self._connections: set[Connection] = set()
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listening.accept()
            except OSError:
                return
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(connected)
            self._connections.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.add(thread)
            thread.start()

    def _serve(self, connection: Connection) -> None:
        stays = False
        try:
            stays = bool(self._handler(connection))
        except (ConnectionError, TimeoutError, OSError):
            # the gateway closed the connection, or the test has ended
            pass
        except BaseException as error:
            self.failures.append(error)
        finally:
            if not stays:
                connection.close()
                self._connections.discard(connection)
            self._threads.discard(threading.current_thread())

    def stop(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._accepting.join()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(PATIENCE)
        for connection in self._connections:
            connection.close()
        assert not self._threads
        assert not self.failures, self.failures


@contextmanager
def served(handler: Callable[[Connection], bool | None], buffer: int = 0) -> Iterator[ThreadedServer]:
    server = ThreadedServer(handler, buffer)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def connected(port: int | Path, receive_buffer: int = 0, context: SSLContext | None = None) -> Iterator[Connection]:
    connection = connect(port, receive_buffer, context=context)
    try:
        yield connection
    finally:
        connection.close()


def connect(
    port: int | Path, receive_buffer: int = 0, segment: int = 0, context: SSLContext | None = None
) -> Connection:
    """Connect to the gateway.

    Args:
        port: its port, or its UNIX socket.
        receive_buffer: bytes that the kernel may hold for the client, or 0 for its own choice.
        segment: the largest TCP segment in bytes, which also keeps the sender's buffer small, or 0.
        context: for TLS, or None for none.
    """
    made = socket.socket(socket.AF_INET if isinstance(port, int) else socket.AF_UNIX)
    if receive_buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    if segment:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
    made.settimeout(PATIENCE)
    if isinstance(port, Path):
        made.connect(str(port))
        return Connection(made)
    made.connect((HOST, port))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(made if context is None else context.wrap_socket(made))


def request_head(method: str, target: str, *lines: str) -> bytes:
    head = [f"{method} {target} HTTP/1.1", "Host: gateway", f"Authorization: Bearer {MASTER_KEY}", *lines, "", ""]
    return "\r\n".join(head).encode()


@contextmanager
def many_descriptors(wanted: int) -> Iterator[None]:
    """Allow this process and its children so many open files; skip the test where the system refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} open files, and the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def settled(measure: Callable[[], int], bound: int) -> int:
    """Return what `measure` returns once it is at most `bound`, or after `PATIENCE` seconds."""
    with suppress(AssertionError):
        wait_until(lambda: measure() <= bound)
    return measure()
