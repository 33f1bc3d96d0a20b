"""Tables and texts of the reference pages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence

#: what a reader of the Markdown file is told
WRITTEN = "<!-- Written by `make reference` from {source}: do not edit it here. -->"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a table, without the columns that are empty in all rows."""
    titles = [title for title in rows[0] if any(row[title] for row in rows)]
    lines = [titles, ["---"] * len(titles), *([row[title] or " " for title in titles] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def code(text: str) -> str:
    """Return a text as code."""
    return f"`{text}`"


def codes(texts: Iterable[str]) -> str:
    """Return several texts as code."""
    return ", ".join(map(code, texts))


def cell(text: str) -> str:
    """Return the text of a docstring or a description for a cell: one line, with Markdown's own code marks."""
    text = " ".join(text.split()).replace("``", "`").replace("`None`", "`null`")
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def attributes_of(kind: type) -> dict[str, str]:
    """Return what the docstring of a class says of each of its attributes (Google style), in their order.

    Raises:
        ValueError: an attribute is not described, or one is described that there is not.
    """
    _, _, section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    for line in section.splitlines():
        begins = re.match(r" {4}(\w+): (.*)", line)
        if begins:
            found[begins[1]] = begins[2]
        elif line.startswith(" " * 5) and found:
            found[list(found)[-1]] += f" {line.strip()}"
    names: tuple[str, ...] = kind.__struct_fields__  # type: ignore[attr-defined]  # it is a msgspec.Struct
    missing = set(names) ^ set(found)
    # "likewise `team_id` and `organization_id`" describes them with another one
    missing -= {name for name in names if any(f"`{name}`" in text for text in found.values())}
    if missing:
        raise ValueError(f"{kind.__name__}: its docstring and its fields differ: {sorted(missing)}")
    return {name: found.get(name, "") for name in names}
