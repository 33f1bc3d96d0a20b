"""Writes dashboards as Grafana reads them: version 11 or later imports the files, or takes them by provisioning."""

from __future__ import annotations

import string
from collections.abc import Iterator
from typing import Any

import msgspec

from benchmarks.dashboards.panels import GRID_COLUMNS, Dashboard, Kind, Panel, Query, Variable

Json = dict[str, Any]

#: of Grafana 11: later versions convert it when they read it
SCHEMA_VERSION = 39
#: what all dashboards have, so that each finds the others
TAG = "vllm-passthrough"

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_LAST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_AS_OF_NOW = (Kind.BARS, Kind.TABLE)


def text(dashboard: Dashboard, docs: str = "") -> str:
    """Return the file of a dashboard.

    Args:
        dashboard: the dashboard.
        docs: the URL of the folder with the documentation; empty leaves out the links to it.
    """
    return msgspec.json.format(msgspec.json.encode(document(dashboard, docs)), indent=2).decode() + "\n"


def document(dashboard: Dashboard, docs: str = "") -> Json:
    """Return a dashboard as Grafana's JSON; the arguments are those of `text`."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.help,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "links": list(_links(dashboard, docs)),
        "annotations": {"list": [_alerts()]},
        "templating": {"list": [_data_source(), *map(_variable, dashboard.variables)]},
        "panels": list(_panels(dashboard)),
    }


def _links(dashboard: Dashboard, docs: str) -> Iterator[Json]:
    others = {"type": "dashboards", "title": "Other dashboards of the gateway", "tags": [TAG], "asDropdown": False}
    yield others | {"url": "", "icon": "external link", "tooltip": "", "targetBlank": False} | _KEPT
    if docs:
        link = {"type": "link", "title": "What to do", "tags": [], "asDropdown": False, "icon": "doc"}
        url = f"{docs.rstrip('/')}/{dashboard.page}"
        yield link | {"url": url, "tooltip": "Which page answers which question", "targetBlank": True} | _NOT_KEPT


_KEPT = {"includeVars": True, "keepTime": True}
_NOT_KEPT = {"includeVars": False, "keepTime": False}


def _alerts() -> Json:
    """Marks in all panels when alerts began to fire."""
    return {
        "name": "Alerts",
        "datasource": _SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "red",
        "expr": 'ALERTS{alertstate="firing",alertname=~".+"}',
        "titleFormat": "{{alertname}}",
        "step": "30s",
    }


def _data_source() -> Json:
    return {
        "type": "datasource",
        "name": "datasource",
        "label": "Prometheus",
        "query": "prometheus",
        "hide": 0,
        "refresh": 1,
        "regex": "",
        "includeAll": False,
        "multi": False,
        "options": [],
        "skipUrlSync": False,
    }


def _variable(variable: Variable) -> Json:
    question = f"label_values({variable.metric}, {variable.name})"
    return {
        "type": "query",
        "name": variable.name,
        "label": variable.label,
        "description": variable.help,
        "datasource": _SOURCE,
        "query": {"query": question, "refId": "A"},
        "definition": question,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "includeAll": True,
        "multi": True,
        "options": [],
        # when the time range changes
        "refresh": 2,
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
    }


def _panels(dashboard: Dashboard) -> Iterator[Json]:
    number = y = 0
    for row in dashboard.rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": GRID_COLUMNS, "h": 1},
            "panels": [],
        }
        y += 1
        x = height = 0
        for panel in row.panels:
            if x + panel.width > GRID_COLUMNS:
                x, y, height = 0, y + height, 0
            number += 1
            yield _panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": panel.height})
            x += panel.width
            height = max(height, panel.height)
        y += height


def _panel(number: int, panel: Panel, place: Json) -> Json:
    written = {
        "id": number,
        "type": panel.kind.value,
        "title": panel.title,
        "description": panel.help,
        "datasource": _SOURCE,
        "gridPos": place,
        "targets": [
            _target(panel, query, name) for query, name in zip(panel.queries, string.ascii_uppercase, strict=False)
        ],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": list(_overrides(panel))},
        "options": _OPTIONS[panel.kind],
    }
    if panel.kind is Kind.TABLE:
        written["transformations"] = list(_transformations(panel))
    return written


def _target(panel: Panel, query: Query, name: str) -> Json:
    now = panel.kind in _AS_OF_NOW
    return {
        "refId": name,
        "datasource": _SOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "format": "table" if panel.kind is Kind.TABLE else "time_series",
        "instant": now,
        "range": not now,
    }


def _defaults(panel: Panel) -> Json:
    steps = [{"color": "green", "value": None}, *({"color": color, "value": value} for value, color in panel.steps)]
    found: Json = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}, "mappings": []}
    found["color"] = {"mode": "thresholds" if panel.kind in (Kind.STAT, Kind.STATES) else "palette-classic"}
    if panel.decimals is not None:
        found["decimals"] = panel.decimals
    if panel.kind in (Kind.LINES, Kind.BARS):
        found["min"] = 0
    if panel.ceiling is not None:
        found["max"] = panel.ceiling
    if panel.kind is Kind.LINES:
        found["custom"] = _LINE | {
            "fillOpacity": 40 if panel.stacked else 8,
            "stacking": {"group": "A", "mode": "normal" if panel.stacked else "none"},
        }
    if panel.kind is Kind.STATES:
        found["custom"] = {"fillOpacity": 80, "lineWidth": 0}
        options = {
            str(value): {"index": index, "text": mapped.text, "color": mapped.color}
            for index, (value, mapped) in enumerate(panel.values.items())
        }
        found["mappings"] = [{"type": "value", "options": options}]
    return found


_LINE = {
    "drawStyle": "line",
    "lineInterpolation": "linear",
    "lineWidth": 1,
    "showPoints": "never",
    "spanNulls": False,
    "axisSoftMin": 0,
}


def _overrides(panel: Panel) -> Iterator[Json]:
    for name, color in panel.colors.items():
        fixed = {"id": "color", "value": {"mode": "fixed", "fixedColor": color}}
        yield {"matcher": {"id": "byName", "options": name}, "properties": [fixed]}
    if panel.kind is Kind.TABLE:
        for query in panel.queries:
            if query.unit:
                unit = {"id": "unit", "value": query.unit}
                digits = {"id": "decimals", "value": 2}
                yield {"matcher": {"id": "byName", "options": query.legend}, "properties": [unit, digits]}


def _transformations(panel: Panel) -> Iterator[Json]:
    """One row for each series, and the queries' legends as headings."""
    letters = dict(zip(string.ascii_uppercase, panel.queries, strict=False))
    several = len(panel.queries) > 1
    names = {f"Value #{letter}" if several else "Value": query.legend for letter, query in letters.items()}
    if several:
        yield {"id": "merge", "options": {}}
    order = [*panel.columns, *names]
    yield {
        "id": "organize",
        "options": {
            "excludeByName": {"Time": True},
            "indexByName": {name: index for index, name in enumerate(order)},
            "renameByName": panel.columns | names,
        },
    }


_LEGEND = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}

_OPTIONS: dict[Kind, Json] = {
    Kind.STAT: {
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": _LAST,
        "textMode": "value",
    },
    Kind.LINES: {"legend": _LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}},
    Kind.BARS: {
        "displayMode": "gradient",
        "minVizHeight": 16,
        "minVizWidth": 8,
        "namePlacement": "left",
        "orientation": "horizontal",
        "reduceOptions": _LAST,
        "showUnfilled": True,
        "sizing": "auto",
        "valueMode": "color",
    },
    Kind.TABLE: {"cellHeight": "sm", "showHeader": True},
    Kind.STATES: {
        "alignValue": "left",
        "legend": _LEGEND | {"showLegend": False},
        "mergeValues": True,
        "rowHeight": 0.8,
        "showValue": "auto",
        "tooltip": {"mode": "single", "sort": "none"},
    },
}
