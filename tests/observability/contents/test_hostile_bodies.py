"""What hostile bodies and endless streams cost: little memory, and little time in one step."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from tests.observability.contents.test_folding import delta, stream
from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.observability.contents.folding import CHUNKS
from twisted_vllm.observability.contents.gathered import BATCH, Caps, Gathered, Memory
from twisted_vllm.observability.contents.redaction import Redaction, Secrets
from twisted_vllm.observability.contents.rendering import render
from twisted_vllm.observability.logging.redaction import Redactor

#: bytes of a hostile body, and how many of them there are
LARGE, MANY = 50_000_000, 200
CAPS = Caps(65_536, 65_536)
#: seconds of CPU that a step may take: 4 ms were measured
LONGEST_STEP = 0.1
#: how often each step is measured: what else the machine does slows one down, and not the same one each time
ROUNDS = 3

#: made when a test needs one
BODIES: dict[str, Callable[[], bytes]] = {
    "one text": lambda: b'{"messages": [{"role": "user", "content": "%b"}]}' % (b"word " * (LARGE // 5)),
    "one medium": lambda: b'{"messages": [{"content": "data:image/png;base64,%b"}]}' % (b"iVBORw0K" * (LARGE // 8)),
    "media": lambda: b'{"messages": [%b]}' % b",".join([b'{"content": "%b"}' % (b"iVBORw0K" * 625)] * (LARGE // 5_030)),
    "escapes": lambda: b'{"messages": [{"content": "%b"}]}' % (b"\\n\\u00e4" * (LARGE // 8)),
    "quotes": lambda: b'{"messages": [%b]}' % b",".join([b'""'] * (LARGE // 3)),
    "backslashes": lambda: b'{"a": "%b"}' % (b"\\\\" * (LARGE // 2)),
    "no JSON": lambda: b'"' * LARGE,
}


def body_of(data: bytes) -> HeldBody:
    """Return a large body as the gateway holds it; what reads it for its model is not measured here."""
    body = HeldBody(is_json=False)
    for at in range(0, len(data), 1_048_576):
        body.append(data[at : at + 1_048_576])
    return body


def steps(gathered: Gathered) -> Iterator[float]:
    """Yield the seconds of each step in which the JSON is made."""
    redactor = Redactor(["sk-a-secret-of-the-gateway"])
    secrets = Secrets(redactor, redactor.may_change, ("sk-the-caller-s-own-key",))
    making = render(gathered, Redaction((), ("email", "credit_card")), secrets, allows_no_log=False)
    while True:
        began = time.thread_time()
        try:
            next(making)
        except StopIteration as end:
            assert end.value is None or len(bytes(end.value)) < 8 * (CAPS.prompt + CAPS.answer)
            return
        finally:
            yield time.thread_time() - began


def longest_step(measured: Callable[[], Iterator[float]]) -> float:
    """Return the seconds of the step that takes longest, each in its fastest round, without the garbage collector."""
    gc.disable()
    try:
        rounds = [list(measured()) for _ in range(ROUNDS)]
    finally:
        gc.enable()
    of_each_step: Iterator[tuple[float, ...]] = zip(*rounds, strict=True)
    return max(map(min, of_each_step))


@pytest.mark.parametrize("kind", BODIES)
def test_hostile_bodies_keep_little_and_take_no_long_step(kind: str) -> None:
    body = body_of(BODIES[kind]())
    memory = Memory(8_000_000)
    kept: list[Gathered] = []

    def measured() -> Iterator[float]:
        gathered = Gathered("full", CHUNKS, CAPS, memory)
        began = time.thread_time()
        gathered.take_json(body)
        yield time.thread_time() - began
        yield from steps(gathered)
        gathered.release()

    longest = longest_step(measured)
    print(f"{kind}: longest step {longest * 1000:.1f} ms")
    assert longest < LONGEST_STEP
    tracemalloc.start()
    try:
        for _ in range(MANY if kind in ("one text", "one medium") else 20):
            gathered = Gathered("full", CHUNKS, CAPS, memory)
            gathered.take_json(body)
            kept.append(gathered)
        assert memory.used <= 8_000_000
        assert sum(len(each.prompt) for each in kept) == memory.used
        used, _ = tracemalloc.get_traced_memory()
        assert used < 9_000_000
    finally:
        tracemalloc.stop()
    kept.clear()
    del gathered
    assert memory.used == 0


def test_endless_streams_keep_little() -> None:
    memory = Memory(2_000_000)
    streams = []
    for _ in range(MANY):
        gathered = Gathered("full", CHUNKS, CAPS, memory)
        gathered.start(ResponseHead(200, b"OK", [(b"content-type", b"text/event-stream")]))
        streams.append(gathered)
    event = stream(delta(content="and on "), end=False)
    tracemalloc.start()
    try:
        for _ in range(500):
            for gathered in streams:
                gathered.feed(event)
                assert memory.used <= 2_000_000 + BATCH + len(event) + 64
        used, _ = tracemalloc.get_traced_memory()
        assert used < 6_000_000
    finally:
        tracemalloc.stop()
    assert longest_step(lambda: steps(streams[0])) < LONGEST_STEP
