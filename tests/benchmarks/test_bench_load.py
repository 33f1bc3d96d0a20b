"""The load generator against real sockets: what is good is counted, what is not is named, and it always ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from benchmarks.answers import BadAnswer
from benchmarks.client import Target, chat, connected
from benchmarks.load import Load, apply_load, ask_once
from benchmarks.measure import ProcessTree
from benchmarks.memory import Held, download_peak, hold_streams, upload_peak
from benchmarks.upstream import Plan, Upstream, read_plan

PLAIN = chat("bench", max_tokens=8)
SHORT_STREAM = chat("bench", max_tokens=8, stream=True, plan="benchmark events=7 interval=0.001")
CUT_STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\n"
SMALL = 1 << 20


class Says(asyncio.Protocol):
    """Answers whatever comes with the same bytes, and closes."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._answer)
        self._transport.close()


@asynccontextmanager
async def serving(make: Callable[[], asyncio.Protocol]) -> AsyncIterator[Target]:
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    try:
        yield Target("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
        # one turn for the connections that were cut
        await asyncio.sleep(0)


def load(make: Callable[[], asyncio.Protocol], body: bytes, *, stream: bool = False, patience: float = 5) -> Load:
    async def main() -> Load:
        async with serving(make) as target:
            return await apply_load(target, body, connections=3, seconds=0.2, patience=patience, stream=stream)

    return asyncio.run(main())


def hold(make: Callable[[], asyncio.Protocol], count: int, seconds: float = 5) -> Held:
    async def main() -> Held:
        async with serving(make) as target:
            return await hold_streams(target, ProcessTree(os.getpid()), "bench", count, seconds)

    return asyncio.run(main())


def test_answers_are_counted_with_their_latency() -> None:
    done = load(Upstream, PLAIN)
    assert done.complaint() is None
    assert len(done.latencies) > 3
    assert done.rate == pytest.approx(len(done.latencies) / done.seconds)
    assert 0 < (done.latency_ms(50) or 0) <= (done.latency_ms(99) or 0) < 5_000
    assert done.event_rate is None


def test_every_event_of_a_stream_is_counted() -> None:
    done = load(Upstream, SHORT_STREAM, stream=True)
    assert done.complaint() is None
    assert done.events == 7 * len(done.latencies) > 0


def test_an_answer_that_is_not_200_is_a_failure_that_is_quoted() -> None:
    answer = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 6\r\nconnection: close\r\n\r\nno key"
    done = load(lambda: Says(answer), PLAIN)
    assert done.latencies == []
    assert (done.rate, done.latency_ms(50)) == (None, None)
    assert "most often: status 401: no key" in (done.complaint() or "")


def test_a_stream_that_breaks_off_is_a_failure_and_its_events_count() -> None:
    done = load(lambda: Says(CUT_STREAM), SHORT_STREAM, stream=True)
    assert done.latencies == []
    assert done.events == done.failures.total() > 0
    assert "closed before the answer was whole" in (done.complaint() or "")


def test_a_server_that_never_answers_does_not_keep_the_load() -> None:
    done = load(asyncio.Protocol, PLAIN, patience=0.1)
    assert done.complaint() == "3 of 3 requests failed, most often: no whole answer 0.1 s after the end"


def test_a_port_where_nobody_listens_is_a_failure() -> None:
    async def main() -> str | None:
        async with serving(asyncio.Protocol) as target:
            pass
        return await ask_once(target, PLAIN, seconds=5)

    assert asyncio.run(main()) == "no connection"


def test_asking_once_reports_what_was_wrong() -> None:
    async def main(make: Callable[[], asyncio.Protocol]) -> str | None:
        async with serving(make) as target:
            return await ask_once(target, PLAIN, seconds=0.2)

    assert asyncio.run(main(Upstream)) is None
    assert asyncio.run(main(asyncio.Protocol)) == "no answer after 0.2 s"


def test_streams_are_held_open_after_their_first_event() -> None:
    held = hold(Upstream, 20)
    assert held.streams == 20
    assert not held.failures


def test_streams_that_cannot_be_opened_are_told() -> None:
    held = hold(asyncio.Protocol, 4, seconds=0.1)
    assert held.streams == 0
    assert held.per_stream is None
    assert held.failures == {"not open after 0.1 s": 4}


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs /proc")
@pytest.mark.parametrize("measure", [upload_peak, download_peak])
def test_a_large_body_passes_whole_and_has_a_peak(measure: Callable[..., object]) -> None:
    async def main() -> object:
        async with serving(Upstream) as target:
            return await measure(target, ProcessTree(os.getpid()), "bench", SMALL, 10)  # type: ignore[misc]

    peak = asyncio.run(main())
    assert isinstance(peak, int)
    assert peak > SMALL


def test_an_upload_that_is_refused_midway_tells_the_refusal() -> None:
    refusal = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"

    async def main() -> None:
        async with serving(lambda: Says(refusal)) as target, connected(target) as connection:
            answer = await connection.upload(iter([target.head(10 * SMALL), *[b"x" * SMALL] * 10]))
            assert answer.status == 413

    asyncio.run(main())


def test_a_closed_connection_answers_nothing() -> None:
    async def main() -> None:
        once = Says(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        async with serving(lambda: once) as target, connected(target) as connection:
            await connection.ask(target.request(PLAIN))
            with pytest.raises(BadAnswer, match="closed"):
                await connection.ask(target.request(PLAIN))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("user", "plan"),
    [
        ("somebody", Plan()),
        ("benchmark events=3 interval=0.5", Plan(events=3, interval=0.5)),
        ("benchmark hold", Plan(events=None)),
        ("benchmark bytes=65537", Plan(events=2, large=True)),
    ],
)
def test_the_upstream_does_what_the_user_field_says(user: str, plan: Plan) -> None:
    assert read_plan(chat("bench", max_tokens=1, stream=True, plan=user)) == plan
