"""The item of the queues of traces."""

from __future__ import annotations

import msgspec

from twisted_vllm.observability.request_event import RequestEvent


class TracedRequest(msgspec.Struct, frozen=True, gc=False):
    """A finished request that gets spans.

    Attributes:
        event: the request; it has the ids of its spans.
        parent_id: the id of the caller's span; empty without one.
        state: the ``tracestate``; empty without one.
    """

    event: RequestEvent
    parent_id: str = ""
    state: str = ""
