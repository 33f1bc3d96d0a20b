"""What an entry's server gets in a minute, and how long a request waits for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.upstreams.entry_limits import EntryLimits


def test_no_more_requests_are_counted_than_the_limit_in_any_60_seconds() -> None:
    limits = EntryLimits(2, None)
    limits.take(10, 0.0)
    limits.take(10, 30.0)
    assert limits.wait(10, 40.0) == 20
    assert limits.wait(10, 60.0) == 0
    limits.take(10, 60.0)
    assert limits.wait(10, 60.0) == 30


def test_tokens_are_reserved_and_settled_with_what_was_used() -> None:
    limits = EntryLimits(None, 100)
    share = limits.take(80, 0.0)
    assert limits.wait(30, 1.0) == 59
    limits.settle(share, 20, 1.0)
    assert limits.wait(80, 1.0) == 0
    limits.settle(share, 1000, 1.0)
    assert limits.wait(80, 1.0) == 0, "a request was settled twice"


def test_more_than_the_estimate_is_counted_when_it_is_known() -> None:
    limits = EntryLimits(None, 100)
    share = limits.take(10, 0.0)
    limits.settle(share, 100, 50.0)
    assert limits.wait(50, 60.0) == 50


def test_what_never_reached_the_server_does_not_count() -> None:
    limits = EntryLimits(1, 100)
    share = limits.take(100, 0.0)
    assert limits.wait(1, 0.0) == 60
    limits.settle(share, 0, 1.0, sent=False)
    assert limits.wait(100, 1.0) == 0
    assert repr(limits) == "<EntryLimits 0 of 1 requests, 0 of 100 tokens>"


def test_a_request_above_the_limit_goes_alone_and_the_next_one_waits() -> None:
    limits = EntryLimits(None, 100)
    assert limits.wait(1_000, 0.0) == 0
    limits.take(1_000, 0.0)
    assert limits.wait(0, 1.0) == 59
    assert limits.wait(1_000, 60.0) == 0


def test_without_a_limit_nothing_waits_and_limits_may_change() -> None:
    limits = EntryLimits(None, None)
    share = limits.take(10**9, 0.0)
    assert limits.wait(10**9, 0.0) == 0
    limits.rpm = 1
    limits.settle(share, 5, 0.0)
    limits.take(1, 0.0)
    assert limits.wait(1, 0.0) == 60


def test_a_clock_that_is_set_back_gives_no_second_minute() -> None:
    limits = EntryLimits(1, None)
    limits.take(1, 1_000_000.0)
    assert limits.wait(1, 10.0) == 60


@given(
    st.integers(1, 5),
    st.integers(1, 50),
    st.lists(st.tuples(st.floats(0.0, 40.0), st.integers(0, 80), st.integers(0, 80), st.booleans())),
)
def test_the_wait_is_true_and_no_minute_has_more_than_the_limit(
    rpm: int, tpm: int, requests: list[tuple[float, int, int, bool]]
) -> None:
    limits, now = EntryLimits(rpm, tpm), 1000.0
    sent: list[tuple[float, int]] = []
    for pause, estimate, used, waits in requests:
        now += pause
        seconds = limits.wait(estimate, now)
        if seconds:
            if not waits:
                continue
            now += seconds
            assert limits.wait(estimate, now) == 0
        share = limits.take(estimate, now)
        sent.append((now, min(used, estimate)))
        limits.settle(share, min(used, estimate), now)
        minute = [tokens for at, tokens in sent if at + 60.0 > now]
        assert len(minute) <= rpm
        assert sum(minute) <= tpm or len([tokens for tokens in minute if tokens]) == 1
