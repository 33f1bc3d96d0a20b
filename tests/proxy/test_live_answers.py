"""Those who watch the same requests in flight have them looked at once."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from tests.admin.admin_harness import value_of
from tests.observability.live_rows import live_request
from twisted_vllm.observability.live_requests import Cut, LiveQuery, LiveReport, WasCut, Whose
from twisted_vllm.proxy.live_answers import LONGEST_QUESTION, MOST_ANSWERS, LiveAnswers
from twisted_vllm.proxy.live_requests import LOOK_SECONDS


class Asked:
    """What is in flight, and how often somebody looked."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.queries: list[LiveQuery] = []
        self.held: Deferred[LiveReport] | None = None
        self.answers = LiveAnswers(self._ask, lambda cut: WasCut([live_request(cut.request_id)]), self.clock)

    def _ask(self, query: LiveQuery) -> Deferred[LiveReport]:
        self.queries.append(query)
        return succeed(LiveReport(self.clock.seconds(), 0, 0)) if self.held is None else self.held


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_ten_watchers_of_the_same_cost_one_look_in_two_seconds(asked: Asked) -> None:
    for _ in range(5):
        for _ in range(10):
            assert value_of(asked.answers.report(LiveQuery())).at >= asked.clock.seconds() - LOOK_SECONDS
            asked.clock.advance(LOOK_SECONDS / 10)
    assert len(asked.queries) == 5


def test_who_asks_while_somebody_looks_gets_the_same_answer(asked: Asked) -> None:
    held = asked.held = Deferred()
    waiting = [asked.answers.report(LiveQuery()) for _ in range(3)]
    asked.held = None
    assert value_of(asked.answers.report(LiveQuery(model="another"))).total == 0
    report = LiveReport(asked.clock.seconds(), 7, 7)
    held.callback(report)
    assert [value_of(each) for each in waiting] == [report] * 3
    assert len(asked.queries) == 2


def test_a_failure_reaches_all_who_wait_and_is_not_kept(asked: Asked) -> None:
    held = asked.held = Deferred()
    waiting = [asked.answers.report(LiveQuery()) for _ in range(2)]
    held.errback(ZeroDivisionError())
    for each in waiting:
        with pytest.raises(ZeroDivisionError):
            value_of(each)
    asked.held = None
    assert value_of(asked.answers.report(LiveQuery())).total == 0


def test_what_one_may_see_is_never_told_to_another(asked: Asked) -> None:
    for whose in (None, Whose("a"), Whose("a", "ada"), Whose("b")):
        value_of(asked.answers.report(LiveQuery(whose)))
    assert len(asked.queries) == 4


def test_few_answers_are_kept_none_for_long_and_no_long_question(asked: Asked) -> None:
    for number in range(MOST_ANSWERS + 1):
        value_of(asked.answers.report(LiveQuery(model=str(number))))
    value_of(asked.answers.report(LiveQuery(model="0")))
    assert len(asked.queries) == MOST_ANSWERS + 2
    for _ in range(2):
        value_of(asked.answers.report(LiveQuery(model="m" * (LONGEST_QUESTION + 1))))
    assert len(asked.queries) == MOST_ANSWERS + 4
    asked.clock.advance(LOOK_SECONDS)
    # nothing is left that would keep them
    assert not asked.clock.getDelayedCalls()


def test_after_a_cut_everybody_looks_anew(asked: Asked) -> None:
    value_of(asked.answers.report(LiveQuery()))
    found: Any = value_of(asked.answers.cut(Cut("a")))
    assert found.requests == [live_request("a")]
    value_of(asked.answers.report(LiveQuery()))
    assert len(asked.queries) == 2


def test_a_stopped_gateway_keeps_nothing(asked: Asked) -> None:
    value_of(asked.answers.report(LiveQuery()))
    asked.answers.stop()
    asked.answers.stop()
    assert not asked.clock.getDelayedCalls()
