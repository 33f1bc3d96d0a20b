"""Durations in headers."""

from __future__ import annotations

import pytest

from twisted_vllm.ratelimit.headers import go_duration


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, b"0s"),
        (0.02, b"20ms"),
        (0.0001, b"1ms"),
        (0.9999, b"1s"),
        (1, b"1s"),
        (8.64, b"8.64s"),
        (17.28, b"17.28s"),
        (59.9991, b"1m0s"),
        (60, b"1m0s"),
        (61.5, b"1m1.5s"),
        (360, b"6m0s"),
    ],
)
def test_a_duration_is_written_as_openai_does_and_rounded_up(seconds: float, written: bytes) -> None:
    assert go_duration(seconds) == written
