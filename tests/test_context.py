"""What is known of a request: how it ended."""

from __future__ import annotations

import pytest

from twisted_vllm.context import Peer, RequestContext
from twisted_vllm.errors import (
    Draining,
    FormSpoolFull,
    GatewayError,
    LimitsUnavailable,
    NoRoomForBody,
    OutOfSockets,
    ReportsBusy,
    ReportTimeout,
    ServerBusy,
    StoreUnavailable,
)


def outcome_of(error: type[GatewayError]) -> str:
    context = RequestContext(Peer("192.0.2.1", False), 10.0)
    context.status, context.error_code = error.status, error.code
    context.finish(11.0, answered=True, drained=False, bytes_in=0, bytes_out=100, body_complete=True)
    return context.outcome


@pytest.mark.parametrize("error", [Draining, FormSpoolFull, NoRoomForBody, OutOfSockets, ReportsBusy, ServerBusy])
def test_a_request_that_finds_the_gateway_full_is_refused_and_not_a_fault(error: type[GatewayError]) -> None:
    assert outcome_of(error) == "refused"


@pytest.mark.parametrize("error", [LimitsUnavailable, StoreUnavailable, ReportTimeout])
def test_a_request_that_something_broken_ended_has_failed(error: type[GatewayError]) -> None:
    assert outcome_of(error) == "failed"
