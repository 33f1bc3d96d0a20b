"""How panels are drawn, from answers that a test makes up."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import attrs
import pytest

from benchmarks.dashboards.drawing import draw
from benchmarks.dashboards.grafana import document
from benchmarks.dashboards.panel_data import Span
from benchmarks.dashboards.panels import GREEN, RED, YELLOW, Dashboard, Kind, Mapped, Panel, Query, Row
from benchmarks.dashboards.picture import expr_of
from benchmarks.prometheus import Series

SPAN = Span(1_800_000_000, 1_800_000_600, 10)
SVG = "{http://www.w3.org/2000/svg}"


@attrs.frozen
class Made:
    """Answers each question of a panel with the same series, and the question for alerts with others."""

    series: Sequence[Series]
    alerts: Sequence[Series] = ()

    def range(self, expr: str) -> list[Series]:
        return list(self.alerts if "ALERTS" in expr else self.series)

    def instant(self, expr: str) -> list[Series]:
        return [Series(each.labels, each.points[-1:]) for each in self.series]


def course(values: Sequence[float], **labels: str) -> Series:
    points = tuple((SPAN.start + 10.0 * index, value) for index, value in enumerate(values))
    return Series(labels, points)


def drawn(panel: Panel, *series: Series, rows: int | None = None, alerts: Sequence[Series] = ()) -> ElementTree.Element:
    dashboard = Dashboard("uid", "Dashboard", "Help", "observability.md", (), (Row("First", (panel,)), Row("Rest", ())))
    return ElementTree.fromstring(draw(document(dashboard), Made(series, alerts), SPAN, rows=rows))


def texts(picture: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in picture.iter(f"{SVG}text")]


def paths(picture: ElementTree.Element, color: str) -> list[list[tuple[float, float]]]:
    """The points of each line of a color."""
    return [
        [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", each.attrib["d"])]
        for each in picture.iter(f"{SVG}path")
        if each.attrib.get("stroke") == color
    ]


LINES = Panel(Kind.LINES, "Lines", "Help", (Query("up", "{{server}}"),), unit="s", width=12)


def test_a_line_has_its_name_and_its_axis_has_units() -> None:
    found = texts(drawn(LINES, course([0.1, 0.4], server="gpu-1")))
    assert {"Lines", "gpu-1", "0 s", "400 ms"} <= set(found)


def test_a_gap_is_no_line() -> None:
    whole = course([1.0] * 20, server="a")
    with_gap = Series(whole.labels, whole.points[:5] + whole.points[9:])
    assert len(paths(drawn(LINES, whole), "#73bf69")) == 1
    assert len(paths(drawn(LINES, with_gap), "#73bf69")) == 2


def test_stacked_lines_add_up() -> None:
    both = course([2.0, 2.0, 2.5], server="a"), course([1.0, 1.0, 1.0], server="b")
    apart = drawn(LINES, *both)
    stacked = drawn(attrs.evolve(LINES, stacked=True), *both)
    assert paths(apart, "#5794f2")[0][0][1] > paths(apart, "#73bf69")[0][0][1]
    assert paths(stacked, "#5794f2")[0][0][1] < paths(stacked, "#73bf69")[0][0][1]


def test_a_fixed_color_is_used() -> None:
    picture = drawn(attrs.evolve(LINES, colors={"a": RED}), course([1, 2], server="a"))
    assert paths(picture, "#f2495c") and not paths(picture, "#73bf69")


def test_names_that_find_no_room_are_left_out_and_their_lines_are_not() -> None:
    many = [course([1.0, number], server=f"a-long-name-of-a-server-{number}") for number in range(30)]
    picture = drawn(LINES, *many)
    assert 2 <= sum("a-long-name" in text for text in texts(picture)) < 30
    # the highest has its name
    assert "a-long-name-of-a-server-29" in texts(picture)
    assert sum(len(paths(picture, color)) for color in ("#73bf69", "#5794f2")) == 6


@pytest.mark.parametrize(("value", "color"), [(0.001, "#73bf69"), (0.02, "#fade2a"), (0.5, "#f2495c")])
def test_a_figure_has_the_color_of_its_step(value: float, color: str) -> None:
    panel = Panel(Kind.STAT, "Failed", "Help", (Query("up"),), "percentunit", steps=((0.01, YELLOW), (0.05, RED)))
    picture = drawn(panel, course([0.0, value]))
    [shown] = [each for each in picture.iter(f"{SVG}text") if (each.text or "").endswith("%")]
    assert shown.attrib["fill"] == color


def test_bars_begin_with_the_longest() -> None:
    panel = Panel(Kind.BARS, "Bars", "Help", (Query("up", "{{key}}"),))
    found = texts(drawn(panel, course([3], key="small"), course([700], key="large")))
    assert found.index("large") < found.index("small")
    assert {"3", "700"} <= set(found)


def test_a_table_joins_the_answers_of_its_questions() -> None:
    queries = (Query("up", "requests"), Query("up", "cost", "currencyUSD"))
    panel = Panel(Kind.TABLE, "Table", "Help", queries, columns={"model": "model"})
    found = texts(drawn(panel, course([12], model="qwen"), course([7], model="bge")))
    assert found[found.index("model") :] == [
        "model",
        "requests",
        "cost",
        "bge",
        "7",
        "$7.00",
        "qwen",
        "12",
        "$12.00",
        "Rest",
    ]


def test_a_state_is_one_band_as_long_as_it_lasts() -> None:
    values = {0: Mapped("closed", GREEN), 3: Mapped("dead", RED)}
    panel = Panel(Kind.STATES, "States", "Help", (Query("up", "{{server}}"),), values=values, width=12)
    picture = drawn(panel, course([0] * 20 + [3] * 20 + [0] * 20, server="gpu-2"))
    bands = [each for each in picture.iter(f"{SVG}rect") if each.attrib["fill"] in ("#73bf69", "#f2495c")]
    assert [band.attrib["fill"] for band in bands] == ["#73bf69", "#f2495c", "#73bf69"]
    assert float(bands[1].attrib["width"]) == pytest.approx(float(bands[0].attrib["width"]), rel=0.01)
    assert {"closed", "dead", "gpu-2"} <= set(texts(picture))


@pytest.mark.parametrize("kind", Kind)
def test_a_panel_without_data_says_so(kind: Kind) -> None:
    more: Mapping[str, Any] = {"values": {0: Mapped("closed", GREEN)}} if kind is Kind.STATES else {}
    assert "No data" in texts(drawn(Panel(kind, "Empty", "Help", (Query("up"),), **more)))


def test_only_the_first_rows_are_drawn_if_that_is_asked() -> None:
    assert "Rest" in texts(drawn(LINES))
    assert "Rest" not in texts(drawn(LINES, rows=1))


def test_an_alert_is_marked_where_it_began() -> None:
    whole = course([1.0] * 60, server="a")
    alert = Series({"alertname": "ServerDead"}, whole.points[30:40])
    [mark] = [
        each for each in drawn(LINES, whole, alerts=[alert]).iter(f"{SVG}path") if "stroke-dasharray" in each.attrib
    ]
    [line] = paths(drawn(LINES, whole), "#73bf69")
    began = float(mark.attrib["d"].removeprefix("M").split()[0])
    assert began == pytest.approx((line[0][0] + line[-1][0]) / 2, rel=0.02)


def test_text_of_labels_is_no_markup() -> None:
    assert "<b>&" in texts(drawn(LINES, course([1, 2], server="<b>&")))


def test_variables_stand_for_everything() -> None:
    asked = expr_of('rate(up{server=~"$server"}[$__rate_interval]) + increase(up[$__range])', "30s", 600)
    assert asked == 'rate(up{server=~".*"}[30s]) + increase(up[600s])'
