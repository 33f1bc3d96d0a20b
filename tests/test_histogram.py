"""A histogram counts each measurement once, in the buckets that Prometheus expects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.histogram import Histogram

BOUNDS = (0.5, 1.0, 2.5)


def test_nothing_was_measured_at_first() -> None:
    histogram = Histogram(BOUNDS)
    assert histogram.buckets() == [("0.5", 0.0), ("1.0", 0.0), ("2.5", 0.0), ("+Inf", 0.0)]
    assert (histogram.count, histogram.sum) == (0, 0.0)


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram(BOUNDS)
    for value in (0.5, 1.0, 1.1, 7.0):
        histogram.observe(value)
    assert histogram.buckets() == [("0.5", 1.0), ("1.0", 2.0), ("2.5", 3.0), ("+Inf", 4.0)]
    assert histogram.sum == pytest.approx(9.6)


@given(st.lists(st.floats(0, 1e6)))
def test_each_bucket_has_what_is_at_most_its_bound(values: list[float]) -> None:
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.observe(value)
    expected = [sum(value <= bound for value in values) for bound in (*BOUNDS, float("inf"))]
    assert [count for _, count in histogram.buckets()] == expected
    assert histogram.count == len(values)
