"""Values as pydantic converts them: those of its lax mode, from Python objects."""

from __future__ import annotations

import time

import pytest

from twisted_vllm.bodies.pydantic_values import MAX_NUMBER, to_bool, to_count


@pytest.mark.parametrize(
    ("value", "count"),
    [
        *((7, 7), (7.0, 7), (True, 1), ("7", 7), (" 7\n", 7), ("\u20287\u00a0", 7), ("+7", 7), ("7.00", 7)),
        *(("007", 7), ("0__7", 7), ("+00_7.0", 7), ("1_9_0_0", 1900), ("0" * 5000 + "7", 7)),
        *((2**60, MAX_NUMBER), ("9" * 4300, MAX_NUMBER), (1e18, MAX_NUMBER)),
        *((0, None), (-7, None), ("0", None), ("-7", None), (7.5, None), (float("nan"), None), (float("-inf"), None)),
        *(("7.", None), ("7e0", None), ("0x7", None), ("\uff17", None), ("+ 7", None), ("", None), ("1" * 4301, None)),
        *((None, None), ([7], None), ({}, None), ("seven", None)),
    ],
)
def test_a_count_is_what_pydantic_makes_of_it(value: object, count: int | None) -> None:
    assert to_count(value) == count


@pytest.mark.parametrize(
    ("value", "flag"),
    [
        *((True, True), (1, True), (1.0, True), ("1", True), ("yes", True), ("On", True), ("tRuE", True), ("y", True)),
        *((False, False), (0, False), (-0.0, False), ("0", False), ("off", False), ("N", False), ("FALSE", False)),
        *((2, None), (0.5, None), ("", None), (" true", None), ("1 ", None), (None, None), ([], None), ("trues", None)),
    ],
)
def test_a_flag_is_what_pydantic_makes_of_it(value: object, flag: bool | None) -> None:
    assert to_bool(value) is flag


@pytest.mark.parametrize("text", ["0" * 100_000 + "x", "_" * 100_000 + "x", "7." + "0" * 100_000 + "x", "1" * 100_000])
def test_a_long_text_takes_no_time(text: str) -> None:
    began = time.thread_time()
    assert to_count(text) is None
    assert time.thread_time() - began < 0.5
