"""The table stays a table when figures are missing."""

from __future__ import annotations

import pytest

from benchmarks.table import Column, Row, figure, ratio, render

COLUMNS = (Column("rate", "requests\nper s"), Column("cpu", "CPU us", 1), Column("held", "held", compared=False))


def test_figures_stand_below_their_titles_and_ratios_below_the_figures() -> None:
    rows = {"nginx": {"rate": 12345.6, "cpu": 20.0, "held": 5}, "gateway": {"rate": 6172.8, "cpu": 70.0, "held": 5}}
    assert render(COLUMNS, rows, [("gateway", "nginx")]).splitlines() == [
        "                 requests  CPU us  held",
        "                    per s",
        "---------------  --------  ------  ----",
        "nginx              12,346    20.0     5",
        "gateway             6,173    70.0     5",
        "---------------  --------  ------  ----",
        "gateway / nginx     0.50x   3.50x",
    ]


def test_a_missing_figure_is_a_dash_and_so_is_its_ratio() -> None:
    rows: dict[str, Row] = {"nginx": {"rate": None, "cpu": 2.0}, "gateway": {"rate": 5.0}}
    lines = render(COLUMNS, rows, [("gateway", "nginx")]).splitlines()
    assert [line.split() for line in lines[3:5]] == [["nginx", "-", "2.0", "-"], ["gateway", "5", "-", "-"]]
    assert lines[-1].split() == ["gateway", "/", "nginx", "-", "-"]


def test_a_peer_that_was_not_measured_is_not_compared() -> None:
    text = render(COLUMNS, {"gateway": {"rate": 5.0}}, [("gateway", "nginx")])
    assert text.splitlines()[-1].split() == ["gateway", "5", "-", "-"]


@pytest.mark.parametrize(("subject", "other"), [(None, 1.0), (1.0, None), (1.0, 0.0)])
def test_a_ratio_needs_two_figures(subject: float | None, other: float | None) -> None:
    assert ratio(subject, other) == "-"


def test_a_missing_measurement_is_not_shown_as_zero() -> None:
    assert (figure(None, 1), figure(0.0, 1)) == ("-", "0.0")
