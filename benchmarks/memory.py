"""What open streams and large bodies cost in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import attrs

from benchmarks.answers import BadAnswer
from benchmarks.client import Connection, Target, chat, connected
from benchmarks.load import judge
from benchmarks.measure import ProcessTree

MEBIBYTE = 1 << 20
_PIECE = b"x" * (256 * 1024)
#: streams that are opened at once
_OPENING = 50
_SLOW_CLIENT_SECONDS = 1.0
#: a body's beginning and end: one long message, which a proxy that reads bodies can read
_BEFORE = b'{"model":"%b","messages":[{"role":"user","content":"'
_AFTER = b'"}],"max_tokens":8}'


MeasurePeak = Callable[[Target, ProcessTree, str, int, float], Awaitable[int | None]]


@attrs.frozen
class Held:
    """Streams that were held open.

    Attributes:
        streams: how many were open.
        before: bytes resident before.
        during: bytes resident with all open.
        failures: how often opening failed, and why.
    """

    streams: int
    before: int | None
    during: int | None
    failures: Counter[str]

    @property
    def per_stream(self) -> float | None:
        """Bytes for each open stream."""
        if self.before is None or self.during is None or not self.streams:
            return None
        return (self.during - self.before) / self.streams


async def hold_streams(target: Target, processes: ProcessTree, model: str, count: int, seconds: float) -> Held:
    """Open streams that send one event and then nothing, look at the memory, and let them go.

    Args:
        target: whom to ask; our own upstream must be behind it.
        processes: whose memory is looked at.
        model: the model's name.
        count: how many streams.
        seconds: how long opening them may take.
    """
    request = target.request(chat(model, max_tokens=64, stream=True, plan="benchmark hold"))
    before = processes.resident_bytes()
    failures: Counter[str] = Counter()
    slots = asyncio.Semaphore(_OPENING)
    async with AsyncExitStack() as stack:

        async def open_one() -> bool:
            async with slots:
                try:
                    connection = await stack.enter_async_context(connected(target))
                    answer = await connection.open_stream(request)
                    if answer.complete or answer.status != 200:
                        judge(answer, stream=True)
                        raise BadAnswer("the stream ended")
                except BadAnswer as error:
                    failures[str(error)] += 1
                    return False
                return True

        tasks = [asyncio.create_task(open_one()) for _ in range(count)]
        done, late = await asyncio.wait(tasks, timeout=seconds)
        for task in late:
            task.cancel()
            failures[f"not open after {seconds:g} s"] += 1
        await asyncio.gather(*tasks, return_exceptions=True)
        opened = sum(task.result() for task in done)
        during = processes.resident_bytes()
    return Held(opened, before, during, failures)


async def upload_peak(target: Target, processes: ProcessTree, model: str, size: int, seconds: float) -> int | None:
    """Send one request with a body of so many bytes, as fast as it is taken; return the peak of memory in bytes.

    Raises:
        BadAnswer: it was not answered well in time.
    """
    before, after = _BEFORE % model.encode(), _AFTER
    filling = max(size - len(before) - len(after), 0)

    def pieces() -> Iterator[bytes]:
        yield target.head(len(before) + filling + len(after)) + before
        for at in range(0, filling, len(_PIECE)):
            yield _PIECE[: filling - at]
        yield after

    async def transfer(connection: Connection) -> None:
        judge(await connection.upload(pieces()), stream=False)

    return await _peak(target, processes, transfer, seconds)


async def download_peak(target: Target, processes: ProcessTree, model: str, size: int, seconds: float) -> int | None:
    """Read one stream of so many bytes, none in the first second, so that a proxy which does not wait for its client
    shows it, and then as fast as it comes; return the peak of memory in bytes.

    Raises:
        BadAnswer: it did not come whole in time.
    """
    request = target.request(chat(model, max_tokens=64, stream=True, plan=f"benchmark bytes={size}"))

    async def transfer(connection: Connection) -> None:
        answer = await connection.ask(request, read_after=_SLOW_CLIENT_SECONDS)
        judge(answer, stream=True)
        if answer.body_bytes < size:
            raise BadAnswer(f"{answer.body_bytes:,} bytes of {size:,}")

    return await _peak(target, processes, transfer, seconds)


async def _peak(
    target: Target, processes: ProcessTree, transfer: Callable[[Connection], Awaitable[None]], seconds: float
) -> int | None:
    if not processes.reset_peak():
        return None
    try:
        async with asyncio.timeout(seconds), connected(target) as connection:
            await transfer(connection)
    except TimeoutError:
        raise BadAnswer(f"not done after {seconds:g} s") from None
    return processes.peak_bytes()
