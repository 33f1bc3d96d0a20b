"""What Grafana 11 and later need of a dashboard, strictly: a missing, unknown or ill-typed field fails."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Uid = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,40}$")]
Text = Annotated[str, Meta(min_length=1)]
#: Grafana's names of colors, or a color of CSS
Color = Annotated[str, Meta(pattern=r"^(green|yellow|orange|red|blue|purple|#[0-9a-f]{6})$")]
#: those of its units that we use; its list is `packages/grafana-data/src/valueFormats/categories.ts`
Unit = Annotated[str, Meta(pattern=r"^(short|s|reqps|cps|percentunit|currencyUSD|bytes|suffix: .+)$")]
Calculation = Literal["lastNotNull", "mean", "max", "sum"]


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """No field that Grafana does not know."""


class DataSource(Strict):
    type: Literal["prometheus"]
    uid: Literal["${datasource}"]


class GridPos(Strict):
    x: Annotated[int, Meta(ge=0, le=23)]
    y: Annotated[int, Meta(ge=0)]
    w: Annotated[int, Meta(ge=1, le=24)]
    h: Annotated[int, Meta(ge=1, le=30)]


class Target(Strict):
    refId: Annotated[str, Meta(pattern="^[A-Z]$")]
    datasource: DataSource
    editorMode: Literal["code"]
    expr: Text
    legendFormat: Text
    format: Literal["table", "time_series"]
    instant: bool
    range: bool


class Step(Strict):
    color: Color
    value: float | None


class Thresholds(Strict):
    mode: Literal["absolute"]
    steps: Annotated[list[Step], Meta(min_length=1)]


class ValueText(Strict):
    index: int
    text: Text
    color: Color


class Mapping(Strict):
    type: Literal["value"]
    options: dict[str, ValueText]


class ColorMode(Strict):
    mode: Literal["thresholds", "palette-classic"]


class Stacking(Strict):
    group: str
    mode: Literal["none", "normal"]


class Custom(Strict):
    fillOpacity: Annotated[int, Meta(ge=0, le=100)]
    lineWidth: Annotated[int, Meta(ge=0, le=10)]
    drawStyle: Literal["line", "bars", "points"] = "line"
    lineInterpolation: Literal["linear", "smooth", "stepBefore", "stepAfter"] = "linear"
    showPoints: Literal["auto", "never", "always"] = "never"
    spanNulls: bool = False
    axisSoftMin: float = 0
    stacking: Stacking | None = None


class Defaults(Strict):
    unit: Unit
    thresholds: Thresholds
    mappings: list[Mapping]
    color: ColorMode
    decimals: Annotated[int, Meta(ge=0, le=6)] | None = None
    min: float | None = None
    max: float | None = None
    custom: Custom | None = None


class Matcher(Strict):
    id: Literal["byName"]
    options: Text


class Property(Strict):
    id: Literal["color", "unit", "decimals"]
    value: Any


class Override(Strict):
    matcher: Matcher
    properties: Annotated[list[Property], Meta(min_length=1)]


class FieldConfig(Strict):
    defaults: Defaults
    overrides: list[Override]


class Reduce(Strict):
    calcs: list[Calculation]
    fields: str
    values: bool


class Legend(Strict):
    displayMode: Literal["list", "table"]
    placement: Literal["bottom", "right"]
    showLegend: bool
    calcs: list[Calculation]


class Tooltip(Strict):
    mode: Literal["single", "multi"]
    sort: Literal["none", "asc", "desc"]


class StatOptions(Strict):
    colorMode: Literal["value", "background", "none"]
    graphMode: Literal["area", "none"]
    justifyMode: Literal["auto", "center"]
    orientation: Literal["auto", "horizontal", "vertical"]
    reduceOptions: Reduce
    textMode: Literal["auto", "value", "value_and_name", "name", "none"]


class LineOptions(Strict):
    legend: Legend
    tooltip: Tooltip


class BarOptions(Strict):
    displayMode: Literal["basic", "lcd", "gradient"]
    minVizHeight: int
    minVizWidth: int
    namePlacement: Literal["auto", "top", "left", "hidden"]
    orientation: Literal["auto", "horizontal", "vertical"]
    reduceOptions: Reduce
    showUnfilled: bool
    sizing: Literal["auto", "manual"]
    valueMode: Literal["color", "text", "hidden"]


class TableOptions(Strict):
    cellHeight: Literal["sm", "md", "lg"]
    showHeader: bool


class StateOptions(Strict):
    alignValue: Literal["left", "center", "right"]
    legend: Legend
    mergeValues: bool
    rowHeight: Annotated[float, Meta(gt=0, le=1)]
    showValue: Literal["auto", "always", "never"]
    tooltip: Tooltip


class MergeOptions(Strict):
    pass


class OrganizeOptions(Strict):
    excludeByName: dict[str, bool]
    indexByName: dict[str, int]
    renameByName: dict[str, str]


class Merge(Strict, tag_field="id", tag="merge"):
    options: MergeOptions


class Organize(Strict, tag_field="id", tag="organize"):
    options: OrganizeOptions


class Placed(Strict):
    id: Annotated[int, Meta(ge=1)]
    title: Text
    gridPos: GridPos


class Row(Placed, tag_field="type", tag="row"):
    collapsed: bool
    panels: Annotated[list[Any], Meta(max_length=0)]


class Panel(Placed):
    description: Annotated[str, Meta(min_length=40)]
    datasource: DataSource
    targets: Annotated[list[Target], Meta(min_length=1)]
    fieldConfig: FieldConfig


class Stat(Panel, tag_field="type", tag="stat"):
    options: StatOptions


class TimeSeries(Panel, tag_field="type", tag="timeseries"):
    options: LineOptions


class BarGauge(Panel, tag_field="type", tag="bargauge"):
    options: BarOptions


class Table(Panel, tag_field="type", tag="table"):
    options: TableOptions
    transformations: Annotated[list[Merge | Organize], Meta(min_length=1)]


class StateTimeline(Panel, tag_field="type", tag="state-timeline"):
    options: StateOptions


class DataSourceVariable(Strict, tag_field="type", tag="datasource"):
    name: Text
    label: Text
    query: Literal["prometheus"]
    hide: Literal[0, 1, 2]
    refresh: Literal[0, 1, 2]
    regex: str
    includeAll: bool
    multi: bool
    options: list[Any]
    skipUrlSync: bool


class VariableQuery(Strict):
    query: Annotated[str, Meta(pattern=r"^label_values\(\w+, \w+\)$")]
    refId: str


class Current(Strict):
    selected: bool
    text: list[str]
    value: list[str]


class QueryVariable(Strict, tag_field="type", tag="query"):
    name: Text
    label: Text
    description: Text
    datasource: DataSource
    query: VariableQuery
    definition: Text
    allValue: Literal[".*"]
    current: Current
    hide: Literal[0, 1, 2]
    includeAll: bool
    multi: bool
    options: list[Any]
    refresh: Literal[0, 1, 2]
    regex: str
    skipUrlSync: bool
    sort: Annotated[int, Meta(ge=0, le=8)]


class Templating(Strict):
    entries: list[DataSourceVariable | QueryVariable] = msgspec.field(name="list")


class Annotation(Strict):
    name: Text
    datasource: DataSource
    enable: bool
    hide: bool
    iconColor: Color
    expr: Text
    titleFormat: str
    step: str


class Annotations(Strict):
    entries: list[Annotation] = msgspec.field(name="list")


class Link(Strict):
    type: Literal["link", "dashboards"]
    title: Text
    tags: list[str]
    asDropdown: bool
    icon: Text
    url: str
    tooltip: str
    targetBlank: bool
    includeVars: bool
    keepTime: bool


class Times(Strict):
    start: str = msgspec.field(name="from")
    to: str


class Dashboard(Strict):
    """A dashboard; its ``id`` is missing, because Grafana gives it one at the import."""

    uid: Uid
    title: Text
    description: Text
    tags: Annotated[list[str], Meta(min_length=1)]
    schemaVersion: Annotated[int, Meta(ge=39)]
    version: int
    editable: bool
    graphTooltip: Literal[0, 1, 2]
    refresh: str
    time: Times
    timezone: Literal["browser", "utc"]
    links: Annotated[list[Link], Meta(min_length=1)]
    annotations: Annotations
    templating: Templating
    panels: list[Row | Stat | TimeSeries | BarGauge | Table | StateTimeline]
