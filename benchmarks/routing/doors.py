"""A way to a server that can be shut: how a server leaves and comes back that this program did not start."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

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
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
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
        self._listener = await asyncio.start_server(self._accepted, self.target.host, self.target.port)

    async def _shut(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for writer in list(self._writers):
            _reset(writer)
        # the tasks of the connections end
        while self._writers:
            await asyncio.sleep(0.01)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there = await asyncio.open_connection(self._server.host, self._server.port)
        except OSError:
            _reset(writer)
            return
        if self._listener is None:
            # shut meanwhile
            _reset(writer)
            _reset(there)
            return
        self._writers |= {writer, there}
        try:
            await asyncio.gather(_pass(reader, there), _pass(there_reader, writer))
        finally:
            for each in (writer, there):
                self._writers.discard(each)
                each.transport.abort()


async def _pass(source: asyncio.StreamReader, drain: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(_PIECE):
            drain.write(data)
            await drain.drain()
    with suppress(OSError, RuntimeError):
        drain.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset, not with an end of file, which would look like the end of an answer."""
    peer = writer.get_extra_info("socket")
    with suppress(OSError):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    writer.transport.abort()


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
