"""What every limiter promises, wherever it counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import pytest
import pytest_twisted

from twisted_vllm.errors import BudgetExceeded, RateLimitExceeded
from twisted_vllm.money import PICODOLLARS as DOLLAR
from twisted_vllm.ratelimit.allowance import Allowance, Limited
from twisted_vllm.ratelimit.reservation import Reservation

#: a Wednesday, 12:00:00 UTC
NOON = 1_781_697_600.0


class Driver(Protocol):
    """A limiter with a clock that the test sets."""

    now: float

    async def admit(self, limited: Any, model: str, tokens: int, cost: int) -> Reservation: ...

    async def settle(self, reservation: Reservation, tokens: int, cost: int) -> None: ...

    def check(self, limited: Any) -> None: ...

    async def would_admit(self, limited: Any, model: str, tokens: int, cost: int) -> None: ...


def key(id: str = "k1", **allowance: Any) -> Limited:
    return Limited("key", id, Allowance(**allowance))


def team(**allowance: Any) -> Limited:
    return Limited("team", "t1", Allowance(**allowance))


def told(headers: list[tuple[bytes, bytes]]) -> Mapping[str, str]:
    return {name.decode(): value.decode() for name, value in headers}


class LimiterContract:
    """The tests. A subclass gives the fixture ``driver``."""

    async def admit(self, driver: Driver, *limited: Limited, model: str = "", tokens: int = 0, cost: int = 0) -> Any:
        return await driver.admit(limited, model, tokens, cost)

    async def refused(
        self, driver: Driver, *limited: Limited, model: str = "", tokens: int = 0, cost: int = 0
    ) -> RateLimitExceeded | BudgetExceeded:
        with pytest.raises((RateLimitExceeded, BudgetExceeded)) as refusal:
            await driver.admit(limited, model, tokens, cost)
        error = refusal.value
        assert isinstance(error, (RateLimitExceeded, BudgetExceeded))
        assert not any(who.id in error.message for who in limited)
        return error

    @pytest_twisted.ensureDeferred
    async def test_nobody_with_limits_is_always_admitted(self, driver: Driver) -> None:
        reservation = await self.admit(driver)
        assert reservation.headers == []
        await driver.settle(reservation, 10, 10)

    @pytest.mark.parametrize("nothing", [{"rpm": 0}, {"tpm": 0}, {"parallel": 0}, {"max_budget": 0}])
    def test_a_look_refuses_what_can_never_be_admitted(self, driver: Driver, nothing: dict[str, int]) -> None:
        driver.check([key(rpm=1)])
        with pytest.raises((RateLimitExceeded, BudgetExceeded)):
            driver.check([key(rpm=1), team(**nothing)])

    @pytest_twisted.ensureDeferred
    async def test_a_look_counts_nothing(self, driver: Driver) -> None:
        who = key(rpm=1, tpm=5, parallel=1, max_budget=5)
        for _ in range(3):
            driver.check([who])
        await self.admit(driver, who, tokens=5, cost=5)

    @pytest_twisted.ensureDeferred
    async def test_a_trial_decides_as_an_admission_and_counts_nothing(self, driver: Driver) -> None:
        who = key(rpm=1, tpm=5, parallel=1, max_budget=5, model_rpm={"m": 1})
        for _ in range(3):
            await driver.would_admit([who, team()], "m", 5, 5)
        reservation = await self.admit(driver, who, model="m", tokens=5, cost=5)
        for tried, model in ((who, "m"), (key(rpm=1), ""), (key(tpm=5), ""), (key(parallel=1), "")):
            with pytest.raises((RateLimitExceeded, BudgetExceeded)):
                await driver.would_admit([team(), tried], model, 1, 1)
        with pytest.raises(BudgetExceeded):
            await driver.would_admit([key(max_budget=5)], "", 1, 1)
        await driver.settle(reservation, 0, 0)
        # one that cannot be admitted ever
        with pytest.raises(BudgetExceeded):
            await driver.would_admit([key("k2", max_budget=5)], "", 0, 6)
        await self.admit(driver, key("k2", max_budget=5), cost=5)

    @pytest_twisted.ensureDeferred
    async def test_no_more_requests_than_allowed_begin_in_any_60_seconds(self, driver: Driver) -> None:
        who = key(rpm=3)
        for _ in range(3):
            await self.admit(driver, who)
            driver.now += 10
        error = await self.refused(driver, who)
        assert error.retry_after == 30
        assert error.message == (
            "Rate limit reached: this key may use 3 requests in 60 seconds (rpm_limit). Try again in 30 seconds."
        )
        driver.now += 29.75
        assert (await self.refused(driver, who)).retry_after == 1
        driver.now += 0.25
        await self.admit(driver, who)
        assert (await self.refused(driver, who)).retry_after == 10

    @pytest_twisted.ensureDeferred
    async def test_who_comes_as_often_as_allowed_is_never_refused(self, driver: Driver) -> None:
        who = key(rpm=60)
        for _ in range(200):
            await self.admit(driver, who)
            driver.now += 1

    @pytest_twisted.ensureDeferred
    async def test_a_request_that_ended_stays_a_request(self, driver: Driver) -> None:
        who = key(rpm=1)
        await driver.settle(await self.admit(driver, who), 0, 0)
        assert (await self.refused(driver, who)).retry_after == 60

    @pytest_twisted.ensureDeferred
    async def test_no_more_requests_than_allowed_are_in_flight(self, driver: Driver) -> None:
        who = key(parallel=2)
        first = await self.admit(driver, who)
        await self.admit(driver, who)
        driver.now += 1000
        error = await self.refused(driver, who)
        assert error.retry_after == 1
        assert error.message == (
            "Too many requests at once: 2 requests of this key may be in work at a time (max_parallel_requests). "
            "Try again in 1 second."
        )
        await driver.settle(first, 0, 0)
        await self.admit(driver, who)
        await self.refused(driver, who)

    @pytest_twisted.ensureDeferred
    async def test_a_second_settlement_changes_nothing(self, driver: Driver) -> None:
        who = key(parallel=2, tpm=100)
        first = await self.admit(driver, who, tokens=40)
        await self.admit(driver, who, tokens=40)
        for _ in range(3):
            await driver.settle(first, 40, 0)
        await self.admit(driver, who, tokens=20)
        assert "max_parallel_requests" in (await self.refused(driver, key(parallel=2))).message

    @pytest_twisted.ensureDeferred
    async def test_tokens_are_reserved_and_given_back(self, driver: Driver) -> None:
        who = key(tpm=100)
        first = await self.admit(driver, who, tokens=70)
        driver.now += 5
        error = await self.refused(driver, who, tokens=31)
        assert error.retry_after == 55
        assert error.message == (
            "Rate limit reached: this key may use 100 tokens in 60 seconds (tpm_limit), and this request may use 31. "
            "Try again in 55 seconds."
        )
        await driver.settle(first, 20, 0)
        await self.admit(driver, who, tokens=80)
        await self.refused(driver, who, tokens=1)

    @pytest_twisted.ensureDeferred
    async def test_tokens_beyond_the_reserved_count_from_when_they_are_known(self, driver: Driver) -> None:
        who = key(tpm=100)
        first = await self.admit(driver, who, tokens=10)
        driver.now += 30
        await driver.settle(first, 150, 0)
        assert (await self.refused(driver, who)).retry_after == 60
        driver.now += 59
        assert (await self.refused(driver, who)).retry_after == 1
        driver.now += 1
        await self.admit(driver, who, tokens=100)

    @pytest_twisted.ensureDeferred
    async def test_what_is_given_back_after_its_minute_makes_no_room_for_others(self, driver: Driver) -> None:
        who = key(tpm=100)
        first = await self.admit(driver, who, tokens=100)
        driver.now += 61
        await self.admit(driver, who, tokens=100)
        await driver.settle(first, 0, 0)
        await self.refused(driver, who, tokens=1)

    @pytest_twisted.ensureDeferred
    async def test_used_up_tokens_refuse_a_request_without_an_estimate(self, driver: Driver) -> None:
        who = key(tpm=100)
        await self.admit(driver, who, tokens=100)
        await self.refused(driver, who, tokens=0)

    @pytest_twisted.ensureDeferred
    async def test_an_estimate_over_the_limit_itself_says_so_and_names_no_time(self, driver: Driver) -> None:
        error = await self.refused(driver, key(tpm=100), tokens=101)
        assert error.retry_after is None
        assert error.message == (
            "The request may use 101 tokens, and this key may use 100 tokens in 60 seconds (tpm_limit). "
            "Lower max_tokens or shorten the prompt."
        )
        error = await self.refused(driver, key(max_budget=DOLLAR, budget_duration="1d"), cost=2 * DOLLAR)
        assert error.retry_after is None
        assert error.message == (
            "Budget has been exceeded! Current cost: 0, Max budget: 1. "
            "The request may cost 2 USD, and this key may spend 1 USD (max_budget). "
            "Lower max_tokens or shorten the prompt."
        )

    @pytest_twisted.ensureDeferred
    async def test_a_limit_of_zero_lets_nothing_through_and_names_no_time(self, driver: Driver) -> None:
        for nothing in ({"rpm": 0}, {"tpm": 0}, {"parallel": 0}, {"max_budget": 0}, {"model_rpm": {"m": 0}}):
            error = await self.refused(driver, key(**nothing), model="m")
            assert error.retry_after is None
            assert "Try again" not in error.message

    @pytest_twisted.ensureDeferred
    async def test_a_model_has_limits_of_its_own(self, driver: Driver) -> None:
        who = key(model_rpm={"qwen": 1}, model_tpm={"llama": 50})
        await self.admit(driver, who, model="qwen", tokens=1000)
        error = await self.refused(driver, who, model="qwen")
        assert error.retry_after == 60
        assert error.message == (
            "Rate limit reached: this key may use 1 request of the model qwen in 60 seconds (model_rpm_limit). "
            "Try again in 60 seconds."
        )
        await self.admit(driver, who, model="llama", tokens=50)
        assert (
            "of the model llama in 60 seconds (model_tpm_limit)"
            in (await self.refused(driver, who, model="llama", tokens=1)).message
        )
        for _ in range(3):
            await self.admit(driver, who, model="other", tokens=1000)
            await self.admit(driver, who)

    @pytest_twisted.ensureDeferred
    async def test_every_level_is_asked_and_the_refusal_says_which_refused(self, driver: Driver) -> None:
        for kind, words in (
            ("key", "this key may"),
            ("user", "this key's user may"),
            ("team", "this key's team may"),
            ("end_user", "this end user may"),
        ):
            generous = key(f"generous-{kind}", rpm=100)
            strict = Limited(kind, f"strict-{kind}", Allowance(rpm=1))
            await self.admit(driver, generous, strict)
            assert words in (await self.refused(driver, generous, strict)).message

    @pytest_twisted.ensureDeferred
    async def test_a_refusal_at_one_level_consumes_nothing_at_the_others(self, driver: Driver) -> None:
        full = key(rpm=2, tpm=100, parallel=2, model_rpm={"m": 2}, model_tpm={"m": 100}, max_budget=100)
        closed = team(rpm=0)
        for _ in range(5):
            await self.refused(driver, full, closed, model="m", tokens=50, cost=50)
        for _ in range(2):
            await self.admit(driver, full, model="m", tokens=50, cost=50)
        await self.refused(driver, full, model="m", tokens=50, cost=50)

    @pytest_twisted.ensureDeferred
    async def test_the_wait_is_long_enough_for_all_limits_that_refuse(self, driver: Driver) -> None:
        await self.admit(driver, key(rpm=1))
        driver.now += 20
        await self.admit(driver, team(tpm=100, parallel=1), tokens=100)
        error = await self.refused(driver, key(rpm=1), team(tpm=100, parallel=1), tokens=1)
        assert error.retry_after == 60
        assert "this key's team may use 100 tokens" in error.message
        error = await self.refused(driver, key(rpm=1), team(max_budget=0))
        assert isinstance(error, BudgetExceeded)

    @pytest_twisted.ensureDeferred
    async def test_an_allowance_may_change_and_what_was_counted_stays(self, driver: Driver) -> None:
        for _ in range(3):
            await self.admit(driver, key(rpm=3))
        await self.refused(driver, key(rpm=3))
        await self.admit(driver, key(rpm=4))
        await self.refused(driver, key(rpm=4))
        await self.admit(driver, key())
        await self.refused(driver, key(rpm=1))
        assert "at a time" in (await self.refused(driver, key(parallel=5))).message

    @pytest_twisted.ensureDeferred
    async def test_one_key_s_use_is_not_another_s(self, driver: Driver) -> None:
        await self.admit(driver, key("k-1", rpm=1))
        await self.admit(driver, key("k-2", rpm=1))
        await self.admit(driver, Limited("user", "k-1", Allowance(rpm=1)))
        await self.refused(driver, key("k-1", rpm=1))

    @pytest_twisted.ensureDeferred
    async def test_a_budget_is_not_overspent_and_begins_anew_with_its_period(self, driver: Driver) -> None:
        who = key(max_budget=10 * DOLLAR, budget_duration="1d")
        first = await self.admit(driver, who, cost=6 * DOLLAR)
        error = await self.refused(driver, who, cost=5 * DOLLAR)
        assert isinstance(error, BudgetExceeded)
        assert error.retry_after == 12 * 3600
        await driver.settle(first, 0, 4 * DOLLAR)
        second = await self.admit(driver, who, cost=5 * DOLLAR)
        await driver.settle(second, 0, 7 * DOLLAR)
        error = await self.refused(driver, who)
        assert error.message == (
            "Budget has been exceeded! Current cost: 11, Max budget: 10. "
            "This key may spend 10 USD (max_budget) and has spent 11 USD. Try again in 43200 seconds."
        )
        third = await self.admit(driver, key(), cost=0)
        driver.now += 12 * 3600
        await self.admit(driver, who, cost=10 * DOLLAR)
        await driver.settle(third, 0, DOLLAR)
        await self.refused(driver, who)

    @pytest_twisted.ensureDeferred
    async def test_a_budget_without_a_period_names_no_time(self, driver: Driver) -> None:
        who = key(max_budget=DOLLAR)
        await driver.settle(await self.admit(driver, who, cost=DOLLAR), 0, DOLLAR)
        error = await self.refused(driver, who)
        assert error.retry_after is None
        assert error.message == (
            "Budget has been exceeded! Current cost: 1, Max budget: 1. "
            "This key may spend 1 USD (max_budget) and has spent 1 USD."
        )

    @pytest_twisted.ensureDeferred
    async def test_what_ends_after_its_period_does_not_burden_the_next(self, driver: Driver) -> None:
        who = key(max_budget=10, budget_duration="1d")
        late = await self.admit(driver, who, cost=10)
        driver.now += 12 * 3600
        await self.admit(driver, who, cost=5)
        await driver.settle(late, 0, 10)
        await self.admit(driver, who, cost=5)
        await self.refused(driver, who, cost=1)

    @pytest_twisted.ensureDeferred
    async def test_the_headers_tell_of_the_tightest_limits(self, driver: Driver) -> None:
        who = key(rpm=100, tpm=1000, model_rpm={"m": 3})
        group = team(tpm=500)
        first = await self.admit(driver, who, group, model="m", tokens=100)
        assert told(first.headers) == {
            "x-ratelimit-limit-requests": "3",
            "x-ratelimit-remaining-requests": "2",
            "x-ratelimit-reset-requests": "1m0s",
            "x-ratelimit-limit-tokens": "500",
            "x-ratelimit-remaining-tokens": "400",
            "x-ratelimit-reset-tokens": "1m0s",
        }
        driver.now += 59.5
        error = await self.refused(driver, who, group, model="m", tokens=401)
        assert isinstance(error, RateLimitExceeded)
        assert told(error.limit_headers) == {
            "x-ratelimit-limit-requests": "3",
            "x-ratelimit-remaining-requests": "2",
            "x-ratelimit-reset-requests": "500ms",
            "x-ratelimit-limit-tokens": "500",
            "x-ratelimit-remaining-tokens": "400",
            "x-ratelimit-reset-tokens": "500ms",
        }
        assert (await self.admit(driver, key("other", parallel=1, max_budget=5))).headers == []
