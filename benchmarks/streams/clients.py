"""``python -m benchmarks.streams.clients PORT PATH COUNT FIRST``: holds streams open, in a process of its own.

The key comes on standard input's first line, the body on its second. Once each of its streams has had an event or could
not be opened, it writes how many did and did not, and reads what comes until it is killed. The streams of several
processes have different numbers, which begin with FIRST: a number decides the address that its stream comes from.
"""

from __future__ import annotations

import selectors
import socket
import sys
import time

#: streams that are opened at once, how long each may take, and how long all may, in seconds
_OPENING, _OPEN_SECONDS = 100, 120.0
#: streams of one address: one may have a share of all connections
_OF_ADDRESS = 1_000
_EVENT = b"data: "


def address_of(number: int) -> str:
    """Return the loopback address that a stream comes from."""
    block = number // _OF_ADDRESS
    return f"127.1.{block >> 8}.{(block & 255) or 254}"


class Streams:
    """The streams of this process."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self._selector = selectors.DefaultSelector()
        self._opening: set[socket.socket] = set()
        self.open = self.failed = 0

    def begin(self, number: int) -> None:
        """Begin a stream."""
        made = socket.socket()
        try:
            # a port for each destination, not for all
            made.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
            made.bind((address_of(number), 0))
            made.connect(("127.0.0.1", self._port))
            made.sendall(self._request)
        except OSError:
            self.failed += 1
            made.close()
            return
        made.setblocking(False)
        self._opening.add(made)
        self._selector.register(made, selectors.EVENT_READ)

    def open_all(self, count: int, first: int) -> None:
        """Open so many."""
        end, begun = time.monotonic() + _OPEN_SECONDS, 0
        while (begun < count or self._opening) and time.monotonic() < end:
            while begun < count and len(self._opening) < _OPENING:
                self.begin(first + begun)
                begun += 1
            self.read(0.1)

    def read(self, seconds: float) -> None:
        """Read what has come."""
        for key, _ in self._selector.select(seconds):
            made = key.fileobj
            assert isinstance(made, socket.socket)
            try:
                data = made.recv(65_536)
            except OSError:
                data = b""
            if not data:
                self._selector.unregister(made)
                made.close()
            good = _EVENT in data
            # the headers of a good answer may come alone
            if made in self._opening and (good or not data.startswith(b"HTTP/1.1 200 ")):
                self._opening.discard(made)
                self.open += good
                self.failed += not good


def main(port: int, path: str, count: int, first: int) -> None:
    """Open the streams, and hold them until this process is killed."""
    key, body = sys.stdin.readline().strip(), sys.stdin.readline().strip().encode()
    head = f"POST {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    streams = Streams(port, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    streams.open_all(count, first)
    print(f"open {streams.open} {streams.failed}", flush=True)
    while True:
        streams.read(1.0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
