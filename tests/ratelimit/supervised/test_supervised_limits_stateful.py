"""Workers that come, ask, end and die in any order, beside one limiter that is told the same at once."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.defer import Deferred

from tests.ratelimit.supervised.gateway_in_memory import GatewayInMemory, Worker
from twisted_vllm.errors import BudgetExceeded, RateLimitExceeded
from twisted_vllm.ratelimit.allowance import Allowance, Limited
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.ratelimit.reservation import Reservation

SUBJECTS = [
    Limited("key", "k1", Allowance(rpm=7, parallel=3, max_budget=60)),
    Limited("key", "k2", Allowance(tpm=40, model_rpm={"m": 3}, max_budget=30, budget_duration="1h")),
    Limited("team", "t1", Allowance(rpm=9, parallel=5, tpm=90, max_budget=90)),
]


@attrs.define(eq=False)
class Asked:
    """A request of a worker: in the gateway, and in the model once it was delivered."""

    worker: int
    #: subjects, model, tokens and cost
    words: tuple[list[Limited], str, int, int]
    waiting: Any = None
    answer: list[Any] = attrs.Factory(list)
    model: Any = None
    is_delivered: bool = False
    is_settled: bool = False


class Workers(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.gateway = GatewayInMemory()
        self.model = LocalLimiter()
        self.number = 0
        self.asked: list[Asked] = []
        #: what each worker has sent, in order, and the supervisor has not received
        self.sent: dict[int, list[Any]] = {}
        for _ in range(2):
            self.a_worker_starts()

    @property
    def now(self) -> float:
        return self.gateway.now

    def worker(self, which: int) -> Worker:
        numbers = sorted(self.sent)
        return self.gateway.workers[numbers[which % len(numbers)]]

    @precondition(lambda self: len(self.sent) < 4)
    @rule()
    def a_worker_starts(self) -> None:
        self.number += 1
        self.gateway.start(self.number, self.number)
        self.sent[self.number] = []

    @rule(
        which=st.integers(0, 3),
        subjects=st.lists(st.sampled_from(SUBJECTS), min_size=1, unique_by=lambda each: each.id),
        tokens=st.integers(0, 20),
        cost=st.integers(0, 20),
    )
    def a_request_comes(self, which: int, subjects: list[Limited], tokens: int, cost: int) -> None:
        worker = self.worker(which)
        asked = Asked(worker.number, (subjects, "m", tokens, cost))
        waiting: Any = worker.counting.limiter.admit(*asked.words, now=self.now)
        assert isinstance(waiting, Deferred)
        waiting.addCallbacks(asked.answer.append, lambda failure: asked.answer.append(failure.value))
        self.asked.append(asked)
        self.sent[worker.number].append(("admit", asked))
        asked.waiting = waiting

    @precondition(lambda self: self.asked)
    @rule(which=st.integers(0), tokens=st.integers(0, 30), cost=st.integers(0, 30), sent=st.booleans())
    def a_request_ends(self, which: int, tokens: int, cost: int, sent: bool) -> None:
        asked = self.asked[which % len(self.asked)]
        if asked.worker not in self.sent or asked.is_settled:
            return
        worker = self.gateway.workers[asked.worker]
        if not asked.answer:
            # its client has gone
            asked.waiting.cancel()
            tokens, cost, sent = 0, 0, False
        elif isinstance(asked.answer[0], Reservation):
            worker.counting.limiter.settle(asked.answer[0], tokens, cost, 0.0, sent=sent)
        else:
            return
        asked.is_settled = True
        self.sent[asked.worker].append(("settle", asked, tokens, cost, sent))

    @rule(which=st.integers(0, 3))
    def the_supervisor_hears_a_worker(self, which: int) -> None:
        worker = self.worker(which)
        worker.deliver()
        self.hear(worker.number)

    def hear(self, number: int) -> None:
        for act, asked, *words in self.sent[number]:
            if act == "admit":
                asked.is_delivered = True
                try:
                    limited, model, tokens, cost = asked.words
                    asked.model = self.model.admit(limited, model, tokens, cost, self.now)
                except (RateLimitExceeded, BudgetExceeded) as error:
                    asked.model = error
            elif isinstance(asked.model, Reservation):
                used, spent, sent = words
                self.model.settle(asked.model, used, spent, self.now, sent=sent)
        self.sent[number].clear()

    @rule(which=st.integers(0, 3))
    def a_worker_hears_the_supervisor(self, which: int) -> None:
        worker = self.worker(which)
        worker.receive()
        for asked in self.asked:
            if asked.worker == worker.number and asked.is_delivered and not asked.is_settled:
                [answer] = asked.answer
                if isinstance(asked.model, Reservation):
                    assert answer.requests_left == asked.model.requests_left
                    assert answer.tokens_left == asked.model.tokens_left
                else:
                    assert vars(answer) == vars(asked.model)

    @precondition(lambda self: len(self.sent) > 1)
    @rule(which=st.integers(0, 3))
    def a_worker_is_killed(self, which: int) -> None:
        number = self.worker(which).number
        # what it has not sent is lost
        del self.sent[number]
        self.gateway.kill(number)
        for asked in self.asked:
            if asked.worker == number and isinstance(asked.model, Reservation):
                self.model.settle(asked.model, asked.model.tokens, 0, self.now)
        self.asked = [asked for asked in self.asked if asked.worker != number]

    @rule(seconds=st.sampled_from([0.1, 20.0, 61.0, 3600.0]))
    def time_passes(self, seconds: float) -> None:
        self.gateway.now += seconds

    @invariant()
    def both_have_the_same(self) -> None:
        limiter = self.gateway.limiter
        assert (limiter.in_flight, limiter.reserved, limiter.spent) == (
            self.model.in_flight,
            self.model.reserved,
            self.model.spent,
        )
        for subject in SUBJECTS:
            assert limiter.used(subject, "m", self.now) == self.model.used(subject, "m", self.now)

    def teardown(self) -> None:
        for number in list(self.sent):
            self.gateway.kill(number)
        assert (self.gateway.limiter.in_flight, self.gateway.limiter.reserved) == (0, 0)


TestWorkers = Workers.TestCase
TestWorkers.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
