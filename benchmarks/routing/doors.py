"""A way to a server that can be shut: how a server leaves and comes back that this program did not start."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from benchmarks.client import Target
from benchmarks.free_ports import free_port

_PIECE = 65_536


class Door:
    """Passes connections on to a server, from a loopback port of its own.

    `shut` resets every connection and refuses new ones, as the machine of a killed server does; `open` lets them in
    again. Both may be called from any thread.
    """

    def __init__(self, server: Target) -> None:
        self.target = Target("127.0.0.1", free_port(), server.base, server.key)
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._listener: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="door", daemon=True)
        self._thread.start()

    def open(self) -> None:
        """Accept connections."""
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    def shut(self) -> None:
        """Reset all connections, and refuse new ones."""
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()

    def close(self) -> None:
        """Shut for good."""
        self.shut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        # asyncio's own server, and its sock_accept, may forget a connection that is accepted while they end
        self._listener = listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.target.host, self.target.port))
        listener.listen(128)
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept, listener)

    async def _shut(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        while self._connections:
            for each in self._connections:
                each.cancel()
            await asyncio.wait(self._connections)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            accepted, _ = listener.accept()
            # close with a reset, not with an end of file, which would look like the end of an answer
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.setblocking(False)
            passing = self._loop.create_task(self._connect(accepted))
            self._connections.add(passing)
            passing.add_done_callback(self._connections.discard)
            # also of a task that was cancelled before it began
            passing.add_done_callback(partial(_close, accepted))

    async def _connect(self, accepted: socket.socket) -> None:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection(sock=accepted)
            try:
                there_reader, there = await asyncio.open_connection(self._server.host, self._server.port)
                try:
                    await asyncio.gather(_pass(reader, there), _pass(there_reader, writer))
                finally:
                    there.transport.abort()
            finally:
                # also if it is shut while it connects
                writer.transport.abort()


def _close(accepted: socket.socket, _: object) -> None:
    accepted.close()


async def _pass(source: asyncio.StreamReader, drain: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(_PIECE):
            drain.write(data)
            await drain.drain()
    with suppress(OSError, RuntimeError):
        drain.write_eof()


@contextmanager
def doors(servers: list[Target]) -> Iterator[list[Door]]:
    """Open a door to each server."""
    made = [Door(server) for server in servers]
    try:
        for each in made:
            each.open()
        yield made
    finally:
        for each in made:
            each.close()
