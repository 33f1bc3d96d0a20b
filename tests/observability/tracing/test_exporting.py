"""Spans as a collector gets them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

pytest.importorskip("opentelemetry.sdk")

from tests.observability.request_events import request_event
from tests.observability.tracing.test_spans import OK, OWN, TRACE
from tests.otlp_receiver import OtlpReceiver, http_receiver
from twisted_vllm.config.tracing_destinations import TraceDestination
from twisted_vllm.observability.tracing.attributes import CONVENTIONS
from twisted_vllm.observability.tracing.exporting import SpanDestination
from twisted_vllm.observability.tracing.traced_request import TracedRequest

HUGE = b"1" + b"0" * 400
HALF = "a \ud83d b"


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with http_receiver() as found:
        yield found


def traced(**changes: Any) -> TracedRequest:
    return TracedRequest(request_event(**{"trace_id": TRACE, "span_id": OWN, "attempts": (OK,), **changes}))


def contents(parameters: bytes) -> msgspec.Raw:
    return msgspec.Raw(b'{"mode":"full","input":"Hi","output":null,"parameters":' + parameters + b"}")


@pytest.mark.parametrize(
    "changes",
    [
        {"model": HALF},
        {"fallback": HALF},
        {"end_user": HALF, "tags": (HALF,), "session_id": HALF, "metadata": HALF},
        {"max_tokens": 10**400},
        {"contents": contents(b'{"temperature":' + HUGE + b"}")},
        {"contents": contents(b'{"seed":' + HUGE + b',"n":' + HUGE + b"}")},
    ],
)
def test_whatever_a_tenant_sends_its_spans_and_those_of_others_arrive(
    receiver: OtlpReceiver, changes: dict[str, Any]
) -> None:
    destination = SpanDestination(
        TraceDestination("otlp", "http", f"{receiver.url}/v1/traces", {}, tuple(CONVENTIONS), timeout=2.0), {}
    )
    destination.deliver([traced(), traced(**changes)])
    destination.close()
    assert [span.name.split(" ")[0] for span in receiver.spans()] == ["POST", "chat"] * 2
