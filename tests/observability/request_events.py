"""Events of requests for tests."""

from __future__ import annotations

from typing import Any

import msgspec

from twisted_vllm.observability.request_event import Attempt, RequestEvent

STARTED = 1_796_000_000.0


def request_event(**changes: Any) -> RequestEvent:
    """The event of a streamed chat that was answered, with some attributes changed."""
    known: dict[str, Any] = {
        "time": "2026-11-30T00:53:20.000Z",
        "request_id": "req-1",
        "client": "192.0.2.1",
        "key_name": "team-a",
        "key_hash": "0123abcd",
        "key_id": "key-1",
        "method": "POST",
        "route": "/v1/chat/completions",
        "route_class": "inference",
        "model": "llama",
        "group": "llama",
        "server": "gpu-1:8000",
        "status": 200,
        "outcome": "completed",
        "total_ms": 900.0,
        "started": STARTED,
        "ended": STARTED + 0.9,
        "stream": True,
        "prompt_tokens": 23,
        "cached_tokens": 16,
        "completion_tokens": 7,
        "reasoning_tokens": 2,
        "total_tokens": 30,
        "cost_usd": 0.00123,
        "first_byte_ms": 250.0,
        "max_tokens": 50,
        "response_id": "chatcmpl-1",
        "attempts": (Attempt("gpu-1:8000", STARTED + 0.1, STARTED + 0.9, 200),),
    }
    return RequestEvent(**known | changes)


def contents(input: Any, output: Any, **more: Any) -> msgspec.Raw:
    """The prompt and the answer of an event."""
    return msgspec.Raw(msgspec.json.encode({"input": input, "output": output, **more}))
