"""A way to PostgreSQL that swallows packets when the test says so, as a broken network does: nobody is told."""

from __future__ import annotations

import selectors
import socket
import threading
from pathlib import Path

HOST = "127.0.0.1"


class SilentNetwork:
    """Forwards TCP connections to the server's UNIX socket, until it is silent.

    Attributes:
        port: where it listens.
        silent: while it is set, nothing is forwarded and nothing is closed; new connections are accepted by the kernel.
    """

    def __init__(self, server: Path) -> None:
        self.silent = threading.Event()
        self._server = server
        self._listening = socket.create_server((HOST, 0))
        self.port = int(self._listening.getsockname()[1])
        self._stopping = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._forward)
        self._thread.start()

    def _forward(self) -> None:
        while not self._stopping.is_set():
            if self.silent.is_set():
                self._stopping.wait(0.02)
                continue
            for key, _ in self._selector.select(0.02):
                if key.data is None:
                    self._accept()
                else:
                    self._pass_on(key.fileobj, key.data)  # type: ignore[arg-type]  # only sockets are registered

    def _accept(self) -> None:
        client, _ = self._listening.accept()
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(self._server))
        self._selector.register(client, selectors.EVENT_READ, server)
        self._selector.register(server, selectors.EVENT_READ, client)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        if source.fileno() < 0:
            # closed with the other end, in the same turn
            return
        try:
            data = source.recv(65_536)
            if data:
                target.sendall(data)
                return
        except OSError:
            pass
        for each in (source, target):
            self._selector.unregister(each)
            each.close()

    def stop(self) -> None:
        """End every connection."""
        self._stopping.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]  # only sockets are registered
        self._selector.close()
