"""The budgets of end users whom nobody created: loaded when they are named, and bounded in number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from twisted.internet.defer import Deferred

from twisted_vllm.auth.grants import Changes, EndUser, KeyGrant, UserGrant
from twisted_vllm.auth.key_index import GatewayLimits, KeyIndex
from twisted_vllm.auth.records import Spend
from twisted_vllm.errors import BudgetExceeded, StoreUnavailable
from twisted_vllm.proxy.end_user_budgets import EndUserBudgets
from twisted_vllm.ratelimit.allowance import Allowance, Limited
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter

SMALL = Allowance(max_budget=10)


class Questions:
    """A database that is asked for the spend of end users, and answers when a test says so."""

    def __init__(self) -> None:
        self.limiter = LocalLimiter()
        self.index = KeyIndex()
        self.index.reconfigure(GatewayLimits(end_user=SMALL))
        self.asked: list[list[str]] = []
        self.answers: list[Deferred[Mapping[str, Spend]]] = []
        self.is_away = False
        self.budgets = EndUserBudgets(self.limiter, self.index, self.read, most=3, refuses=lambda: self.is_away)

    def read(self, ids: Sequence[str]) -> Deferred[Mapping[str, Spend]]:
        self.asked.append(list(ids))
        self.answers.append(Deferred())
        return self.answers[-1]

    def answer(self, spent: int = 0) -> None:
        ids = self.asked[-1]
        self.answers[-1].callback({id: Spend("end_user", id, spent) for id in ids})

    def load(self, *ids: str) -> None:
        for id in ids:
            if self.budgets.load(id) is not None:
                self.answer()

    def admit(self, id: str, cost: int) -> None:
        subject = Limited("end_user", id, SMALL)
        self.limiter.settle(self.limiter.admit([subject], "m", 0, cost, 0.0), 0, cost, 0.0)


def test_what_was_spent_counts_before_the_first_request_is_admitted() -> None:
    questions = Questions()
    loaded = questions.budgets.load("eve")
    assert loaded is not None and not loaded.called
    questions.answer(spent=8)
    assert loaded.called
    assert questions.budgets.load("eve") is None
    questions.admit("eve", 2)
    with pytest.raises(BudgetExceeded):
        questions.admit("eve", 1)


def test_one_question_is_asked_for_all_who_were_named_meanwhile() -> None:
    questions = Questions()
    waiting = [questions.budgets.load(id) for id in ("a", "b", "a", "c")]
    assert questions.asked == [["a"]]
    questions.answer()
    assert questions.asked == [["a"], ["b", "c"]]
    questions.answer()
    assert all(each is not None and each.called for each in waiting)


def test_without_the_database_requests_go_on_and_it_is_asked_again() -> None:
    questions = Questions()
    loaded = questions.budgets.load("eve")
    assert loaded is not None
    questions.answers[-1].errback(StoreUnavailable("no", retry_after=1))
    assert loaded.called
    assert questions.budgets.load("eve") is not None
    questions.admit("eve", 3)
    questions.answer(spent=6)
    with pytest.raises(BudgetExceeded):
        questions.admit("eve", 2)


def test_the_one_that_was_named_longest_ago_is_forgotten_and_asked_for_again() -> None:
    questions = Questions()
    questions.load("a", "b", "c", "a", "d")
    assert len(questions.budgets) == 3
    assert not questions.budgets.holds("end_user", "b")
    assert questions.budgets.load("a") is None
    assert questions.budgets.load("b") is not None


def test_no_spend_is_forgotten_that_the_database_does_not_have() -> None:
    questions = Questions()
    questions.load("a")
    questions.admit("a", 10)
    questions.load("b", "c", "d", "e")
    with pytest.raises(BudgetExceeded):
        questions.admit("a", 1)
    questions.limiter.budget_committed("end_user", "a", 10, 10, 0)
    questions.load("f", "g", "h")
    assert not questions.budgets.holds("end_user", "a")


def test_the_budget_of_an_end_user_with_a_record_is_never_forgotten() -> None:
    questions = Questions()
    questions.load("a")
    questions.index.apply(Changes(end_users={"a": EndUser(Limited("end_user", "a", SMALL))}))
    questions.limiter.budget_reset("end_user", "a", 10, 0)
    questions.load("b", "c", "d", "e")
    assert questions.budgets.holds("end_user", "a")
    with pytest.raises(BudgetExceeded):
        questions.admit("a", 1)


def test_an_end_user_that_loses_limits_of_its_own_is_asked_for_again() -> None:
    questions = Questions()
    questions.load("a")
    questions.limiter.budget_forgotten("end_user", "a")
    questions.budgets.forget("end_user", "a")
    questions.budgets.forget("key", "a")
    assert questions.budgets.load("a") is not None
    questions.answer(spent=10)
    with pytest.raises(BudgetExceeded):
        questions.admit("a", 1)


def test_the_spend_of_a_key_without_a_budget_takes_no_memory() -> None:
    questions = Questions()
    grants = {
        name: KeyGrant(name, name, "sk-...0000", allowance=Allowance(max_budget=limit))
        for name, limit in (("free", None), ("bound", 10))
    }
    questions.index.apply(Changes(keys=grants, users={"ann": UserGrant(allowance=Allowance(soft_budget=5))}))
    holds = questions.budgets.holds
    assert not holds("key", "free")
    assert holds("key", "bound")
    assert holds("user", "ann")
    assert not holds("user", "bob")
    assert not holds("team", "label")
    # What these may spend is not in their records.
    assert holds("proxy", "proxy")
    assert holds("member", "team/ann")


def test_nobody_is_asked_for_while_the_limiter_refuses_everybody() -> None:
    questions = Questions()
    questions.is_away = True
    assert questions.budgets.load("eve") is None
    assert questions.asked == []
    questions.is_away = False
    assert questions.budgets.load("eve") is not None
    assert questions.asked == [["eve"]]
