"""What a traced request takes of the room of its queue."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgspec

from tests.observability.request_events import request_event
from twisted_vllm.observability.request_event import Attempt
from twisted_vllm.observability.tracing.traced_request import TracedRequest


def traced(number: int, **changes: Any) -> TracedRequest:
    return TracedRequest(request_event(request_id=f"req-{number}", **changes))


def hostile(number: int) -> TracedRequest:
    # as long as the gateway keeps any, of characters that take four bytes each
    text = chr(0x1F600) * 500 + str(number)
    return traced(
        number,
        model=text,
        end_user=text + "a",
        session_id=text + "b",
        route=text + "c",
        fallback=text + "d",
        metadata=text + "e",
        tags=tuple(chr(0x1F600) * 120 + f"{number} {tag}" for tag in range(16)),
        attempts=tuple(Attempt(f"gpu-{each}", 1.0 + number, 2.0 + number, 503, "status_503") for each in range(10)),
    )


def test_whatever_a_client_sends_takes_no_more_memory_than_is_counted() -> None:
    for make in (traced, hostile):
        tracemalloc.start()
        made = [make(number) for number in range(200)]
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        counted = sum(each.size for each in made)
        assert taken <= counted <= 12 * taken


def test_the_prompt_counts_too() -> None:
    prompt = msgspec.Raw(b'"' + b"a" * 10_000 + b'"')
    assert traced(1, contents=prompt).size - traced(1).size == 10_002
