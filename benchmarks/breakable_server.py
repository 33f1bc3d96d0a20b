"""A stand-in for a vLLM server that breaks on command: ``python -m benchmarks.breakable_server PORT``.

It answers every POST with a chat completion, streamed if the body says so, ``GET /health`` with 200, and lines on its
standard input change how: ``ok``, ``status 503`` (every answer, health checks included), ``slow 2`` (seconds before
each chunk). It is small, so that what is measured is the gateway.
"""

from __future__ import annotations

import asyncio
import sys
from typing import NoReturn

CHUNKS = 8
#: seconds before each chunk of an ordinary answer
PACE = 0.02

_EVENT = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
_LAST = (
    b'data: {"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":8,"total_tokens":17}}\n\n'
)
_WHOLE = (
    b'{"id":"chatcmpl-1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":'
    b'"word word"}}],"usage":{"prompt_tokens":9,"completion_tokens":8,"total_tokens":17}}'
)


class BreakableServer:
    """Answers as its mode says.

    Attributes:
        served: the answers that were sent whole.
    """

    def __init__(self) -> None:
        self.status = 200
        self.pace = PACE
        self.served = 0

    def command(self, line: str) -> None:
        """Change the mode."""
        word, _, value = line.strip().partition(" ")
        self.status = int(value) if word == "status" else 200
        self.pace = float(value) if word == "slow" else PACE

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # the gateway went away
            return
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        body = await reader.readexactly(int(length or 0))
        if self.status != 200 or head.startswith(b"get "):
            writer.write(_response(self.status, b"{}"))
        elif b'"stream":true' in body.replace(b" ", b""):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            for data in (*(_EVENT,) * CHUNKS, _LAST, b"data: [DONE]\n\n"):
                await asyncio.sleep(self.pace)
                writer.write(b"%x\r\n%b\r\n" % (len(data), data))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        else:
            await asyncio.sleep(self.pace * CHUNKS)
            writer.write(_response(200, _WHOLE))
        await writer.drain()
        self.served += 1
        return True


def _response(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d Status\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


async def _main(port: int) -> NoReturn:
    server = BreakableServer()
    await asyncio.start_server(server.serve, "127.0.0.1", port, backlog=512)
    print("ready", flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while True:
        line = await lines.readline()
        if not line:
            raise SystemExit(0)
        server.command(line.decode())


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
