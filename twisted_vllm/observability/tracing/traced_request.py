"""The item of the queues of traces."""

from __future__ import annotations

from sys import getsizeof

import msgspec

from twisted_vllm.observability.request_event import RequestEvent

#: about what a request takes in memory without what its client chose, in bytes, and one attempt of it
EVENT_BYTES, ATTEMPT_BYTES = 3_000, 250


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

    @property
    def size(self) -> int:
        """About what it takes in memory, in bytes: its client chooses much of that."""
        event = self.event
        chosen = (event.metadata, event.model, event.route, event.end_user, event.session_id, event.fallback)
        size = EVENT_BYTES + ATTEMPT_BYTES * len(event.attempts) + sum(map(getsizeof, chosen))
        if event.tags:
            size += sum(map(getsizeof, event.tags))
        return size if event.contents is None else size + len(event.contents)
