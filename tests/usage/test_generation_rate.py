"""How fast a server generates, and what is charged for a request that was cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.usage.generation_rate import (
    DEFAULT_RATE,
    FEW_SAMPLES,
    MAX_AT_ONCE,
    MAX_MODEL_LENGTH,
    MAX_RATES,
    MAX_SAMPLES,
    MIN_TOKENS,
    GenerationRate,
    GenerationRates,
    UncountedAnswer,
    generated_tokens,
)

NOON = 1_781_697_600.0
ASSUMED = 1024

seconds = st.floats(0, 10_000)
counts = st.integers(0, 2**53)


def learned(*rates: float, tokens: int = 200, prompt: int = 10) -> GenerationRate:
    """Return what finished requests with these tokens per second show, all before noon."""
    rate = GenerationRate()
    for each in rates:
        rate.learn(tokens, tokens / each, NOON - 1, prompt)
    return rate


def cut(elapsed: float, *, choices: int = 1, limit: int | None = 10_000, **more: int | bool) -> UncountedAnswer:
    """Return a request that was sent at noon and cut after a time in seconds."""
    bound = (ASSUMED if limit is None else limit) * choices
    return UncountedAnswer(choices, bound, limit is not None, 10, NOON, NOON + elapsed, **more)  # type: ignore[arg-type]  # by its name


# the rate


def test_before_anything_was_learned_the_default_rate_counts() -> None:
    assert not GenerationRate().learned
    assert GenerationRate().tokens(NOON, NOON + 2, 10) == 2 * DEFAULT_RATE


def test_one_finished_request_shows_the_rate() -> None:
    assert learned(50.0).tokens(NOON, NOON + 4, 10) == pytest.approx(200)


def test_the_clock_may_be_set_back() -> None:
    assert learned(50.0).tokens(NOON, NOON - 4, 10) == 0
    assert GenerationRate().tokens(NOON, NOON - 4, 10) == 0


def test_the_requests_that_ran_at_the_same_time_count() -> None:
    rate = learned(*[100.0] * FEW_SAMPLES)
    for number in range(FEW_SAMPLES):
        rate.learn(200, 4.0, NOON + number, 10)
    assert rate.tokens(NOON, NOON + 10, 10) == pytest.approx(500, rel=0.4)
    # half of what is remembered of the faster ones is the least
    assert rate.tokens(NOON, NOON + 10, 10) >= 500


def test_the_rate_follows_a_server_that_became_slow_and_one_that_became_fast() -> None:
    rate = learned(*[100.0] * MAX_SAMPLES, *[10.0] * 60)
    assert rate.tokens(NOON, NOON + 10, 10) == pytest.approx(100)
    for _ in range(FEW_SAMPLES):
        rate.learn(200, 2.0, NOON - 1, 10)
    assert rate.tokens(NOON, NOON + 10, 10) == pytest.approx(1000)


@pytest.mark.parametrize(
    ("tokens", "taken", "prompt"),
    [
        (1, 5.0, 10),
        (MIN_TOKENS - 1, 5.0, 10),
        # the time is that of its prompt
        (MIN_TOKENS, 5.0, 50_000),
        # no time
        (200, 0.0, 10),
        (200, -3.0, 10),
    ],
)
def test_a_request_that_says_little_about_the_rate_teaches_nothing(tokens: int, taken: float, prompt: int) -> None:
    rate = learned(100.0)
    for _ in range(1000):
        rate.learn(tokens, taken, NOON, prompt)
    assert rate.tokens(NOON, NOON + 1, 10) == pytest.approx(100)


def test_slow_requests_of_one_tenant_do_not_make_his_cuts_cheap_while_others_are_served() -> None:
    rate = GenerationRate()
    for number in range(400):
        # every third request is another tenant's
        rate.learn(200, 2.0 if number % 3 == 0 else 40.0, NOON - 1, 10)
    assert rate.tokens(NOON, NOON + 10, 10) >= 900


def test_slow_requests_need_many_to_bring_the_rate_down() -> None:
    rate = learned(*[100.0] * FEW_SAMPLES, *[1.0] * 10)
    assert rate.tokens(NOON, NOON + 10, 10) >= 0.25 * 1000


def test_one_request_that_looks_very_fast_does_not_make_the_cuts_of_others_dear() -> None:
    rate = learned(*[100.0] * MAX_SAMPLES, 300_000.0)
    assert rate.tokens(NOON, NOON + 10, 10) == pytest.approx(1000)


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0.001, 600), st.integers(0, 100_000)), min_size=1))
def test_the_rate_is_never_outside_of_what_was_seen(samples: list[tuple[int, float, int]]) -> None:
    rate = GenerationRate()
    for tokens, taken, prompt in samples:
        rate.learn(tokens, taken, NOON - 1, prompt)
    if rate.learned:
        seen = [tokens / taken for tokens, taken, _ in samples]
        found = rate.tokens(NOON, NOON + 1, 10)
        assert min(seen) * 0.49 <= found <= max(seen) * 1.01


@given(st.lists(st.floats(1, 1000), min_size=1, max_size=60), seconds, seconds)
def test_more_time_is_never_cheaper(rates: list[float], one: float, other: float) -> None:
    rate = learned(*rates)
    shorter, longer = sorted((one, other))
    assert rate.tokens(NOON, NOON + shorter, 10) <= rate.tokens(NOON, NOON + longer, 10)


# the wait for the first token


def test_a_request_that_was_cut_while_all_waited_for_their_first_token_is_charged_nothing_for_the_wait() -> None:
    rate = GenerationRate()
    for _ in range(FEW_SAMPLES):
        rate.learn(200, 2.0 + 4.0, NOON - 1, 10, 4.0, 200)
    assert rate.tokens(NOON, NOON + 3.9, 10) == 0
    assert rate.tokens(NOON, NOON + 6, 10) == pytest.approx(200, rel=0.4)


def test_the_wait_of_long_prompts_makes_a_short_prompt_no_cheaper() -> None:
    rate = GenerationRate()
    for _ in range(MAX_SAMPLES):
        rate.learn(200, 12.0, NOON - 1, 10_000, 10.0, 200)
    assert rate.tokens(NOON, NOON + 10, 10) > 0.9 * 200 * 10 / 12


def test_the_shortest_wait_counts() -> None:
    rate = GenerationRate()
    for number in range(FEW_SAMPLES):
        rate.learn(200, 2.0, NOON - 1, 10, 0.01 if number == 3 else 1.9, 200)
    assert rate.tokens(NOON, NOON + 2, 10) == pytest.approx(200, rel=0.02)


# tokens per event


def test_an_event_has_one_token_before_anything_was_learned_and_never_less() -> None:
    rate = GenerationRate()
    assert rate.tokens_per_event() is None
    assert generated_tokens(cut(2.0, events=30), rate) == 30
    rate.learn(100, 1.0, NOON, 10, 0.1, 250)
    assert rate.tokens_per_event() == 1


def test_a_finished_stream_shows_how_many_tokens_an_event_has() -> None:
    rate = GenerationRate()
    rate.learn(101, 1.0, NOON, 10, 0.1, 11)
    assert rate.tokens_per_event() == 10
    # answers that do not stream change nothing
    rate.learn(101, 1.0, NOON, 10)
    assert rate.tokens_per_event() == 10


def test_before_a_stream_has_finished_the_text_shows_that_events_have_many_tokens() -> None:
    for rate in (GenerationRate(), learned(100.0)):
        # 11 events with 101 tokens of English
        assert generated_tokens(cut(1.0, events=11, text=11 * 40), rate) in range(91, 111)
        # an event with one token may be a long word, or three letters of another alphabet
        assert generated_tokens(cut(0.1, events=11, text=11 * 12), rate) == 11
    told = GenerationRate()
    told.learn(100, 1.0, NOON, 10, 0.1, 100)
    assert generated_tokens(cut(0.1, events=11, text=11 * 40), told) == 11


def test_one_stream_that_hides_its_tokens_does_not_count_for_others() -> None:
    rate = GenerationRate()
    for events in (100, 100, 2, 100):
        rate.learn(100, 1.0, NOON, 10, 0.1, events)
    assert rate.tokens_per_event() == 1


# what is charged


def test_choices_multiply_what_is_charged() -> None:
    assert generated_tokens(cut(4, choices=3), learned(50.0)) == 600


def test_no_more_than_the_clients_limit_is_charged() -> None:
    rate = learned(50.0)
    assert generated_tokens(cut(400, choices=3, limit=100), rate) == 300
    assert generated_tokens(cut(400, choices=3, limit=None), rate) == 3 * ASSUMED


def test_a_stream_that_was_cut_is_charged_by_its_events() -> None:
    rate = learned(100.0)
    assert generated_tokens(cut(1, events=93), rate) == 93
    assert generated_tokens(cut(1, events=93), GenerationRate()) == 93
    # more than the assumed tokens, if the client set no limit
    assert generated_tokens(cut(30, limit=None, events=3000), rate) == 3000


def test_a_stream_with_ten_tokens_an_event_is_charged_for_them() -> None:
    rate = GenerationRate()
    rate.learn(101, 1.0, NOON - 1, 10, 0.01, 11)
    assert generated_tokens(cut(3, events=30), rate) == pytest.approx(300, abs=10)
    assert generated_tokens(cut(3, choices=2, events=60), rate) == pytest.approx(600, abs=20)
    assert generated_tokens(cut(3, limit=120, events=12), rate) == 120


def test_a_stream_whose_client_asks_for_rare_events_is_charged_by_its_time() -> None:
    # vLLM's `stream_interval` of the request
    assert generated_tokens(cut(3, events=1, interval=1000), learned(100.0)) == 300
    assert generated_tokens(cut(3, events=12, interval=20), learned(100.0)) == pytest.approx(240, abs=20)
    assert generated_tokens(cut(1, events=1, interval=2**53), GenerationRate()) <= 2 * DEFAULT_RATE


def test_a_stream_that_hides_its_tokens_is_charged_for_half_of_its_time_at_least() -> None:
    assert generated_tokens(cut(10, events=3), learned(100.0)) == 500


def test_a_stream_that_its_client_reads_slowly_is_charged_by_its_time() -> None:
    rate = learned(100.0)
    assert generated_tokens(cut(10, events=20, paused=True), rate) == 1000
    assert generated_tokens(cut(10, limit=600, events=20, paused=True), rate) == 600


def test_a_stream_without_an_event_is_charged_by_its_time() -> None:
    assert generated_tokens(cut(2), learned(100.0)) == 200


def test_a_complete_stream_without_usage_is_charged_by_its_events_alone() -> None:
    assert generated_tokens(cut(60, events=5, complete=True), learned(100.0)) == 5


def test_a_json_answer_that_was_arriving_is_charged_by_its_size_at_least() -> None:
    rate = learned(100.0)
    assert generated_tokens(cut(1, size=500), rate) == 100
    assert generated_tokens(cut(1, size=9024), rate) == 1000
    assert generated_tokens(cut(1, choices=2, limit=300, size=1_000_000), rate) == 600


@given(
    choices=st.integers(1, 2**53),
    limit=st.none() | st.integers(1, 2**53),
    elapsed=st.floats(-10, 100_000),
    events=st.integers(0, 100_000),
    interval=st.integers(1, 2**53),
    paused=st.booleans(),
    size=counts,
    complete=st.booleans(),
    rates=st.lists(st.floats(0.1, 10_000), max_size=40),
)
def test_what_came_is_charged_and_no_more_than_the_limit(
    choices: int,
    limit: int | None,
    elapsed: float,
    events: int,
    interval: int,
    paused: bool,
    size: int,
    complete: bool,
    rates: list[float],
) -> None:
    answer = cut(
        elapsed,
        choices=choices,
        limit=limit,
        events=events,
        interval=interval,
        paused=paused,
        size=0 if events else size,
        complete=complete,
    )
    tokens = generated_tokens(answer, learned(*rates))
    assert isinstance(tokens, int)
    assert tokens >= events
    if limit is not None:
        assert tokens <= max(events, limit * choices)
    if not (events or size):
        assert tokens <= ASSUMED * choices or limit is not None
        assert tokens <= max(0, elapsed) * MAX_AT_ONCE * max([*rates, DEFAULT_RATE]) * 1.01 + 1


# the table of rates


def test_each_model_of_each_server_has_its_own_rate() -> None:
    rates = GenerationRates()
    rates.to_learn("one", "m").learn(100, 1.0, NOON, 10)
    rates.to_learn("other", "m").learn(100, 10.0, NOON, 10)
    assert rates.of("one", "m").tokens(NOON, NOON + 1, 10) == pytest.approx(100)
    assert rates.of("other", "m").tokens(NOON, NOON + 1, 10) == pytest.approx(10)
    assert rates.to_learn("one", "m") is rates.of("one", "m")


def test_a_model_that_never_finished_has_the_rate_of_another_on_its_server() -> None:
    rates = GenerationRates()
    rates.to_learn("one", "m").learn(100, 1.0, NOON, 10)
    assert rates.of("one", "lora").tokens(NOON, NOON + 1, 10) == pytest.approx(100)
    assert not rates.of("other", "m").learned


def test_the_table_is_bounded() -> None:
    rates = GenerationRates()
    for number in range(MAX_RATES + 10):
        rates.to_learn("one", str(number))
    assert len(rates) == MAX_RATES
    rates = GenerationRates()
    for number in range(10):
        rates.to_learn("one", f"{number}" * (MAX_MODEL_LENGTH + 1))
    assert len(rates) == 1


# streams whose server counts in every event


def test_what_the_server_counted_before_the_cut_is_charged() -> None:
    assert generated_tokens(cut(4, events=190, reported=200), learned(50.0)) == 200
    assert generated_tokens(cut(4, events=190, reported=200), GenerationRate()) == 200
    # no more than the tokens of one event may have followed
    rate = GenerationRate()
    rate.learn(101, 1.0, NOON - 1, 10, 0.01, 11)
    assert 191 <= generated_tokens(cut(2, events=20, reported=191), rate) <= 200
    assert generated_tokens(cut(0.8, choices=3, events=20, reported=191), rate) <= 191 + 3 * 9
    assert generated_tokens(cut(400, events=20, reported=191, complete=True), rate) == 191


def test_counting_in_every_event_makes_a_stream_that_is_read_slowly_no_cheaper() -> None:
    assert generated_tokens(cut(20, events=19, reported=20, paused=True), learned(50.0)) == pytest.approx(1000)
