"""The simulator's words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.simulator.engine import compose, count_tokens


def test_the_text_says_that_it_is_simulated() -> None:
    assert compose("What is the capital of France?", 100).text.startswith("This text is simulated")


def test_the_same_prompt_gives_the_same_text_and_another_prompt_another() -> None:
    texts = {compose(f"prompt {number}", 100).text for number in range(20)}
    assert compose("hello", 100) == compose("hello", 100)
    assert len(texts) > 10


def test_an_answer_that_is_not_cut_ends_with_a_sentence() -> None:
    choice = compose("hello", 1000)
    assert choice.text.endswith(".")
    assert choice.finish_reason == "stop"


def test_an_answer_of_just_the_allowed_length_is_not_cut() -> None:
    length = len(compose("hello", 1000).tokens)
    assert compose("hello", length).finish_reason == "stop"
    assert compose("hello", length - 1).finish_reason == "length"


@given(st.text(), st.integers(1, 300), st.integers(0, 5), st.integers(0, 300))
def test_a_text_has_as_many_tokens_as_words_and_never_more_than_its_limit(
    prompt: str, limit: int, variant: int, min_tokens: int
) -> None:
    choice = compose(prompt, limit, variant=variant, min_tokens=min_tokens)
    assert count_tokens(choice.text) == len(choice.tokens)
    assert min(min_tokens, limit) <= len(choice.tokens) <= limit
    assert choice.finish_reason == "length" or choice == compose(
        prompt, limit + 1, variant=variant, min_tokens=min_tokens
    )


@given(st.text(), st.integers(1, 300))
def test_ignore_eos_writes_exactly_to_the_limit(prompt: str, limit: int) -> None:
    choice = compose(prompt, limit, ignore_eos=True)
    assert len(choice.tokens) == limit
    assert choice.finish_reason == "length"
