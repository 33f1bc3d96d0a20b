"""A request's usage is estimated from its bytes, without a tokenizer."""

from __future__ import annotations

import json

from twisted_vllm.usage.estimate import BYTES_PER_TOKEN, TOKENS_PER_MEDIUM, estimate_prompt, estimate_total


def test_a_prompt_is_estimated_by_its_size() -> None:
    assert estimate_prompt(b"") == 1
    assert estimate_prompt(b"x" * 4000) == 4000 // BYTES_PER_TOKEN + 1


def test_a_picture_counts_as_one_whatever_its_size() -> None:
    small, large = (
        json.dumps(
            {"messages": [{"content": [{"image_url": {"url": "data:image/png;base64," + "A" * size}}, {"text": "x"}]}]}
        ).encode()
        for size in (10_000, 10_000_000)
    )
    assert estimate_prompt(small) == estimate_prompt(large)
    assert TOKENS_PER_MEDIUM < estimate_prompt(large) < TOKENS_PER_MEDIUM + 50


def test_each_picture_counts_and_what_is_short_is_text() -> None:
    url = '"data:image/png;base64,' + "A" * 2000 + '"'
    assert estimate_prompt(f"[{url},{url},{url}]".encode()) // TOKENS_PER_MEDIUM == 3
    assert estimate_prompt(b'[";base64,AAAA", ";base64,BBBB"]') < 20
    assert estimate_prompt(b";base64," + b"A" * 4000) == 4008 // BYTES_PER_TOKEN + 1


def test_choices_reserve_the_client_s_limit_or_the_assumed_tokens() -> None:
    def total(max_tokens: int | None = None, choices: int = 1, generates: bool = True) -> int:
        return estimate_total(10, generates=generates, max_tokens=max_tokens, choices=choices, assumed=1024)

    assert total() == 10 + 1024
    assert total(max_tokens=50) == 10 + 50
    assert total(max_tokens=50, choices=3) == 10 + 150
    assert total(choices=2) == 10 + 2048
    assert total(generates=False, max_tokens=50) == 10
