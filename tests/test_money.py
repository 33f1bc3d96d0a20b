"""Money is exact."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.money import float_dollars, from_dollars, to_dollars


@pytest.mark.parametrize(
    ("dollars", "picodollars"),
    [(1, 10**12), (1.5e-7, 150_000), (0.1, 10**11), (Decimal("0.0000000375"), 37_500), (12.34, 12_340_000_000_000)],
)
def test_dollars_become_whole_picodollars(dollars: Decimal | float, picodollars: int) -> None:
    assert from_dollars(dollars) == picodollars


def test_less_than_a_picodollar_is_rounded_half_to_even() -> None:
    assert from_dollars(Decimal("0.0000000000005")) == 0
    assert from_dollars(Decimal("0.0000000000015")) == 2


@given(st.integers(min_value=-(2**63), max_value=2**63 - 1))
def test_what_a_database_keeps_comes_back_as_it_was(picodollars: int) -> None:
    assert from_dollars(to_dollars(picodollars)) == picodollars


@given(st.integers(min_value=-(2**63), max_value=2**63 - 1))
def test_what_is_shown_is_the_nearest_float(picodollars: int) -> None:
    assert float_dollars(picodollars) == float(to_dollars(picodollars))


@pytest.mark.parametrize("dollars", [float("nan"), float("inf"), Decimal("-Infinity")])
def test_an_amount_that_is_not_finite_is_refused(dollars: Decimal | float) -> None:
    with pytest.raises(ValueError, match="finite"):
        from_dollars(dollars)
