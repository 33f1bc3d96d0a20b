"""What commands print: tables for people, JSON and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import click

TABLE, JSON, CSV = "table", "json", "csv"
#: columns of a cell before it is cut
_WIDEST = 40


def as_table(rows: Sequence[Sequence[object]], heads: Sequence[str], right: frozenset[int] = frozenset()) -> str:
    """Return rows as aligned text.

    Args:
        rows: the cells.
        heads: what stands above them.
        right: the numbers of columns that are aligned to the right, from 0.
    """
    cells = [[printable(_cut(shown(cell))) for cell in row] for row in (heads, *rows)]
    widths = [max(columns(row[place]) for row in cells) for place in range(len(heads))]
    lines = []
    for row in cells:
        parts = []
        for place, cell in enumerate(row):
            space = " " * (widths[place] - columns(cell))
            parts.append(space + cell if place in right else cell + space)
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def as_csv(rows: Sequence[Sequence[object]], heads: Sequence[str]) -> str:
    """Return rows as CSV; what a spreadsheet would take for a formula begins with an apostrophe."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(heads)
    for row in rows:
        cells = ["" if cell is None else str(cell) for cell in row]
        writer.writerow([f"'{cell}" if cell[:1] in ("=", "+", "@", "\t", "\r") else cell for cell in cells])
    return written.getvalue().rstrip("\n")


def show(
    output: str,
    answer: Any,
    rows: Sequence[Sequence[object]],
    heads: Sequence[str],
    right: frozenset[int] = frozenset(),
) -> None:
    """Print an answer as it was asked for: the answer itself as JSON, or its rows."""
    if output == JSON:
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    elif output == CSV:
        click.echo(as_csv(rows, [head.lower().replace(" ", "_") for head in heads]))
    elif rows:
        click.echo(as_table(rows, heads, right))
    else:
        click.echo("none", err=True)


def show_record(output: str, record: Mapping[str, Any], names: Sequence[str] = ()) -> None:
    """Print one record: its fields that say something, those that are named first."""
    if output == JSON:
        click.echo(json.dumps(record, indent=2, ensure_ascii=False))
        return
    # an amount of zero says something, what is not switched on does not
    said = {name: value for name, value in record.items() if value is not False and value not in (None, "", [], {})}
    first = [name for name in names if name in said]
    rows = [(name, _of_record(said[name])) for name in (*first, *(name for name in said if name not in first))]
    if output == CSV:
        click.echo(as_csv(rows, ("field", "value")))
        return
    width = max((len(name) for name, _ in rows), default=0) + 2
    for name, value in rows:
        click.echo(f"{printable(name):{width}}{printable(str(value))}")


def _of_record(value: object) -> object:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | bool) else shown(value)


def shown(value: object) -> str:
    """Return a cell's text: nothing for None, moments to the second, in UTC."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    text = str(value)
    if len(text) >= 20 and text[4:5] == "-" and text[10:11] == "T":
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return text
        return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment.utcoffset() is not None and not moment.utcoffset() else text
    return text


def dollars(value: float | None) -> str:
    """Return an amount; cents, or as many digits as a small one needs."""
    if value is None:
        return ""
    if not value or abs(value) >= 0.01:
        return f"${value:,.2f}"
    return f"${value:.8f}".rstrip("0")


def printable(text: str) -> str:
    """Return a text that does nothing to a terminal: what steers one is written out."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text
    )


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"
