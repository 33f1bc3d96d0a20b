"""Load: so many connections, each with one request after the other, for so many seconds."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import attrs

from benchmarks.answers import AnswerReader, BadAnswer
from benchmarks.client import Connection, Target, connected
from benchmarks.measure import percentile

#: seconds to wait after a failure, to avoid a busy loop
_AFTER_FAILURE = 0.05
_QUOTED_CHARACTERS = 120


@attrs.define
class Load:
    """What came of a load.

    Attributes:
        latencies: seconds from each request to the end of its answer, of those that were answered well.
        events: events of the streams, those of a stream that broke off included.
        seconds: from the first request to the end of the last answer.
        failures: how often each thing went wrong.
    """

    latencies: list[float] = attrs.Factory(list)
    events: int = 0
    seconds: float = 0.0
    failures: Counter[str] = attrs.Factory(Counter)

    @property
    def rate(self) -> float | None:
        """Answers per second."""
        return len(self.latencies) / self.seconds if self.latencies else None

    @property
    def event_rate(self) -> float | None:
        """Events of streams per second."""
        return self.events / self.seconds if self.events else None

    def latency_ms(self, percent: float) -> float | None:
        """A percentile of the latencies, in milliseconds."""
        value = percentile(self.latencies, percent)
        return None if value is None else value * 1000

    def complaint(self) -> str | None:
        """What went wrong, in words; None where nothing did."""
        if not self.failures:
            return None
        failed = self.failures.total()
        what, _ = self.failures.most_common(1)[0]
        return f"{failed:,} of {failed + len(self.latencies):,} requests failed, most often: {what}"


def judge(answer: AnswerReader, *, stream: bool) -> None:
    """Check that an answer is good.

    Raises:
        BadAnswer: it is not 200, or is a stream that lacks its end.
    """
    if answer.status != 200:
        text = answer.beginning.decode(errors="replace")
        raise BadAnswer(f"status {answer.status}: {' '.join(text.split())[:_QUOTED_CHARACTERS]}")
    if stream and not answer.events.ended:
        raise BadAnswer("a stream without its [DONE]")


async def ask_once(target: Target, body: bytes, *, seconds: float) -> str | None:
    """Ask once; return what was wrong with the answer, or None."""
    try:
        async with asyncio.timeout(seconds), connected(target) as connection:
            judge(await connection.ask(target.request(body)), stream=False)
    except BadAnswer as error:
        return str(error)
    except TimeoutError:
        return f"no answer after {seconds:g} s"
    return None


async def apply_load(
    target: Target, body: bytes, *, connections: int, seconds: float, patience: float, stream: bool = False
) -> Load:
    """Ask for so many seconds, and wait for the answers that are on their way.

    Args:
        target: who is asked.
        body: the body of each request.
        connections: how many connections ask at once.
        seconds: how long requests are sent.
        patience: seconds that the last answers are given; those that take longer have failed.
        stream: whether the answers are streams.
    """
    load = Load()
    request = target.request(body)
    began = time.perf_counter()
    end = began + seconds

    async def ask(connection: Connection) -> bool:
        """Ask once; return whether the connection can be used again."""
        sent = time.perf_counter()
        try:
            answer = await connection.ask(request)
            judge(answer, stream=stream)
            load.latencies.append(time.perf_counter() - sent)
            return not answer.closes
        finally:
            load.events += connection.answer.events.count

    async def keep_asking() -> None:
        while time.perf_counter() < end:
            try:
                async with connected(target) as connection:
                    while time.perf_counter() < end and await ask(connection):
                        pass
            except BadAnswer as error:
                load.failures[str(error)] += 1
                await asyncio.sleep(_AFTER_FAILURE)

    tasks = [asyncio.create_task(keep_asking()) for _ in range(connections)]
    _, late = await asyncio.wait(tasks, timeout=seconds + patience)
    for task in late:
        task.cancel()
        load.failures[f"no whole answer {patience:g} s after the end"] += 1
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled():
            task.result()
    load.seconds = time.perf_counter() - began
    return load
