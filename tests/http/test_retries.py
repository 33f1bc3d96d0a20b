"""Which requests are sent again after their connection closed without an answer, and how many."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.http.client.retries import BURST, SHARE, Retries, StaleRequest


def test_a_request_of_which_nothing_was_sent_always_moves() -> None:
    decided: Counter[StaleRequest] = Counter()
    retries = Retries(decided)
    for _ in range(10 * BURST):
        assert retries.decide(unsent=True, repeatable=False) is StaleRequest.MOVED
    assert retries.decide(unsent=False, repeatable=True) is StaleRequest.REPEATED, "moving costs nothing of the budget"
    assert decided == {StaleRequest.MOVED: 10 * BURST, StaleRequest.REPEATED: 1}


def test_a_request_that_may_do_harm_is_never_repeated() -> None:
    retries = Retries(Counter())
    retries.requests = 1_000_000
    assert retries.decide(unsent=False, repeatable=False) is StaleRequest.NOT_REPEATABLE


def test_the_budget_refills_with_requests_and_not_beyond_its_burst() -> None:
    retries = Retries(Counter())
    assert [retries.decide(unsent=False, repeatable=True) for _ in range(BURST)] == [StaleRequest.REPEATED] * BURST
    assert retries.decide(unsent=False, repeatable=True) is StaleRequest.OVER_BUDGET
    retries.requests += round(2 / SHARE)
    again = [retries.decide(unsent=False, repeatable=True) for _ in range(3)]
    assert again == [StaleRequest.REPEATED, StaleRequest.REPEATED, StaleRequest.OVER_BUDGET]
    retries.requests += 1_000_000
    assert [retries.decide(unsent=False, repeatable=True) for _ in range(BURST)] == [StaleRequest.REPEATED] * BURST
    assert retries.decide(unsent=False, repeatable=True) is StaleRequest.OVER_BUDGET


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans(), st.booleans())))
def test_no_order_of_events_repeats_more_than_the_budget(steps: list[tuple[int, bool, bool]]) -> None:
    decided: Counter[StaleRequest] = Counter()
    retries = Retries(decided)
    for requests, unsent, repeatable in steps:
        retries.requests += requests
        retries.decide(unsent=unsent, repeatable=repeatable)
        assert decided[StaleRequest.REPEATED] <= BURST + SHARE * retries.requests + 1e-6
    assert decided.total() == len(steps)
