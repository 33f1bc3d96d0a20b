"""A request's usage is estimated from its bytes, without a tokenizer."""

from __future__ import annotations

import json

from twisted_vllm.usage.estimate import (
    BYTES_PER_TOKEN,
    TOKENS_PER_MEDIUM,
    estimate_audio,
    estimate_output,
    estimate_prompt,
)


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


def test_a_prompt_of_tokens_is_counted() -> None:
    assert estimate_prompt(json.dumps({"prompt": [7] * 1000}, separators=(",", ":")).encode(), tokens=True) == 1000
    assert estimate_prompt(b"[%b]" % b",".join([b"123456"] * 1000), tokens=True) == 1751


def test_what_is_processed_again_counts_again() -> None:
    assert estimate_prompt(b"x" * 400, 4000) == 1101


def test_choices_reserve_the_client_s_limit_or_the_assumed_tokens() -> None:
    def output(max_tokens: int | None = None, choices: int = 1, min_tokens: int = 0) -> int:
        return estimate_output(max_tokens, min_tokens, choices, 1024)

    assert output() == 1024
    assert output(max_tokens=50) == 50
    assert output(max_tokens=50, choices=3) == 150
    assert output(choices=2) == 2048
    assert output(min_tokens=1900) == 1900
    assert output(max_tokens=50, min_tokens=1900) == 50
    assert output(max_tokens=2**53, choices=2**53) == 2**52


def test_audio_is_estimated_by_the_size_of_its_upload() -> None:
    assert estimate_audio(4_000) == 1_000
    assert estimate_audio(None) == estimate_audio(10**9) == 25 * 1024 * 1024 // 4
