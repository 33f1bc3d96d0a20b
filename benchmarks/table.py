"""The printed table: rows of figures, and the ratios of one row to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

MISSING = "-"


@attrs.frozen
class Column:
    """A column of figures.

    Attributes:
        key: its name in a row.
        title: what stands above it; a line break makes two lines.
        digits: digits after the decimal point.
        compared: whether a ratio of two of its figures says something.
    """

    key: str
    title: str
    digits: int = 0
    compared: bool = True


Row = Mapping[str, float | None]


def figure(value: float | None, digits: int) -> str:
    """Format a figure, or the sign for none."""
    return MISSING if value is None else f"{value:,.{digits}f}"


def ratio(subject: float | None, other: float | None) -> str:
    """Format the ratio of `subject` to `other`; the sign for none if one is missing or `other` is 0."""
    return MISSING if subject is None or not other else f"{subject / other:.2f}x"


def render(columns: Sequence[Column], rows: Mapping[str, Row], compare: Sequence[tuple[str, str]] = ()) -> str:
    """Lay out a table.

    Args:
        columns: the columns after the name.
        rows: the figures by the row's name; a figure may be missing.
        compare: pairs of row names, for ratios of the first to the second, where both exist.

    Returns:
        Lines without a last line break.
    """
    cells = [[name, *(figure(row.get(column.key), column.digits) for column in columns)] for name, row in rows.items()]
    ratios = [
        [f"{one} / {other}", *(_ratio_cell(column, rows[one], rows[other]) for column in columns)]
        for one, other in compare
        if one in rows and other in rows
    ]
    titles = [["", *(column.title for column in columns)]]
    height = max(cell.count("\n") + 1 for cell in titles[0])
    heads = [[(cell.split("\n") + [""] * height)[line] for cell in titles[0]] for line in range(height)]
    widths = [max(len(line[index]) for line in heads + cells + ratios) for index in range(len(columns) + 1)]
    rule = "  ".join("-" * width for width in widths)
    lines = [*_aligned(heads, widths), rule, *_aligned(cells, widths)]
    if ratios:
        lines += [rule, *_aligned(ratios, widths)]
    return "\n".join(lines)


def _ratio_cell(column: Column, one: Row, other: Row) -> str:
    return ratio(one.get(column.key), other.get(column.key)) if column.compared else ""


def _aligned(lines: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    return [
        "  ".join(
            [cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]
        ).rstrip()
        for cells in lines
    ]
