"""``python -m benchmarks.telemetry.receiver PORT_FILE``: takes what is posted, as a collector or a webhook would.

``GET /`` answers with a JSON object: for each path the number of posts, and of their bytes.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from pathlib import Path

_HEAD = "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n"
_MOST_HEAD = 65_536


class Receiver:
    """Counts posts.

    Attributes:
        posts: how many came, by path.
        sizes: the bytes of their bodies, by path.
    """

    def __init__(self) -> None:
        """Begin at zero."""
        self.posts: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = await self._read_body(reader, head)
                writer.write(self._answer(head, length))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _read_body(self, reader: asyncio.StreamReader, head: bytes) -> int:
        lines = head.decode("latin-1").lower().split("\r\n")
        headers = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if "chunked" in headers.get("transfer-encoding", ""):
            total = 0
            while size := int(await reader.readuntil(b"\r\n"), 16):
                await reader.readexactly(size + 2)
                total += size
            await reader.readuntil(b"\r\n")
            return total
        length = int(headers.get("content-length", "0"))
        await reader.readexactly(length)
        return length

    def _answer(self, head: bytes, length: int) -> bytes:
        method, path, _ = head.split(b" ", 2)
        name = path.decode("latin-1")
        kind, body = "application/json", b"{}"
        if method == b"GET":
            body = json.dumps({name: [self.posts[name], self.sizes[name]] for name in self.posts}).encode()
        else:
            self.posts[name] += 1
            self.sizes[name] += length
            if name.startswith("/v1/"):
                # an empty answer of OTLP
                kind, body = "application/x-protobuf", b""
        return _HEAD.format(status="200 OK", kind=kind, length=len(body)).encode() + body


async def main(port_file: Path) -> None:
    """Serve on a free port, which the file then has, until SIGTERM."""
    receiver, ended = Receiver(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, limit=_MOST_HEAD)
    port = server.sockets[0].getsockname()[1]
    partial = port_file.with_suffix(".partial")
    partial.write_text(str(port))
    partial.rename(port_file)
    await ended.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
