"""What a dashboard is made of; `benchmarks.dashboards.grafana` writes it as Grafana's JSON."""

from __future__ import annotations

from enum import StrEnum

import attrs

#: columns of Grafana's grid
GRID_COLUMNS = 24

GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = "green", "yellow", "orange", "red", "blue", "purple", "#8e8e99"


class Kind(StrEnum):
    """How a panel shows its figures; the values are Grafana's names."""

    STAT = "stat"
    LINES = "timeseries"
    BARS = "bargauge"
    TABLE = "table"
    STATES = "state-timeline"


@attrs.frozen
class Query:
    """A question to Prometheus.

    Attributes:
        expr: the PromQL expression.
        legend: the name of each series, with its labels in ``{{ }}``; in a table, the heading of the column.
        unit: in a table, the unit of the column.
    """

    expr: str
    legend: str = ""
    unit: str = ""


@attrs.frozen
class Mapped:
    """What a value of a state means."""

    text: str
    color: str


@attrs.frozen
class Panel:
    """A panel.

    Attributes:
        kind: how it shows its figures.
        title: what it shows.
        help: what it means, and what to do when it looks wrong; Markdown.
        queries: what it asks.
        unit: the unit of its figures, by Grafana's name of it.
        width: columns of the grid.
        height: rows of the grid.
        stacked: whether its lines add up.
        decimals: digits after the decimal point; None leaves it to Grafana.
        ceiling: the largest value of the axis; None fits it to the data.
        steps: from which value on a figure has which color; below the first it is green.
        colors: fixed colors of series, by their names.
        values: what each value means, in a panel of states.
        columns: in a table, labels and what to call them.
    """

    kind: Kind
    title: str
    help: str
    queries: tuple[Query, ...]
    unit: str = "short"
    width: int = 8
    height: int = 8
    stacked: bool = False
    decimals: int | None = None
    ceiling: float | None = None
    steps: tuple[tuple[float, str], ...] = ()
    colors: dict[str, str] = attrs.Factory(dict)
    values: dict[int, Mapped] = attrs.Factory(dict)
    columns: dict[str, str] = attrs.Factory(dict)


@attrs.frozen
class Row:
    """Panels below one heading, from left to right and then below each other."""

    title: str
    panels: tuple[Panel, ...]


@attrs.frozen
class Variable:
    """What the reader of a dashboard chooses among.

    Attributes:
        name: as ``$name`` in expressions.
        label: what stands beside it.
        metric: the metric whose label has the choices; the label has the variable's name.
        help: what it is good for.
    """

    name: str
    label: str
    metric: str
    help: str


@attrs.frozen
class Dashboard:
    """A dashboard.

    Attributes:
        uid: its permanent id, which is in its address.
        title: its name.
        help: which questions it answers.
        page: the page of the documentation that explains it.
        variables: what can be chosen, beside the data source.
        rows: its panels.
    """

    uid: str
    title: str
    help: str
    page: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
