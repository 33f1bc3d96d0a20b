from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.errors import BlockedApiKey, ExpiredApiKey, InvalidApiKey, MissingApiKey, TooManyFailures
from twisted_vllm.ratelimit.minute_counts import MINUTE, MOST_NAMES

WRONG = InvalidApiKey("wrong")
NOW = 1_000_000.0


def test_after_the_limit_the_next_failure_is_one_too_many() -> None:
    failures = AuthenticationThrottle(3)
    assert [failures.record_failure(WRONG, "192.0.2.1", NOW) for _ in range(3)] == [WRONG] * 3
    refusal = failures.record_failure(WRONG, "192.0.2.1", NOW + 10)
    assert isinstance(refusal, TooManyFailures)
    assert (refusal.status, refusal.retry_after) == (429, 50)


def test_what_it_says_of_the_time_is_true() -> None:
    failures = AuthenticationThrottle(1)
    failures.record_failure(WRONG, "192.0.2.1", NOW)
    refusal = failures.record_failure(WRONG, "192.0.2.1", NOW + 0.5)
    assert isinstance(failures.record_failure(WRONG, "192.0.2.1", NOW + 59.9), TooManyFailures)
    assert isinstance(refusal, TooManyFailures)
    assert refusal.retry_after is not None
    assert failures.record_failure(WRONG, "192.0.2.1", NOW + 0.5 + refusal.retry_after) is WRONG


def test_addresses_are_counted_each_for_itself() -> None:
    failures = AuthenticationThrottle(1)
    for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1", "-"):
        assert failures.record_failure(WRONG, address, NOW) is WRONG


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8::1", "2001:db8::ffff:1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::2%eth0"),
    ],
)
def test_addresses_of_one_client_are_counted_together(one: str, other: str) -> None:
    failures = AuthenticationThrottle(1)
    assert failures.record_failure(WRONG, one, NOW) is WRONG
    assert isinstance(failures.record_failure(WRONG, other, NOW), TooManyFailures)


def test_a_request_without_a_key_is_no_guess_and_every_refused_key_is_one() -> None:
    failures = AuthenticationThrottle(2)
    missing = MissingApiKey("none")
    assert [failures.record_failure(missing, "192.0.2.1", NOW) for _ in range(9)] == [missing] * 9
    for error in (ExpiredApiKey("late"), BlockedApiKey("blocked")):
        assert failures.record_failure(error, "192.0.2.1", NOW) is error
    assert isinstance(failures.record_failure(WRONG, "192.0.2.1", NOW), TooManyFailures)


def test_without_a_limit_nothing_is_counted() -> None:
    failures = AuthenticationThrottle(None)
    assert [failures.record_failure(WRONG, "192.0.2.1", NOW) for _ in range(9)] == [WRONG] * 9
    assert len(failures) == 0


def test_what_is_remembered_is_bounded_and_who_fails_on_is_not_forgotten() -> None:
    failures = AuthenticationThrottle(1)
    failures.record_failure(WRONG, "192.0.2.1", NOW)
    for number in range(2 * MOST_NAMES):
        failures.record_failure(WRONG, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", NOW)
        assert isinstance(failures.record_failure(WRONG, "192.0.2.1", NOW), TooManyFailures)
    assert len(failures) == MOST_NAMES


def test_a_clock_that_was_set_back_does_not_keep_anybody_out() -> None:
    failures = AuthenticationThrottle(1)
    failures.record_failure(WRONG, "192.0.2.1", NOW)
    assert failures.record_failure(WRONG, "192.0.2.1", NOW - 3600) is WRONG


@given(st.text(max_size=60), st.lists(st.floats(0, 300), max_size=30).map(sorted), st.integers(1, 5))
def test_of_any_address_no_more_than_the_limit_is_answered_in_a_window(
    address: str, times: list[float], limit: int
) -> None:
    failures = AuthenticationThrottle(limit)
    answered = [time for time in times if failures.record_failure(WRONG, address, time) is WRONG]
    # two windows may touch
    assert all(sum(start <= time < start + MINUTE for time in answered) <= 2 * limit for start in answered)
