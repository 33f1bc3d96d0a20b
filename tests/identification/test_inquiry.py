"""Whoever is about to be refused waits for one question to the database, and guessing costs the database nothing."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.identification.inquiry import (
    MOST_QUESTIONS,
    MOST_UNKNOWN,
    PAUSE_SECONDS,
    QUESTION_SECONDS,
    UNKNOWN_SECONDS,
    Inquiry,
)
from twisted_vllm.identification.waiting_places import MOST_OF_ADDRESS, MOST_WAITING


class Asking:
    """An inquiry whose database answers when the test says so."""

    def __init__(self, processes: int = 1) -> None:
        self.clock = Clock()
        self.questions: list[Deferred[None]] = []
        self.inquiry = Inquiry(self._catch_up, self.clock, processes)

    def _catch_up(self) -> Deferred[None]:
        question: Deferred[None] = Deferred()
        self.questions.append(question)
        return question

    def ask(self, token: str | None = "t", address: str = "192.0.2.1") -> list[None]:
        """Ask, and return a list that holds something once the answer came."""
        answers: list[None] = []
        waiting = self.inquiry.ask(token, address)
        assert waiting is not None
        waiting.addCallback(answers.append)
        return answers


@pytest.fixture
def asking() -> Asking:
    return Asking()


def test_a_caller_waits_until_the_database_has_answered(asking: Asking) -> None:
    answers = asking.ask()
    assert (answers, len(asking.questions)) == ([], 1)
    asking.questions[0].callback(None)
    assert answers == [None]
    assert asking.clock.getDelayedCalls() == []


def test_whoever_comes_during_a_question_shares_the_next_one(asking: Asking) -> None:
    """The question in progress may have been answered before the key was made."""
    first, second, third = asking.ask("1"), asking.ask("2"), asking.ask("3")
    assert len(asking.questions) == 1
    asking.questions[0].callback(None)
    assert (first, second, third) == ([None], [], [])
    asking.clock.advance(1 / MOST_QUESTIONS)
    assert len(asking.questions) == 2
    asking.questions[1].callback(None)
    assert (second, third) == ([None], [None])


def test_ten_thousand_guesses_a_second_cost_twenty_questions(asking: Asking) -> None:
    answers = 0
    for number in range(10_000):
        waiting = asking.inquiry.ask(f"{number}", "192.0.2.1")
        assert waiting is not None
        asking.clock.advance(0.0001)
        for question in asking.questions:
            if not question.called:
                question.callback(None)
                answers += 1
    assert answers == len(asking.questions) == asking.inquiry.asked
    assert MOST_QUESTIONS - 1 <= answers <= MOST_QUESTIONS + 1


def test_a_key_that_stayed_unknown_is_not_asked_about_for_a_moment(asking: Asking) -> None:
    asking.ask("t")
    asking.questions[0].callback(None)
    assert asking.inquiry.ask("t", "192.0.2.1") is None
    assert asking.inquiry.ask("other", "192.0.2.1") is not None
    asking.clock.advance(UNKNOWN_SECONDS)
    asking.questions[1].callback(None)
    assert asking.inquiry.ask("t", "192.0.2.1") is not None


def test_a_key_that_is_known_and_refused_is_asked_about_each_time(asking: Asking) -> None:
    for number in range(3):
        asking.ask(None)
        asking.questions[number].callback(None)
        asking.clock.advance(1 / MOST_QUESTIONS)


def test_a_database_that_takes_too_long_refuses_all_who_wait_and_nobody_waits_again(asking: Asking) -> None:
    first = asking.ask("1")
    asking.clock.advance(QUESTION_SECONDS / 2)
    second = asking.ask("2")
    asking.clock.advance(QUESTION_SECONDS / 2)
    assert (first, second) == ([None], [None])
    assert asking.inquiry.ask("3", "192.0.2.1") is None
    asking.questions[0].callback(None)
    assert asking.inquiry.ask("3", "192.0.2.1") is not None


def test_a_database_that_fails_is_left_alone_for_a_moment(asking: Asking) -> None:
    first, second = asking.ask("1"), asking.ask("2")
    asking.questions[0].errback(Failure(StoreUnavailable("away")))
    assert (first, second) == ([None], [None])
    assert asking.inquiry.ask("3", "192.0.2.1") is None
    asking.clock.advance(PAUSE_SECONDS)
    # it is not remembered as unknown: nobody knows
    assert asking.inquiry.ask("1", "192.0.2.1") is not None


def test_a_failure_that_is_a_defect_is_logged_and_refuses(asking: Asking, logged_failures: Any) -> None:
    answers = asking.ask()
    asking.questions[0].errback(Failure(ZeroDivisionError()))
    assert answers == [None]
    assert len(logged_failures.flush(ZeroDivisionError)) == 1


def test_the_places_to_wait_are_bounded_for_an_address_and_for_all(asking: Asking) -> None:
    for number in range(MOST_OF_ADDRESS):
        asking.ask(f"{number}", "2001:db8::1")
    assert asking.inquiry.ask("one more", "2001:db8::2") is None
    for number in range(MOST_WAITING - MOST_OF_ADDRESS):
        asking.ask(f"{number}", f"192.0.2.{number % 8}")
    assert asking.inquiry.ask("one more", "198.51.100.1") is None
    asking.questions[0].callback(None)
    asking.clock.advance(1)
    asking.questions[1].callback(None)
    assert "waiting=0" in repr(asking.inquiry)


def test_the_memory_of_unknown_keys_is_bounded(asking: Asking) -> None:
    for batch in range(MOST_UNKNOWN // 1000 + 2):
        for number in range(1000):
            asking.ask(f"{batch}/{number}")
        while "waiting=0" not in repr(asking.inquiry):
            asking.clock.advance(1 / MOST_QUESTIONS)
            asking.questions[-1].callback(None)
    assert f"unknown={MOST_UNKNOWN}" in repr(asking.inquiry)


def test_a_client_that_leaves_gives_its_place_back_with_the_answer(asking: Asking) -> None:
    waiting = asking.inquiry.ask("t", "192.0.2.1")
    assert waiting is not None
    waiting.addErrback(lambda _: None)
    waiting.cancel()
    asking.questions[0].callback(None)
    assert "waiting=0" in repr(asking.inquiry)


def test_at_the_stop_whoever_waits_is_refused(asking: Asking) -> None:
    first, second = asking.ask("1"), asking.ask("2")
    asking.inquiry.stop()
    asking.inquiry.stop()
    assert (first, second) == ([None], [None])
    assert asking.inquiry.ask("3", "192.0.2.1") is None


@pytest.mark.parametrize(("processes", "a_second"), [(1, 20), (2, 10), (4, 5), (64, 5)])
def test_workers_share_the_questions_of_a_second(processes: int, a_second: int) -> None:
    asking = Asking(processes)
    for number in range(10_000):
        asking.ask(str(number))
        if not asking.questions[-1].called:
            asking.questions[-1].callback(None)
        asking.clock.advance(0.001)
    assert 9 * a_second <= len(asking.questions) <= 10 * a_second + 1
