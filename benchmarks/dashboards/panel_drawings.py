"""How each kind of panel is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from benchmarks.dashboards.panel_data import (
    BRIGHT,
    GRID,
    MARK,
    QUIET,
    TEXT,
    Box,
    Curve,
    Data,
    Json,
    Span,
    color_of_value,
    css_color,
    curves_of,
    pieces,
)
from benchmarks.dashboards.svg import Drawing, Point
from benchmarks.dashboards.units import figure, text_width, ticks


def _nothing(drawing: Drawing, box: Box) -> None:
    drawing.text(box.x + box.width / 2, box.y + box.height / 2, "No data", QUIET, size=13, anchor="middle")


def _stat(drawing: Drawing, box: Box, panel: Json, data: Data, span: Span) -> None:
    curves = curves_of(panel, data.range)
    defaults = panel["fieldConfig"]["defaults"]
    if not curves or curves[0].last is None:
        _nothing(drawing, box)
        return
    value = curves[0].last
    color = color_of_value(value, panel)
    top = max((point[1] for point in curves[0].points), default=0.0) or 1.0
    low, high = box.y + box.height + 4, box.y + box.height * 0.52
    points = [
        (
            box.x - 8 + (time - span.start) / (span.end - span.start) * (box.width + 16),
            low - (low - high) * max(figure_, 0) / top,
        )
        for time, figure_ in curves[0].points
    ]
    if len(points) > 1:
        drawing.area([(points[0][0], low), *points, (points[-1][0], low)], color, 0.12)
        drawing.line(points, color, width=1.2, opacity=0.8)
    shown = figure(value, defaults["unit"], defaults.get("decimals"))
    number, _, unit = shown.partition(" ")
    size = 29.0
    width = text_width(number, size) + (text_width(unit, size * 0.55) + 6 if unit else 0)
    x = box.x + (box.width - width) / 2
    drawing.text(x, box.y + 37, number, color, size=size, weight=600)
    if unit:
        drawing.text(x + text_width(number, size) * 1.03 + 5, box.y + 37, unit, color, size=size * 0.55, weight=500)


def _lines(drawing: Drawing, box: Box, panel: Json, data: Data, span: Span) -> None:
    curves = curves_of(panel, data.range)
    if not curves:
        _nothing(drawing, box)
        return
    stacked = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
    legend = _legend_lines(curves, box.width)
    plot = box.inside(0, 9, 0, 20 + 17 * len(legend))
    unit = panel["fieldConfig"]["defaults"]["unit"]
    layers = _stack(curves) if stacked else [dict(curve.points) for curve in curves]
    top = max((value for layer in layers for value in layer.values()), default=0.0)
    limit = panel["fieldConfig"]["defaults"].get("max")
    marks = ticks(limit or top * 1.02, unit, max(3, int(plot.height // 34)))
    names = [figure(mark, unit, step=marks[1]) for mark in marks]
    left = max(text_width(name, 11) for name in names) + 8
    plot = plot.inside(left, 0, 4, 0)
    for mark, name in zip(marks, names, strict=True):
        y = plot.y + plot.height * (1 - mark / marks[-1])
        drawing.line([(plot.x, y), (plot.x + plot.width, y)], GRID)
        drawing.text(plot.x - 7, y + 4, name, QUIET, size=11, anchor="end")
    _times(drawing, plot, span)

    for mark in span.marks:
        x = plot.x + (mark - span.start) / (span.end - span.start) * plot.width
        drawing.line([(x, plot.y), (x, plot.y + plot.height)], MARK, opacity=0.6, dashed=True)

    def place(time: float, value: float) -> Point:
        return (
            plot.x + (time - span.start) / (span.end - span.start) * plot.width,
            plot.y + plot.height * (1 - min(value / marks[-1], 1)),
        )

    below: dict[float, float] = {}
    for curve, layer in zip(curves, layers, strict=True):
        for piece in pieces(layer, span.step):
            points = [place(time, layer[time]) for time in piece]
            base = [place(time, below.get(time, 0.0) if stacked else 0.0) for time in reversed(piece)]
            if len(points) == 1:
                points = [points[0], (points[0][0] + 1.5, points[0][1])]
            drawing.area([*points, *base], curve.color, 0.35 if stacked else 0.07)
            drawing.line(points, curve.color, width=1.4)
        below = below | layer if stacked else below
    _legend(drawing, box, legend)


def _stack(curves: Sequence[Curve]) -> list[dict[float, float]]:
    """The heights of curves upon each other; where one has no value, it adds nothing."""
    times = sorted({time for curve in curves for time, _ in curve.points})
    sums = dict.fromkeys(times, 0.0)
    layers = []
    for curve in curves:
        for time, value in curve.points:
            sums[time] += value
        layers.append(dict(sums))
    return layers


def _times(drawing: Drawing, plot: Box, span: Span) -> None:
    most = max(2, int(plot.width // 70))
    step = next(
        size
        for size in (60, 120, 300, 600, 900, 1800, 3600, 7200, 21_600, 86_400)
        if (span.end - span.start) / size <= most
    )
    time = (span.start // step + 1) * step
    while time < span.end:
        x = plot.x + (time - span.start) / (span.end - span.start) * plot.width
        drawing.line([(x, plot.y), (x, plot.y + plot.height)], GRID, opacity=0.5)
        if plot.x + 8 < x < plot.x + plot.width - 8:
            drawing.text(
                x,
                plot.y + plot.height + 15,
                datetime.fromtimestamp(time, UTC).strftime("%H:%M"),
                QUIET,
                size=11,
                anchor="middle",
            )
        time += step


_MOST_LEGEND_LINES = 2


def _legend_lines(curves: Sequence[Curve], width: float) -> list[list[tuple[float, Curve]]]:
    """Where each name stands; if not all fit into two lines, those of the highest curves do."""
    lines, left_out = _laid_out(curves, width)
    if left_out:
        lines, _ = _laid_out(sorted(curves, key=lambda curve: -max(value for _, value in curve.points)), width)
    return lines


def _laid_out(curves: Sequence[Curve], width: float) -> tuple[list[list[tuple[float, Curve]]], bool]:
    """Lines of names, and whether names were left out."""
    lines: list[list[tuple[float, Curve]]] = [[]]
    x = 0.0
    for curve in curves:
        wide = 20 + text_width(curve.name, 12) + 14
        if x and x + wide - 14 > width:
            if len(lines) == _MOST_LEGEND_LINES:
                return lines, True
            lines.append([])
            x = 0.0
        lines[-1].append((x, curve))
        x += wide
    return lines, False


def _legend(drawing: Drawing, box: Box, lines: Sequence[Sequence[tuple[float, Curve]]]) -> None:
    y = box.y + box.height - 17 * len(lines) + 10
    for line in lines:
        for x, curve in line:
            drawing.rectangle(box.x + x, y - 5, 14, 3, curve.color, radius=1.5)
            drawing.text(box.x + x + 20, y, curve.name, TEXT)
        y += 17


def _bars(drawing: Drawing, box: Box, panel: Json, data: Data, _: Span) -> None:
    curves = [curve for curve in curves_of(panel, data.instant) if curve.last is not None]
    if not curves:
        _nothing(drawing, box)
        return
    defaults = panel["fieldConfig"]["defaults"]
    curves.sort(key=lambda curve: -(curve.last or 0.0))
    top = max(curve.last or 0.0 for curve in curves) or 1.0
    left = min(max(text_width(curve.name, 12) for curve in curves) + 12, box.width * 0.45)
    shown = [figure(curve.last or 0.0, defaults["unit"], defaults.get("decimals")) for curve in curves]
    right = max(text_width(text, 13) for text in shown) * 1.08 + 12
    tall = min((box.height - 4) / len(curves), 34.0)
    for index, (curve, text) in enumerate(zip(curves, shown, strict=True)):
        y = box.y + 4 + index * tall
        width = box.width - left - right
        drawing.text(box.x + left - 10, y + tall / 2 + 3, curve.name, TEXT, anchor="end")
        drawing.rectangle(box.x + left, y, width, tall - 6, "#22252b", radius=2)
        length = max(width * max(curve.last or 0.0, 0.0) / top, 2)
        drawing.rectangle(box.x + left, y, length, tall - 6, curve.color, radius=2, opacity=0.45)
        drawing.rectangle(box.x + left + length - 2, y, 2, tall - 6, curve.color)
        drawing.text(box.x + box.width, y + tall / 2 + 3.5, text, curve.color, size=13, weight=500, anchor="end")


def _table(drawing: Drawing, box: Box, panel: Json, data: Data, _: Span) -> None:
    organize = next(each["options"] for each in panel["transformations"] if each["id"] == "organize")
    columns = [(name, organize["renameByName"][name]) for name in organize["indexByName"]]
    several = len(panel["targets"]) > 1
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    keys = [name for name, _ in columns if not name.startswith("Value")]
    for target in panel["targets"]:
        column = f"Value #{target['refId']}" if several else "Value"
        unit, decimals = _format(panel, organize["renameByName"][column])
        for series in data.instant(target["expr"]):
            labels = tuple(series.labels.get(key, "") for key in keys)
            row = rows.setdefault(labels, dict(zip(keys, labels, strict=True)))
            if series.points:
                row[column] = figure(series.points[-1][1], unit, decimals)
    if not rows:
        _nothing(drawing, box)
        return
    weights = [1.0 if name.startswith("Value") else 2.2 for name, _ in columns]
    width = box.width / sum(weights)
    starts = [box.x + width * sum(weights[:index]) for index in range(len(columns))]
    for line, row in enumerate([dict(columns), *(rows[key] for key in sorted(rows))]):
        y = box.y + 14 + line * 27
        if y > box.y + box.height:
            break
        for (name, _), x, weight in zip(columns, starts, weights, strict=True):
            number = name.startswith("Value")
            at = x + width * weight - 6 if number else x + 2
            color = BRIGHT if line == 0 else TEXT
            text = row.get(name, "")
            drawing.text(at, y, text, color, weight=500 if line == 0 else 400, anchor="end" if number else "start")
        drawing.line([(box.x, y + 9), (box.x + box.width, y + 9)], GRID)


def _format(panel: Json, column: str) -> tuple[str, int | None]:
    defaults = panel["fieldConfig"]["defaults"]
    unit, decimals = defaults["unit"], defaults.get("decimals")
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"]["options"] == column:
            changes = {change["id"]: change["value"] for change in override["properties"]}
            unit, decimals = changes.get("unit", unit), changes.get("decimals", decimals)
    return unit, decimals


def _states(drawing: Drawing, box: Box, panel: Json, data: Data, span: Span) -> None:
    curves = curves_of(panel, data.range)
    if not curves:
        _nothing(drawing, box)
        return
    [mapping] = panel["fieldConfig"]["defaults"]["mappings"]
    left = max(text_width(curve.name, 12) for curve in curves) + 14
    plot = box.inside(left, 2, 4, 20)
    _times(drawing, plot, span)
    tall = plot.height / len(curves)
    for index, curve in enumerate(curves):
        y = plot.y + index * tall + tall * 0.1
        drawing.text(plot.x - 10, y + tall * 0.4 + 4, curve.name, TEXT, anchor="end")
        for start, end, value in _bands(curve.points, span.step):
            known = mapping["options"].get(str(int(value)), {"text": str(value), "color": "#8e8e99"})
            x = plot.x + (start - span.start) / (span.end - span.start) * plot.width
            width = min((end - start) / (span.end - span.start) * plot.width, plot.x + plot.width - x)
            drawing.rectangle(x, y, width, tall * 0.8, css_color(known["color"]), opacity=0.75)
            if width > text_width(known["text"], 11) + 10:
                drawing.text(x + 6, y + tall * 0.4 + 4, known["text"], "#0b0c0e", size=11, weight=500)


def _bands(points: Sequence[Point], step: float) -> list[tuple[float, float, float]]:
    """Spans of time in which a state lasted."""
    bands: list[tuple[float, float, float]] = []
    for time, value in points:
        if bands and bands[-1][2] == value and time - bands[-1][1] < step * 0.5:
            bands[-1] = (bands[-1][0], time + step, value)
        else:
            bands.append((time, time + step, value))
    return bands


KINDS: Mapping[str, Callable[[Drawing, Box, Json, Data, Span], None]] = {
    "stat": _stat,
    "timeseries": _lines,
    "bargauge": _bars,
    "table": _table,
    "state-timeline": _states,
}
