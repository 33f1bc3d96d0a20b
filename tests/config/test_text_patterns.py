"""Patterns of the operator take little time on any text."""

from __future__ import annotations

import time

import pytest

from twisted_vllm.config.text_patterns import READY, UnsafePattern, compiled

HOSTILE = ["a", "1", "1 ", "1.", "+1", "A1", "a@", "a@a.", "AB12 ", "1-", "a.a@", "@", "sk-", "\u0660", "x" * 63 + "@"]


@pytest.mark.parametrize(
    "pattern", [r"sk-\w+", r"[a-z]{1,16}-\d{4}", r"(?:a|b){1,3}c", r"PROJ-[0-9]{1,8}", "secret: .+", r"\bfoo\b", "x"]
)
def test_patterns_that_are_quick_are_accepted(pattern: str) -> None:
    assert compiled(pattern).pattern == pattern


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"(a+)+b", "upper bound"),
        (r"a*b", "upper bound"),
        (r"foo.*bar", "upper bound"),
        (r"(?:a+){1,3}", "upper bound"),
        (r"(?<=x)a+$", "upper bound"),
        (r"(\w)\1", "refers back"),
        (r"(?:\w{1,20} ){1,3}x", "ways"),
        (r"a{1,9000}b", "lower bound"),
        (r"(?:a{1,64}){1,64}b", "ways"),
        (r"x*", "empty text"),
        (r"a?", "empty text"),
        (r"(", "no regular expression"),
        ("a" * 2000, "longer than"),
    ],
)
def test_patterns_that_may_take_long_are_refused(pattern: str, reason: str) -> None:
    with pytest.raises(UnsafePattern, match=reason):
        compiled(pattern)


@pytest.mark.parametrize("name", READY)
def test_the_ready_patterns_are_quick_on_hostile_texts(name: str) -> None:
    for piece in HOSTILE:
        text = (piece * 32_768)[:32_768]
        began = time.perf_counter()
        compiled(name).sub("", text)
        assert time.perf_counter() - began < 1.0, piece


@pytest.mark.parametrize(
    ("name", "text", "left"),
    [
        ("email", "write to ada.l+x@mail.example.org, please", "write to , please"),
        ("credit_card", "it is 4111 1111 1111 1111.", "it is ."),
        ("iban", "DE89 3704 0044 0532 0130 00 is it", " is it"),
        ("phone", "call +49 (0)30 1234567 now", "call  now"),
        ("us_ssn", "078-05-1120", ""),
        ("ipv4", "at 192.0.2.17", "at "),
        ("credit_card", "the year 2026", "the year 2026"),
        ("us_ssn", "2026-05-11", "2026-05-11"),
    ],
)
def test_the_ready_patterns_find_what_they_are_for(name: str, text: str, left: str) -> None:
    assert compiled(name).sub("", text) == left
