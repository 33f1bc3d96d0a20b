"""How a usage report is written, piece by piece: JSON or CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any, Protocol

import msgspec

from twisted_vllm.admin.allowances import money, money_text
from twisted_vllm.storage.usage.queries.plan import Plan
from twisted_vllm.storage.usage.queries.reports import Group
from twisted_vllm.storage.usage.queries.rows import KeyLabel
from twisted_vllm.storage.usage.tables import KEY, SUMS

#: what a program that opens a table takes for a formula's beginning (OWASP, "CSV Injection")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

#: the columns of sums, and what they are called here
_COST = SUMS.index("cost")
_NAMES = tuple({"cost": "spend", "audio_ms": "audio_ms", "total_us": "duration_us"}.get(name, name) for name in SUMS)

_encode = msgspec.json.Encoder().encode
Labels = Mapping[str, KeyLabel]


class ReportFormat(Protocol):
    """A way to write a report."""

    content_type: bytes

    def head(self) -> bytes:
        """Return what comes before the first group."""

    def groups(self, found: Sequence[Group], labels: Labels) -> bytes:
        """Return some groups."""

    def tail(self) -> bytes:
        """Return what comes after the last one."""


class JsonReport:
    """One JSON object: what was asked and where it comes from, ``results``, and ``totals``, which add them up."""

    content_type = b"application/json"

    def __init__(self, plan: Plan, about: Mapping[str, Any]) -> None:
        self._columns = plan.query.group_by
        self._about = about
        self._written = False
        self._totals = [0] * len(SUMS)

    def head(self) -> bytes:
        """Return what comes before the first group."""
        return _encode(self._about)[:-1] + b',"results":['

    def groups(self, found: Sequence[Group], labels: Labels) -> bytes:
        """Return some groups."""
        if not found:
            return b""
        shown = [
            {
                "start": group.start,
                **_named(self._columns, group.values, labels),
                **_sums(group.sums),
            }
            for group in found
        ]
        for place, column in enumerate(zip(*(group.sums for group in found), strict=True)):
            self._totals[place] += sum(column)
        body = _encode(shown)[1:-1]
        separator, self._written = (b"," if self._written else b""), True
        return separator + body

    def tail(self) -> bytes:
        """Return what comes after the last one."""
        return b'],"totals":' + _encode(_sums(self._totals)) + b"}\n"


class CsvReport:
    """A line for each group, after one of names (RFC 4180). No cell is a formula."""

    content_type = b"text/csv; charset=utf-8; header=present"

    def __init__(self, plan: Plan) -> None:
        self._columns = plan.query.group_by

    def head(self) -> bytes:
        """Return what comes before the first group."""
        columns = [name for column in self._columns for name in (_KEY_NAMES if column == KEY else (column,))]
        return _lines([["start", *columns, *_NAMES]])

    def groups(self, found: Sequence[Group], labels: Labels) -> bytes:
        """Return some groups."""
        return _lines(
            [
                group.start,
                *map(_plain, _named(self._columns, group.values, labels).values()),
                *(money_text(number) if place == _COST else str(number) for place, number in enumerate(group.sums)),
            ]
            for group in found
        )

    def tail(self) -> bytes:
        """Return what comes after the last one."""
        return b""


_KEY_NAMES = ("key_id", "api_key", "key_alias")


def _named(columns: Sequence[str], values: Sequence[str], labels: Labels) -> dict[str, str | None]:
    """Return a group's values by their names; a key has three, of which a deleted one keeps its id."""
    found: dict[str, str | None] = {}
    for column, value in zip(columns, values, strict=True):
        if column != KEY:
            found[column] = value or None
            continue
        label = labels.get(value)
        found["key_id"] = value or None
        found["api_key"] = None if label is None else label.token
        found["key_alias"] = None if label is None else label.key_alias or label.key_name
    return found


def _sums(sums: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = dict(zip(_NAMES, sums, strict=True))
    found["spend"] = money(sums[_COST])
    return found


def _plain(value: str | None) -> str:
    """Return text that no program takes for a formula."""
    text = value or ""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _lines(rows: Any) -> bytes:
    text = StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()
