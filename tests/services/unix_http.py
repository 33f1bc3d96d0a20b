"""HTTP over UNIX sockets, with the standard library's client."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

from tests.end_to_end.twistd_harness import PATIENCE


class UnixConnection(http.client.HTTPConnection):
    """A connection to a UNIX socket."""

    def __init__(self, path: Path, timeout: float = PATIENCE) -> None:
        super().__init__("gateway", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(path: Path, method: str, target: str, key: str | None, body: bytes | None = None) -> tuple[int, bytes]:
    """Send one request; return status and body."""
    connection = UnixConnection(path)
    headers = {"Content-Type": "application/json"} if body else {}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    try:
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()
