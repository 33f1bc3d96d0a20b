"""Makes requests in flight as they are told."""

from __future__ import annotations

from typing import Any

import msgspec

from twisted_vllm.observability.live_requests import LiveRequest

_REQUEST = LiveRequest(
    request_id="",
    started=0.0,
    state="streaming",
    key_name="alias",
    key_prefix="0123abcd",
    user_id="ada",
    team_id="",
    model="m",
    server="gpu-1:8000",
    route="/v1/chat/completions",
    age=1.0,
    first_byte=0.1,
    queue_place=None,
    tokens=3,
    prompt_tokens=10,
    bytes_in=100,
    bytes_out=200,
    stream=True,
    client="192.0.2.1",
    attempts=1,
)


def live_request(request_id: str, **changed: Any) -> LiveRequest:
    """Return a request in flight."""
    return msgspec.structs.replace(_REQUEST, request_id=request_id, **changed)
