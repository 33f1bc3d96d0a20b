"""What panels are drawn from: the time, the place, the colors, and the series that Prometheus answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import attrs

from benchmarks.dashboards.svg import Point
from benchmarks.prometheus import Labels, Series

Json = Mapping[str, Any]

#: between the border of a panel and what is in it, in pixels
PAD = 12.0
PANEL, BORDER, GRID = "#181b1f", "#25282e", "#2a2d33"
MARK = "#f2495c"
TEXT, QUIET, BRIGHT = "#ccccdc", "#8e8f9b", "#f4f5f9"
_COLORS = {
    "green": "#73bf69",
    "yellow": "#fade2a",
    "orange": "#ff9830",
    "red": "#f2495c",
    "blue": "#5794f2",
    "purple": "#b877d9",
}
_PALETTE = (
    "#73bf69",
    "#5794f2",
    "#f2cc0c",
    "#b877d9",
    "#ff780a",
    "#8ab8ff",
    "#f2495c",
    "#56a64b",
    "#e0b400",
    "#c0d8ff",
)


class Data(Protocol):
    """Answers the questions of panels."""

    def range(self, expr: str) -> list[Series]:
        """The course of an expression over the picture's time."""

    def instant(self, expr: str) -> list[Series]:
        """Its values at the end of this time."""


@attrs.frozen
class Span:
    """The time that a picture shows, in Unix seconds.

    Attributes:
        start: its begin.
        end: its end.
        step: between two values of a series.
        marks: times that are marked in all panels: an alert began to fire.
    """

    start: float
    end: float
    step: float
    marks: tuple[float, ...] = ()


@attrs.frozen
class Curve:
    """A series with its name and color."""

    name: str
    color: str
    labels: Labels
    points: tuple[Point, ...]

    @property
    def last(self) -> float | None:
        """Its last value; None without one."""
        return self.points[-1][1] if self.points else None


@attrs.frozen
class Box:
    """A place in the picture, in pixels."""

    x: float
    y: float
    width: float
    height: float

    def inside(self, left: float, top: float, right: float, bottom: float) -> Box:
        """This place without so much of each side."""
        return Box(self.x + left, self.y + top, self.width - left - right, self.height - top - bottom)


def curves_of(panel: Json, ask: Callable[[str], list[Series]]) -> list[Curve]:
    """The series of all questions of a panel, in the order of their names."""
    fixed = {
        override["matcher"]["options"]: change["value"]["fixedColor"]
        for override in panel["fieldConfig"]["overrides"]
        for change in override["properties"]
        if change["id"] == "color"
    }
    found = [
        (_name(target["legendFormat"], series.labels), series)
        for target in panel["targets"]
        for series in sorted(ask(target["expr"]), key=lambda each: sorted(each.labels.items()))
        if series.points
    ]
    free = iter(_PALETTE * (len(found) // len(_PALETTE) + 1))
    return [
        Curve(name, css_color(fixed[name]) if name in fixed else next(free), series.labels, series.points)
        for name, series in found
    ]


def pieces(times: Iterable[float], step: float) -> list[list[float]]:
    """Return the times of a series, cut where it has gaps."""
    found: list[list[float]] = []
    for time in times:
        if not found or time - found[-1][-1] > step * 1.5:
            found.append([])
        found[-1].append(time)
    return found


def _name(legend: str, labels: Labels) -> str:
    if legend == "__auto":
        return ", ".join(labels.values()) or "value"
    return re.sub(r"{{\s*(\w+)\s*}}", lambda match: labels.get(match[1], ""), legend)


def css_color(name: str) -> str:
    """Return what CSS calls a color of Grafana's."""
    return _COLORS.get(name, name)


def color_of_value(value: float, panel: Json) -> str:
    """Return the color of the step that a value has reached."""
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    color = steps[0]["color"]
    for step in steps[1:]:
        if value >= step["value"]:
            color = step["color"]
    return css_color(color)
