"""Figures and axes as Grafana writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.dashboards.units import figure, text_width, ticks


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0, "s", "0 s"),
        (0.00042, "s", "420 µs"),
        (0.704, "s", "704 ms"),
        (2.5, "s", "2.50 s"),
        (90, "s", "1.50 min"),
        (2_592_000, "s", "4.29 weeks"),
        (0.1234, "percentunit", "12.3%"),
        (11.04, "reqps", "11.0 req/s"),
        (1_083, "short", "1.08 K"),
        (3, "short", "3"),
        (22.5, "currencyUSD", "$22.5"),
        (3 << 20, "bytes", "3 MiB"),
        (255, "suffix: tok/s", "255 tok/s"),
    ],
)
def test_a_figure_has_the_digits_that_tell_enough(value: float, unit: str, expected: str) -> None:
    assert figure(value, unit) == expected


def test_the_digits_can_be_given() -> None:
    assert figure(0.00841, "percentunit", 2) == "0.84%"
    assert figure(2.1, "currencyUSD", 2) == "$2.10"


def test_the_marks_of_an_axis_can_be_told_apart() -> None:
    marks = ticks(0.95, "reqps", 5)
    assert marks == [0, 0.25, 0.5, 0.75, 1.0]
    assert [figure(mark, "reqps", step=marks[1]) for mark in marks] == [
        "0 req/s",
        "0.25 req/s",
        "0.50 req/s",
        "0.75 req/s",
        "1.00 req/s",
    ]


@given(top=st.floats(1e-9, 1e12), unit=st.sampled_from(["s", "short", "bytes", "percentunit"]), most=st.integers(3, 9))
def test_an_axis_reaches_the_highest_value_with_few_marks(top: float, unit: str, most: int) -> None:
    marks = ticks(top, unit, most)
    assert marks[0] == 0 and marks[-1] >= top * 0.998 and len(marks) <= most + 1
    names = [figure(mark, unit, step=marks[1]) for mark in marks]
    assert len(set(names)) == len(names)


def test_an_axis_without_values_has_marks() -> None:
    assert ticks(0.0, "short", 5)[-1] == 1.0


def test_wide_letters_take_more_room() -> None:
    assert text_width("WWW", 12) > text_width("iii", 12) > 0
