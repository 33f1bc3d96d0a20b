"""The limiter of workers: the contract, the same answers as in one process, and processes that end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred

from tests.conftest import LoggedFailures
from tests.ratelimit.limiter_contract import NOON, LimiterContract, key
from tests.ratelimit.supervised.gateway_in_memory import HOUSEKEEPER, GatewayInMemory, Worker
from twisted_vllm.errors import BudgetExceeded, GatewayError, LimitsUnavailable, RateLimitExceeded
from twisted_vllm.ratelimit.allowance import Allowance, Limited, ModelBudget
from twisted_vllm.ratelimit.budgets import Budget
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.ratelimit.reservation import Reservation
from twisted_vllm.ratelimit.supervised.budget_copies import BudgetCopies
from twisted_vllm.ratelimit.supervised.messages import Operation, error_of, refusal
from twisted_vllm.ratelimit.supervised.questions import LATE_SECONDS
from twisted_vllm.ratelimit.supervised.subjects import Subjects

DAY = 86_400
MIDNIGHT = int(NOON) - DAY // 2


class SupervisedDriver:
    """Two workers, which take turns."""

    def __init__(self) -> None:
        self.gateway = GatewayInMemory()
        self.workers = [self.gateway.start(1), self.gateway.start(2, 2)]
        self.turn = 0
        self.admitted_by: dict[int, Worker] = {}

    @property
    def now(self) -> float:
        return self.gateway.now

    @now.setter
    def now(self, now: float) -> None:
        self.gateway.now = now

    async def admit(self, limited: Sequence[Limited], model: str, tokens: int, cost: int) -> Reservation:
        self.turn += 1
        worker = self.workers[self.turn % 2]
        admitted: Any = worker.counting.limiter.admit(limited, model, tokens, cost, 0.0)
        worker.exchange()
        reservation: Reservation = await admitted if isinstance(admitted, Deferred) else admitted
        self.admitted_by[id(reservation)] = worker
        return reservation

    async def settle(self, reservation: Reservation, tokens: int, cost: int) -> None:
        worker = self.admitted_by[id(reservation)]
        worker.counting.limiter.settle(reservation, tokens, cost, 0.0)
        worker.exchange()

    def check(self, limited: Sequence[Limited]) -> None:
        self.workers[0].counting.limiter.check(limited, 0.0)

    async def would_admit(self, limited: Sequence[Limited], model: str, tokens: int, cost: int) -> None:
        trial: Any = self.workers[1].counting.limiter.would_admit(limited, model, tokens, cost, 0.0)
        self.workers[1].exchange()
        await trial


class TestSupervisedLimiter(LimiterContract):
    @pytest.fixture
    def driver(self) -> SupervisedDriver:
        return SupervisedDriver()


def admit(worker: Worker, *limited: Limited, tokens: int = 0, cost: int = 0) -> Deferred[Reservation]:
    admitted = worker.counting.limiter.admit(limited, "m", tokens, cost, 0.0)
    assert isinstance(admitted, Deferred)
    return admitted


def result_of(asked: Deferred[Any]) -> Any:
    """What a Deferred has: its result or its error."""
    found: list[Any] = []
    asked.addCallbacks(found.append, lambda failure: found.append(failure.value))
    [result] = found
    return result


def admitted(worker: Worker, *limited: Limited, tokens: int = 0, cost: int = 0) -> Any:
    asked = admit(worker, *limited, tokens=tokens, cost=cost)
    worker.exchange()
    return result_of(asked)


class TestMessages:
    def test_nobody_is_asked_about_requests_without_limits(self) -> None:
        worker = GatewayInMemory().start(1)
        reservation = worker.counting.limiter.admit((), "m", 10, 10, NOON)
        assert isinstance(reservation, Reservation)
        worker.counting.limiter.settle(reservation, 10, 10, NOON)
        worker.end_turn()
        assert not worker.outbox

    def test_all_of_one_turn_is_one_message_and_a_subject_is_sent_once(self) -> None:
        worker, who = GatewayInMemory().start(1), key(rpm=100)
        asked = [admit(worker, who) for _ in range(10)]
        worker.end_turn()
        assert len(worker.outbox) == 1
        worker.exchange()
        for each in asked:
            worker.counting.limiter.settle(result_of(each), 1, 1, 0.0)
        # an equal one, as of another key of the same team
        admit(worker, key(rpm=100))
        worker.end_turn()
        [(_, data)] = worker.outbox
        assert b"rpm" not in data

    def test_a_subject_whose_limits_changed_is_sent_again(self) -> None:
        worker = GatewayInMemory().start(1)
        assert isinstance(admitted(worker, key(rpm=1)), Reservation)
        assert isinstance(admitted(worker, key(rpm=1)), RateLimitExceeded)
        assert isinstance(admitted(worker, key(rpm=2)), Reservation)

    def test_the_numbers_of_subjects_are_bounded(self) -> None:
        sent: list[tuple[Any, ...]] = []
        subjects = Subjects(sent.append, most=10)
        often = Limited("key", "often", Allowance(rpm=1))
        known: set[int] = set()
        for number in range(1000):
            named = [subjects.number_of(often), subjects.number_of(Limited("key", str(number), Allowance(rpm=1)))]
            for operation in sent:
                if operation[0] == Operation.DEFINE:
                    known.add(operation[1])
                else:
                    known.difference_update(operation[1:])
            sent.clear()
            assert known.issuperset(named)
            assert len(known) == len(subjects) <= 10
        assert subjects.number_of(often) == 1

    def test_a_subject_that_was_forgotten_is_sent_again_and_counted_on(self) -> None:
        gateway = GatewayInMemory()
        worker, who = gateway.start(1), key("often", rpm=2)
        worker.counting.limiter._subjects = Subjects(worker.counting.limiter._questions.add, most=4)
        assert isinstance(admitted(worker, who), Reservation)
        for number in range(50):
            assert isinstance(admitted(worker, key(str(number), rpm=1), key(f"{number}b", rpm=1)), Reservation)
        assert isinstance(admitted(worker, who), Reservation)
        assert isinstance(admitted(worker, who), RateLimitExceeded)

    def test_numbers_of_any_size_arrive(self) -> None:
        worker = GatewayInMemory().start(1)
        huge = 10**30
        who = key(max_budget=huge, tpm=huge)
        first = admitted(worker, who, tokens=huge - 1, cost=huge - 1)
        assert first.tokens_left == (huge, 1, 60.0)
        assert isinstance(admitted(worker, who, tokens=1, cost=2), BudgetExceeded)
        worker.counting.limiter.settle(first, huge * 5, huge * 5, 0.0)
        assert admitted(worker, who, cost=1).message.startswith("Budget has been exceeded! Current cost: 5000000000")

    def test_an_operation_that_cannot_be_done_fails_alone(self, logged_failures: LoggedFailures) -> None:
        worker = GatewayInMemory().start(1)
        broken = Limited("key", "k2", Allowance(max_budget=1, budget_duration="never"))
        bad, good = admit(worker, broken), admit(worker, key(rpm=1))
        worker.exchange()
        assert isinstance(result_of(bad), LimitsUnavailable)
        assert isinstance(result_of(good), Reservation)
        assert logged_failures.flush(ValueError)


texts = st.text(max_size=20)
refusals = st.builds(
    RateLimitExceeded,
    texts,
    param=st.none() | texts,
    retry_after=st.none() | st.integers(0),
    limit_headers=st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=6),
) | st.builds(BudgetExceeded, texts, param=st.none() | texts, retry_after=st.none() | st.integers(0))


class TestSameAnswers:
    @given(refusals)
    def test_an_error_arrives_as_it_was_raised(self, error: RateLimitExceeded | BudgetExceeded) -> None:
        number, _, *words = refusal(7, error)
        assert number == 7
        found = error_of(words)
        assert type(found) is type(error)
        assert vars(found) == vars(error)
        assert (found.headers(), found.body(), str(found)) == (error.headers(), error.body(), str(error))

    few = st.none() | st.integers(0, 4)
    allowances = st.builds(
        Allowance,
        rpm=few,
        tpm=st.none() | st.integers(0, 30),
        parallel=few,
        model_rpm=st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 3), max_size=2),
        model_tpm=st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 20), max_size=2),
        max_budget=st.none() | st.integers(0, 30),
        soft_budget=st.none() | st.integers(0, 30),
        budget_duration=st.sampled_from([None, "1h"]),
        model_budgets=st.dictionaries(st.just("a"), st.builds(ModelBudget, st.integers(0, 9)), max_size=1),
    )
    subjects = st.builds(Limited, st.sampled_from(["key", "team"]), st.sampled_from(["x", "y"]), allowances)
    acts = st.one_of(
        st.tuples(
            st.just("admit"),
            st.lists(subjects, min_size=1, max_size=3, unique_by=lambda each: (each.kind, each.id)),
            st.sampled_from(["a", "b", ""]),
            st.integers(0, 9),
            st.integers(0, 9),
        ),
        st.tuples(st.just("settle"), st.integers(0), st.integers(0, 20), st.integers(0, 20), st.booleans()),
        st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 29.0, 60.0, 3600.0])),
        st.tuples(st.just("reset"), st.sampled_from(["x", "y"]), st.integers(0, 20)),
        st.tuples(st.just("forget"), st.sampled_from(["x", "y"])),
    )

    @given(st.lists(acts, max_size=25))
    def test_both_limiters_answer_alike(self, acts: list[Any]) -> None:
        gateway, local = GatewayInMemory(), LocalLimiter()
        worker = gateway.start(1)
        both: list[tuple[Reservation, Reservation]] = []
        for act, *words in acts:
            if act == "admit":
                found = admitted_with(worker, *words)
                limited, model, estimate, expected_cost = words
                try:
                    expected: Any = local.admit(limited, model, estimate, expected_cost, gateway.now)
                except GatewayError as error:
                    assert type(found) is type(error)
                    assert vars(found) == vars(error)
                else:
                    assert (found.requests_left, found.tokens_left) == (expected.requests_left, expected.tokens_left)
                    assert found.key_spend == expected.key_spend
                    assert found.lines == expected.lines
                    both.append((found, expected))
            elif act == "settle" and both:
                which, tokens, cost, sent = words
                mine, theirs = both[which % len(both)]
                worker.counting.limiter.settle(mine, tokens, cost, 0.0, sent=sent)
                local.settle(theirs, tokens, cost, gateway.now, sent=sent)
            elif act == "wait":
                worker.exchange()
                gateway.now += words[0]
            elif act == "reset":
                start = int(gateway.now) // 3600 * 3600
                for limiter in (worker.counting.limiter, local):
                    limiter.budget_reset("key", words[0], words[1], start)
            elif act == "forget":
                for limiter in (worker.counting.limiter, local):
                    limiter.budget_forgotten("key", words[0])
        worker.exchange()
        assert gateway.limiter.in_flight == local.in_flight
        assert (gateway.limiter.spent, gateway.limiter.reserved) == (local.spent, local.reserved)


def admitted_with(worker: Worker, limited: Any, model: str, tokens: int, cost: int) -> Any:
    asked = worker.counting.limiter.admit(limited, model, tokens, cost, 0.0)
    worker.exchange()
    assert isinstance(asked, Deferred)
    return result_of(asked)


class TestEnds:
    def test_what_a_worker_held_is_released_when_it_ends_and_its_requests_stay_counted(self) -> None:
        gateway = GatewayInMemory()
        first, second = gateway.start(1), gateway.start(2)
        who = key(parallel=3, rpm=4, tpm=100, max_budget=30)
        for _ in range(3):
            assert isinstance(admitted(first, who, tokens=10, cost=10), Reservation)
        assert isinstance(admitted(second, who, tokens=10, cost=10), GatewayError)
        gateway.kill(1)
        assert (gateway.limiter.in_flight, gateway.limiter.reserved) == (0, 0)
        assert gateway.limiter.used(who, "m", gateway.now) == {"rpm": 3, "tpm": 30}
        last = admitted(second, who, tokens=10, cost=10)
        assert isinstance(last, Reservation)
        assert isinstance(admitted(second, who), RateLimitExceeded)
        # once: whoever is in work now stays counted
        assert gateway.limiter.in_flight == 1
        second.counting.limiter.settle(last, 10, 10, 0.0)
        second.exchange()
        assert (gateway.limiter.in_flight, gateway.limiter.reserved, gateway.limiter.spent) == (0, 0, 10)

    def test_an_admission_whose_client_has_gone_is_taken_back(self) -> None:
        gateway = GatewayInMemory()
        worker, who = gateway.start(1), key(rpm=1, parallel=1)
        for is_asked in (False, True):
            asked = admit(worker, who)
            if is_asked:
                worker.deliver()
            asked.cancel()
            assert isinstance(result_of(asked), CancelledError)
            worker.exchange()
            assert gateway.limiter.in_flight == 0
            assert gateway.limiter.used(who, "m", gateway.now) == {"rpm": 0}

    def test_a_supervisor_that_does_not_answer_has_requests_with_limits_refused(self) -> None:
        gateway = GatewayInMemory()
        worker, who = gateway.start(1), key(rpm=5, parallel=5)
        waiting = [admit(worker, who) for _ in range(2)]
        counting = worker.counting.reads.add("k", NOON)
        worker.end_turn()
        gateway.clock.pump([1.0] * (LATE_SECONDS + 1))
        assert [type(result_of(each)) for each in waiting] == [LimitsUnavailable] * 2
        # this process counts for itself
        assert result_of(counting) == (1, 60.0)
        assert isinstance(result_of(admit(worker, who)), LimitsUnavailable)
        with pytest.raises(LimitsUnavailable):
            worker.counting.limiter.check([who], NOON)
        # nothing is gathered for it
        assert worker.counting.limiter.is_away
        worker.end_turn()
        worker.counting.limiter.budget_loaded("end_user", "e", 1, 0)
        worker.counting.limiter.budget_released("end_user", "e")
        assert worker.at_end == []
        # others are served
        assert isinstance(worker.counting.limiter.admit((), "m", 1, 1, NOON), Reservation)
        worker.exchange()
        # it is back, and nothing of what was given up counts
        assert gateway.limiter.in_flight == 0
        assert all(isinstance(admitted(worker, who), Reservation) for _ in range(5))
        assert isinstance(admitted(worker, who), RateLimitExceeded)
        gateway.clock.pump([1.0] * 10)
        assert gateway.clock.getDelayedCalls() == []

    def test_what_waits_for_an_answer_in_time_is_not_late(self) -> None:
        gateway = GatewayInMemory()
        worker, who = gateway.start(1), key(parallel=1000)
        for _ in range(20):
            asked = admit(worker, who)
            gateway.clock.pump([1.0] * (LATE_SECONDS - 1))
            worker.exchange()
            assert isinstance(result_of(asked), Reservation)

    def test_nobody_is_admitted_before_the_budgets_are_loaded(self) -> None:
        gateway = GatewayInMemory(loaded=False)
        worker, dead = gateway.start(1), gateway.start(2)
        who = key(max_budget=100)
        asked = admit(worker, who, cost=10)
        admit(dead, who, cost=10).addErrback(lambda failure: None)
        worker.exchange()
        dead.exchange()
        assert not asked.called
        gateway.kill(2)
        housekeeper = gateway.housekeeper
        housekeeper.counting.limiter.load([("key", "k1", 95, 0)], gateway.clock)
        gateway.clock.pump([0.0] * 5)
        gateway.exchange()
        assert isinstance(result_of(asked), BudgetExceeded)
        assert gateway.limiter.in_flight == 0
        # one that replaces it reads older spend than is known by now
        assert isinstance(admitted(worker, who, cost=5), Reservation)
        gateway.kill(HOUSEKEEPER)
        again = gateway.start(HOUSEKEEPER + 1, 0)
        again.counting.limiter.load([("key", "k1", 0, 0)], gateway.clock)
        gateway.clock.pump([0.0] * 5)
        gateway.exchange()
        assert gateway.limiter.spent == 95


class TestBudgets:
    def test_two_workers_that_load_an_end_user_do_not_set_its_spend_back(self) -> None:
        gateway = GatewayInMemory()
        first, second = gateway.start(1), gateway.start(2)
        who = Limited("end_user", "e", Allowance(max_budget=100))
        first.counting.limiter.budget_loaded("end_user", "e", 10, 0)
        reservation = admitted(first, who, cost=50)
        first.counting.limiter.settle(reservation, 0, 50, 0.0)
        first.exchange()
        gateway.limiter.budget_committed("end_user", "e", 50, 60, 0)
        # it had read before that was committed
        second.counting.limiter.budget_loaded("end_user", "e", 10, 0)
        assert isinstance(admitted(second, who, cost=41), BudgetExceeded)
        assert isinstance(admitted(second, who, cost=40), Reservation)

    def test_what_was_spent_before_the_database_answered_is_added_to_what_it_has(self) -> None:
        gateway = GatewayInMemory()
        worker = gateway.start(1)
        who = Limited("end_user", "e", Allowance(max_budget=100))
        worker.counting.limiter.settle(admitted(worker, who, cost=30), 0, 30, 0.0)
        worker.counting.limiter.budget_loaded("end_user", "e", 50, 0)
        assert isinstance(admitted(worker, who, cost=21), BudgetExceeded)
        assert isinstance(admitted(worker, who, cost=20), Reservation)

    def test_a_budget_is_kept_while_a_worker_uses_it_or_it_is_not_in_the_database(self) -> None:
        gateway = GatewayInMemory()
        first, second = gateway.start(1), gateway.start(2)
        for worker in (first, second):
            worker.counting.limiter.budget_loaded("end_user", "e", 10, 0)
            worker.exchange()
        assert first.counting.limiter.budget_released("end_user", "e")
        first.exchange()
        assert gateway.limiter.spent == 10
        reservation = admitted(second, Limited("end_user", "e", Allowance(max_budget=100)))
        second.counting.limiter.budget_released("end_user", "e")
        second.counting.limiter.settle(reservation, 0, 5, 0.0)
        second.exchange()
        assert gateway.limiter.spent == 15
        gateway.limiter.budget_committed("end_user", "e", 5, 15, 0)
        # it is looked at again when another one is released
        first.counting.limiter.budget_loaded("end_user", "other", 1, 0)
        first.counting.limiter.budget_released("end_user", "other")
        first.exchange()
        assert gateway.limiter.budgets() == []

    def test_the_budgets_that_only_a_dead_worker_used_are_released(self) -> None:
        gateway = GatewayInMemory()
        first, second = gateway.start(1), gateway.start(2)
        for number in range(10):
            first.counting.limiter.budget_loaded("end_user", str(number), 10, 0)
        second.counting.limiter.budget_loaded("end_user", "3", 10, 0)
        # those of keys stay
        first.counting.limiter.budget_loaded("key", "k", 10, 0)
        gateway.exchange()
        gateway.kill(1)
        for _ in range(10):
            second.counting.limiter.budget_loaded("end_user", "other", 1, 0)
            second.counting.limiter.budget_released("end_user", "other")
        gateway.exchange()
        assert {each.key for each in gateway.limiter.budgets()} == {("end_user", "3"), ("key", "k")}

    def test_what_an_administrator_set_is_not_set_again_when_it_is_found_in_the_database(self) -> None:
        gateway = GatewayInMemory()
        worker, who = gateway.start(1), key(max_budget=100)
        worker.counting.limiter.budget_reset("key", "k1", 90, 0)
        assert isinstance(admitted(worker, who, cost=11), BudgetExceeded)
        worker.counting.limiter.budget_reset("key", "k1", 0, 0)
        worker.counting.limiter.settle(admitted(worker, who, cost=60), 0, 60, 0.0)
        worker.exchange()
        gateway.limiter.budget_committed("key", "k1", 60, 60, 0)
        gateway.housekeeper.counting.limiter.budget_reset("key", "k1", 0, 0, is_found=True)
        gateway.exchange()
        assert gateway.limiter.spent == 60
        # another machine did it
        gateway.now += 10
        gateway.housekeeper.counting.limiter.budget_reset("key", "k1", 0, 0, is_found=True)
        gateway.exchange()
        assert gateway.limiter.spent == 0

    def test_a_budget_that_was_made_again_survives_when_its_end_is_found_in_the_database(self) -> None:
        gateway = GatewayInMemory()
        worker, found = gateway.start(1), gateway.housekeeper.counting.limiter
        worker.counting.limiter.budget_forgotten("key", "k1")
        worker.counting.limiter.budget_reset("key", "k1", 70, 0)
        worker.exchange()
        found.budget_forgotten("key", "k1", is_found=True)
        gateway.exchange()
        assert gateway.limiter.spent == 70
        gateway.now += 10
        found.budget_forgotten("key", "k1", is_found=True)
        gateway.exchange()
        assert gateway.limiter.spent == 0

    def test_the_housekeeper_hears_of_soft_budgets_also_after_a_restart(self) -> None:
        gateway = GatewayInMemory()
        worker = gateway.start(1)
        gateway.kill(HOUSEKEEPER)
        who = key(soft_budget=5)
        worker.counting.limiter.settle(admitted(worker, who), 0, 7, 0.0)
        worker.exchange()
        heard: list[Any] = []
        again = gateway.start(HOUSEKEEPER + 1, 0)
        again.counting.limiter.on_soft_budget = lambda *crossed: heard.append(crossed)
        gateway.exchange()
        assert heard == [("key", "k1", 7, 5)]

    def test_the_housekeeper_looks_through_the_budgets_in_pages(self) -> None:
        gateway = GatewayInMemory()
        worker = gateway.start(1)
        for number in range(25):
            worker.counting.limiter.budget_loaded("end_user", f"{number:02}", number, MIDNIGHT)
        worker.exchange()

        def look() -> list[Budget]:
            found: list[Budget] = []
            for step in BudgetCopies(gateway.housekeeper).steps(10):
                step.addCallback(found.extend)
            return found

        found = look()
        assert [(each.key[1], each.spent, each.start, each.told) for each in found] == [
            (f"{number:02}", number, MIDNIGHT, number) for number in range(1, 25)
        ]
        found[3].told = 99
        BudgetCopies(gateway.housekeeper).told([found[3]])
        gateway.exchange()
        assert [each.told for each in look()][3] == 99


class TestUse:
    def test_what_is_used_is_told_for_the_next_look(self) -> None:
        gateway = GatewayInMemory()
        worker, other = gateway.start(1), gateway.start(2)
        limiter = worker.counting.limiter
        who, stranger = key(rpm=9, tpm=900, max_budget=100, budget_duration="1d"), key("k2", rpm=1, max_budget=1)
        other.counting.limiter.settle(admitted(other, who, tokens=30, cost=20), 30, 20, 0.0)
        other.exchange()

        def look() -> list[Any]:
            found = []
            for each in (who, stranger):
                budget = limiter.budget_of(each, gateway.now)
                found.append((limiter.used(each, "", gateway.now), budget and (budget.spent, budget.ends)))
            gateway.clock.advance(0)
            return found

        assert look() == [({}, None)] * 2
        found, nothing = look()
        assert found == ({"rpm": 1, "tpm": 30}, (20, MIDNIGHT + DAY))
        assert nothing[0] == {"rpm": 0, "tpm": 0}
        assert nothing[1][0] == 0
        # the next day
        gateway.now += DAY
        assert look()[0][1] == (0, MIDNIGHT + 2 * DAY)
        # nobody looks, and nobody is asked
        gateway.clock.pump([1.0, 1.0])
        assert gateway.clock.getDelayedCalls() == []

    def test_a_soft_budget_that_redis_tells_a_worker_of_is_told_by_the_housekeeper(self) -> None:
        gateway = GatewayInMemory()
        heard: list[Any] = []
        gateway.housekeeper.counting.limiter.on_soft_budget = lambda *crossed: heard.append(crossed)
        gateway.start(1).counting.limiter.tell_soft_budget("key", "k", 10**30, 5)
        gateway.exchange()
        gateway.exchange()
        assert heard == [("key", "k", 10**30, 5)]


class TestCounts:
    def test_workers_count_together(self) -> None:
        gateway = GatewayInMemory()
        first, second = gateway.start(1), gateway.start(2)
        counted = []
        for number in range(6):
            worker = (first, second)[number % 2]
            asked = worker.counting.failures.add("192.0.2.1", NOON)
            worker.exchange()
            counted.append(result_of(asked)[0])
        assert counted == [1, 2, 3, 4, 5, 6]
        assert first.counting.failures.count("192.0.2.1", NOON) == 5
        assert first.counting.failures.count("192.0.2.1", NOON + 61) == 0
        # another table, and a network of IPv6
        asked = first.counting.preflights.add(b"\x20\x01\x0d\xb8\0\0\0\0", NOON)
        first.exchange()
        assert result_of(asked) == (1, 60.0)
