"""A minimal HTTP/1.1 client: one connection, one request at a time, answers are not kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import attrs
import msgspec

from benchmarks.answers import AnswerReader, BadAnswer

CONNECT_SECONDS = 10.0


@attrs.frozen
class Target:
    """Where requests go.

    Attributes:
        host: name or address.
        port: TCP port.
        base: what stands before ``/v1``.
        key: the bearer; None sends no credential.
    """

    host: str
    port: int
    base: str = ""
    key: str | None = attrs.field(default=None, repr=False)

    def head(self, length: int, path: str = "/v1/chat/completions", more: Sequence[str] = ()) -> bytes:
        """Return the head of a POST of a JSON body with so many bytes, and more lines."""
        lines = [
            f"POST {self.base}{path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {length}",
        ]
        if self.key is not None:
            lines.append(f"Authorization: Bearer {self.key}")
        return "\r\n".join([*lines, *more, "", ""]).encode()

    def request(self, body: bytes) -> bytes:
        """Return a whole chat request."""
        return self.head(len(body)) + body


def chat(model: str, *, max_tokens: int, stream: bool = False, plan: str | None = None) -> bytes:
    """Return the body of a chat request.

    Args:
        model: the model's name.
        max_tokens: how long the answer shall be.
        stream: whether to ask for a stream.
        plan: what `benchmarks.upstream` shall do; it is sent as ``user``, which every proxy keeps.
    """
    body: dict[str, object] = {
        "model": model,
        "messages": [{"role": "user", "content": "I am going to Paris, what should I see?"}],
        "max_tokens": max_tokens,
        "temperature": 0.8,
        "top_p": 0.95,
    }
    if stream:
        # without an early end, so that each stream has as many events
        body |= {"stream": True, "ignore_eos": True}
    if plan is not None:
        body["user"] = plan
    return msgspec.json.encode(body)


class Connection(asyncio.Protocol):
    """One connection; use `connected` to make one."""

    def __init__(self) -> None:
        self.answer = AnswerReader()
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._until_first_event = False
        self._lost = False
        self._writable = asyncio.Event()
        self._writable.set()

    async def ask(self, request: bytes, *, read_after: float = 0) -> AnswerReader:
        """Send a request, read nothing for so many seconds, and then its answer to the end.

        Raises:
            BadAnswer: it did not come whole, or not as HTTP.
        """
        self._begin()
        self._write(request)
        if read_after and self._transport is not None:
            self._transport.pause_reading()
            await asyncio.sleep(read_after)
            self._transport.resume_reading()
        return await self._wait()

    async def open_stream(self, request: bytes) -> AnswerReader:
        """Send a request and return with the first event of its answer; the rest is left unread.

        Raises:
            BadAnswer: as `ask`.
        """
        self._begin()
        self._until_first_event = True
        self._write(request)
        return await self._wait()

    async def upload(self, pieces: Iterable[bytes]) -> AnswerReader:
        """Send a request piece by piece, as fast as the connection takes them; stop where an answer comes early.

        Raises:
            BadAnswer: as `ask`.
        """
        self._begin()
        for piece in pieces:
            self._write(piece)
            await self._writable.wait()
            if self._waiting is None or self._waiting.done():
                break
        return await self._wait()

    def _begin(self) -> None:
        self.answer = AnswerReader()
        self._waiting = asyncio.get_running_loop().create_future()
        if self._lost:
            self._fail(BadAnswer("the connection was closed"))

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._lost:
            self._transport.write(data)

    async def _wait(self) -> AnswerReader:
        if self._waiting is not None:
            await self._waiting
        return self.answer

    def _fail(self, error: BadAnswer) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Read on; resolve what waits for the answer."""
        answer = self.answer
        try:
            answer.feed(data)
        except BadAnswer as error:
            self._fail(error)
            return
        enough = answer.complete or (self._until_first_event and answer.events.count)
        if enough and self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what waits for the answer."""
        self._lost = True
        self._writable.set()
        self._fail(BadAnswer("the connection was closed before the answer was whole"))

    def pause_writing(self) -> None:
        """The connection takes no more for now."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The connection takes more."""
        self._writable.set()


@asynccontextmanager
async def connected(target: Target) -> AsyncIterator[Connection]:
    """Open a connection, and abort it at the end.

    Raises:
        BadAnswer: it cannot be opened.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            transport, connection = await loop.create_connection(Connection, target.host, target.port)
    except (OSError, TimeoutError) as error:
        raise BadAnswer("no connection") from error
    try:
        yield connection
    finally:
        transport.abort()
