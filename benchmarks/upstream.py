"""A minimal server behind the proxies, which answers at once.

It has no routes: every POST gets a chat answer, or a stream if its body asks for one. The ``user`` in the body may say
what the stream shall be:

    benchmark events=64 interval=0.02    so many events, one every so many seconds
    benchmark bytes=268435456            events of 64 KiB as fast as they are taken, so many bytes in all
    benchmark hold                       one event, and then nothing until the client goes away
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

import attrs

_KEPT_BODY_BYTES = 65_536
_LARGE_EVENT = b"data: " + b"x" * (65_536 - 8) + b"\n\n"
_PLAN = re.compile(rb'"benchmark ([^"]*)"')
_STREAMS = re.compile(rb'"stream"\s*:\s*true')

_ANSWER = (
    b'{"id":"chatcmpl-5f0c8e1f6a7b4d21","object":"chat.completion","created":1795439504,"model":"bench","choices":'
    b'[{"index":0,"message":{"role":"assistant","content":"Begin on the islands, then walk along the river.",'
    b'"refusal":null},"logprobs":null,"finish_reason":"stop","stop_reason":null}],"system_fingerprint":null,'
    b'"usage":{"prompt_tokens":18,"total_tokens":29,"completion_tokens":11}}'
)
_EVENT = (
    b'data: {"id":"chatcmpl-5f0c8e1f6a7b4d21","object":"chat.completion.chunk","created":1795439504,"model":"bench",'
    b'"choices":[{"index":0,"delta":{"content":" river"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
)


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


_COMMON_HEAD = b"HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 13:11:43 GMT\r\nserver: benchmark-upstream\r\n"
_PLAIN = _COMMON_HEAD + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_ANSWER), _ANSWER)
_STREAM_HEAD = _COMMON_HEAD + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT_CHUNK = _chunk(_EVENT)
_LARGE_CHUNK = _chunk(_LARGE_EVENT)
_END = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


@attrs.frozen
class Plan:
    """What a stream shall be.

    Attributes:
        events: how many events before ``[DONE]``; None never ends.
        interval: seconds between two.
        large: whether the events are large ones.
    """

    events: int | None = 64
    interval: float = 0.0
    large: bool = False


def read_plan(body: bytes) -> Plan:
    """Read what the ``user`` in a body asks for; what it leaves open has a default."""
    found = _PLAN.search(body)
    words = found[1].decode("ascii", "replace").split() if found else []
    values = dict(word.partition("=")[::2] for word in words)
    if "hold" in values:
        return Plan(events=None)
    if "bytes" in values:
        return Plan(events=-(-int(values["bytes"]) // len(_LARGE_EVENT)), large=True)
    return Plan(events=int(values.get("events", 64)), interval=float(values.get("interval", 0)))


class Upstream(asyncio.Protocol):
    """One connection: requests with a ``Content-Length``, answered in turn."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._body = b""
        self._left: int | None = None
        self._plan: Plan | None = None
        self._sent = 0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop what was being sent."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        """Send nothing for now."""
        self._paused = True

    def resume_writing(self) -> None:
        """Resume sending."""
        self._paused = False
        if self._plan is not None and self._timer is None:
            self._send()

    def data_received(self, data: bytes) -> None:
        """Read a head, then drop its body but for the first bytes."""
        if self._left is None:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self._head = b""
            lower = head.lower()
            at = lower.find(b"\r\ncontent-length:")
            self._left = 0 if at < 0 else int(lower[at + 17 :].partition(b"\r\n")[0])
            if b"\r\ntransfer-encoding:" in lower:
                self._refuse()
                return
        if len(self._body) < _KEPT_BODY_BYTES:
            self._body += data[: _KEPT_BODY_BYTES - len(self._body)]
        self._left -= len(data)
        if self._left <= 0:
            body, self._body, self._left = self._body, b"", None
            self._answer(body)

    def _refuse(self) -> None:
        if self._transport is not None:
            self._transport.write(b"HTTP/1.1 411 Length Required\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self._transport.close()

    def _answer(self, body: bytes) -> None:
        if self._transport is None:
            return
        if not _STREAMS.search(body):
            self._transport.write(_PLAIN)
            return
        self._plan = read_plan(body)
        self._sent = 0
        self._due = asyncio.get_running_loop().time()
        self._transport.write(_STREAM_HEAD)
        self._send()

    def _send(self) -> None:
        """Send what is due, with one write for each event, as vLLM does."""
        self._timer = None
        loop = asyncio.get_running_loop()
        while self._plan is not None and self._transport is not None and not self._paused:
            plan = self._plan
            if plan.events is None and self._sent:
                return
            if self._sent == plan.events:
                self._plan = None
                self._transport.write(_END)
                return
            if self._due > loop.time():
                self._timer = loop.call_at(self._due, self._send)
                return
            self._transport.write(_LARGE_CHUNK if plan.large else _EVENT_CHUNK)
            self._sent += 1
            self._due += plan.interval


async def serve(port_file: Path) -> None:
    """Listen on a free port of this machine, write it to a file, and serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = await loop.create_server(Upstream, "127.0.0.1", 0, backlog=4096)
    written = port_file.with_suffix(".new")
    written.write_text(str(server.sockets[0].getsockname()[1]))
    # the file appears complete
    written.rename(port_file)
    await stopped.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
