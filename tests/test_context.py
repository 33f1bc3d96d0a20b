"""What a request's context says of its times."""

from __future__ import annotations

import pytest

from twisted_vllm.context import Peer, RequestContext


def received_at(now: float) -> RequestContext:
    context = RequestContext(Peer("192.0.2.1", False), now - 1.0)
    context.received = now
    return context


def test_the_wait_for_a_busy_server_is_not_the_gateway_s_own_time() -> None:
    context = received_at(100.0)
    context.add_wait(20.0)
    context.attempted = 120.002
    assert context.queued == 20.0
    assert context.overhead == pytest.approx(0.002)


def test_a_second_wait_adds_to_the_first_and_changes_nothing_of_the_gateway_s_own_time() -> None:
    context = received_at(100.0)
    context.add_wait(20.0)
    context.attempted = 120.002
    # the server failed, and the others were busy too
    context.add_wait(3.0)
    assert context.queued == 23.0
    assert context.overhead == pytest.approx(0.002)


def test_a_request_that_waits_only_after_its_first_attempt_has_its_own_time_too() -> None:
    context = received_at(100.0)
    context.attempted = 100.002
    context.add_wait(3.0)
    assert context.queued == 3.0
    assert context.overhead == pytest.approx(0.002)


def test_a_request_that_was_not_passed_on_has_no_overhead() -> None:
    context = received_at(100.0)
    context.add_wait(2.0)
    assert context.overhead is None
