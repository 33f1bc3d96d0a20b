"""Finished requests for the tests of sinks."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.observability.test_request_events import event
from tests.observability.test_request_records import forwarded, request
from twisted_vllm.context import RequestContext
from twisted_vllm.observability.request_event import RequestEvent
from twisted_vllm.usage.records import Usage


def made(**changes: Any) -> RequestContext:
    """Return a request that was sent and answered."""
    found = forwarded(request(), model="qwen")
    found.sent = True
    found.usage, found.cost = Usage(7, 2, 5, 1, 12), 3_000_000_000
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def told(**changes: Any) -> RequestEvent:
    """Return the event of such a request."""
    contents = changes.pop("contents", None)
    found = event(made(**changes))
    return found if contents is None else msgspec.structs.replace(found, contents=msgspec.Raw(contents))
