"""Draws a dashboard of Grafana as an SVG, from its JSON and from what Prometheus answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import attrs

from benchmarks.dashboards.panel_data import BORDER, BRIGHT, PAD, PANEL, QUIET, TEXT, Box, Data, Json, Span, pieces
from benchmarks.dashboards.panel_drawings import KINDS
from benchmarks.dashboards.svg import Drawing
from benchmarks.dashboards.units import text_width

WIDTH = 1180.0
MARGIN = 8.0
CELL = 27.0
HEAD = 76.0
CANVAS = "#111217"


def draw(dashboard: Json, data: Data, span: Span, *, rows: int | None = None) -> str:
    """Draw a dashboard.

    Args:
        dashboard: Grafana's JSON.
        data: answers the questions of its panels.
        span: the time that is shown.
        rows: how many headed rows are drawn; None draws all.

    Returns:
        The SVG.
    """
    panels = _first(dashboard["panels"], rows)
    span = attrs.evolve(span, marks=tuple(_marks(dashboard, data, span)))
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    drawing = Drawing(WIDTH, HEAD + bottom * (CELL + MARGIN) + MARGIN, CANVAS)
    _head(drawing, dashboard, span)
    for panel in panels:
        box = _box(panel["gridPos"])
        if panel["type"] == "row":
            _row(drawing, box, panel["title"])
            continue
        drawing.rectangle(box.x, box.y, box.width, box.height, PANEL, radius=2, stroke=BORDER)
        drawing.text(box.x + PAD, box.y + 20, panel["title"], TEXT, size=13, weight=500)
        KINDS[panel["type"]](drawing, box.inside(PAD, 30, PAD, 8), panel, data, span)
    return drawing.document()


def _marks(dashboard: Json, data: Data, span: Span) -> Iterator[float]:
    """When what the dashboard marks began, if that was within the time that is shown."""
    for annotation in dashboard["annotations"]["list"]:
        for series in data.range(annotation["expr"]):
            for piece in pieces((time for time, _ in series.points), span.step):
                if piece[0] > span.start:
                    yield piece[0]


def _first(panels: Sequence[Json], rows: int | None) -> Sequence[Json]:
    if rows is None:
        return panels
    heads = [index for index, panel in enumerate(panels) if panel["type"] == "row"]
    return panels[: heads[rows]] if rows < len(heads) else panels


def _box(place: Json) -> Box:
    column = (WIDTH - MARGIN) / 24
    return Box(
        MARGIN + place["x"] * column,
        HEAD + place["y"] * (CELL + MARGIN),
        place["w"] * column - MARGIN,
        place["h"] * (CELL + MARGIN) - MARGIN,
    )


def _head(drawing: Drawing, dashboard: Json, span: Span) -> None:
    x = MARGIN + 4
    for part, color in (("Dashboards", QUIET), ("/", QUIET), (dashboard["title"], BRIGHT)):
        drawing.text(x, 26, part, color, size=14, weight=500)
        x += text_width(part, 14) * 1.06 + 9
    times = f"{_moment(span.start, '%Y-%m-%d %H:%M')} to {_moment(span.end, '%H:%M')} UTC"
    width = text_width(times, 12) + 24
    _pill(drawing, WIDTH - MARGIN - width, 11, width, times, TEXT)
    x = MARGIN
    for variable in dashboard["templating"]["list"]:
        label, chosen = variable["label"], "prometheus" if variable["type"] == "datasource" else "All"
        label_width, width = text_width(label, 12) + 18, text_width(chosen, 12) + 32
        _pill(drawing, x, 42, label_width, label, QUIET, fill=PANEL)
        _pill(drawing, x + label_width, 42, width, chosen, TEXT, arrow=True)
        x += label_width + width + 10


def _pill(
    drawing: Drawing,
    x: float,
    y: float,
    width: float,
    text: str,
    color: str,
    *,
    fill: str = CANVAS,
    arrow: bool = False,
) -> None:
    drawing.rectangle(x, y, width, 24, fill, radius=2, stroke=BORDER)
    drawing.text(x + 9, y + 16, text, color)
    if arrow:
        middle = x + width - 13
        drawing.line([(middle - 4, y + 10), (middle, y + 14), (middle + 4, y + 10)], QUIET, width=1.3)


def _row(drawing: Drawing, box: Box, title: str) -> None:
    y = box.y + box.height / 2
    drawing.line([(box.x + 4, y - 2), (box.x + 8, y + 2), (box.x + 12, y - 2)], TEXT, width=1.4)
    drawing.text(box.x + 22, y + 4.5, title, BRIGHT, size=14, weight=500)


def _moment(seconds: float, form: str) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime(form)
