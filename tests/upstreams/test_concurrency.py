"""The concurrency limiter and its queue: never too many, never out of turn, and nothing freed twice or lost."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from twisted_vllm.upstreams.concurrency import ConcurrencyLimiter, Decision


class Interleavings(RuleBasedStateMachine):
    """Requests that ask, end, give up and time out in any order, beside a plain model of what must come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.limiter: ConcurrencyLimiter[int] = ConcurrencyLimiter(1, 0)
        self.limit = 1
        self.most = 0
        self.running: list[int] = []
        self.queue: list[int] = []
        self.gone: list[int] = []
        self.granted: list[int] = []
        self.asked = 0

    @initialize(limit=st.integers(1, 4), most=st.integers(0, 4))
    def begin(self, limit: int, most: int) -> None:
        self.limit, self.most = limit, most
        self.limiter = ConcurrencyLimiter(limit, most)

    @rule()
    def ask(self) -> None:
        ticket = self.asked
        self.asked += 1
        decision = self.limiter.acquire(ticket)
        if len(self.running) < self.limit:
            assert decision is Decision.GRANTED
            self.running.append(ticket)
            self.granted.append(ticket)
        elif len(self.queue) < self.most:
            assert decision is Decision.QUEUED
            self.queue.append(ticket)
        else:
            assert decision is Decision.REFUSED
            self.gone.append(ticket)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.running))
        self.running.remove(ticket)
        self.gone.append(ticket)
        following = self.limiter.release(ticket)
        if self.queue:
            assert following == self.queue.pop(0), "out of turn"
            self.running.append(following)
            self.granted.append(following)
        else:
            assert following is None

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def cancel_or_time_out(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.queue))
        self.queue.remove(ticket)
        self.gone.append(ticket)
        assert self.limiter.release(ticket) is None

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def leave_again(self, data: st.DataObject) -> None:
        assert self.limiter.release(data.draw(st.sampled_from(self.gone))) is None

    @invariant()
    def as_the_model_says(self) -> None:
        assert repr(self.limiter) == (
            f"<ConcurrencyLimiter {len(self.running)} of {self.limit} taken, {len(self.queue)} of {self.most} wait>"
        )

    @invariant()
    def nobody_waits_while_there_is_room(self) -> None:
        assert not self.queue or len(self.running) == self.limit

    @invariant()
    def everybody_is_granted_once_and_in_turn(self) -> None:
        assert self.granted == sorted(set(self.granted))

    def teardown(self) -> None:
        """All that were taken in are done in the end, and nothing is left taken."""
        while self.running:
            ticket = self.running.pop()
            following = self.limiter.release(ticket)
            if following is not None:
                self.queue.remove(following)
                self.running.append(following)
        assert self.queue == []
        assert repr(self.limiter) == f"<ConcurrencyLimiter 0 of {self.limit} taken, 0 of {self.most} wait>"


Interleavings.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestInterleavings = Interleavings.TestCase


@pytest.mark.parametrize("count", [1, 3])
def test_without_a_queue_one_too_many_is_refused(count: int) -> None:
    limiter: ConcurrencyLimiter[int] = ConcurrencyLimiter(count, 0)
    assert [limiter.acquire(ticket) for ticket in range(count + 1)] == [Decision.GRANTED] * count + [Decision.REFUSED]
