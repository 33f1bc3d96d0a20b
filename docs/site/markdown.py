"""What the site and its tools read of the repository's Markdown files: documents, fenced blocks, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import attrs

REPOSITORY = Path(__file__).parents[2]

_FENCE = re.compile(
    r"(?P<marks>(?:^ *<!--[^\n]*-->\n)*)"
    r"^(?P<margin> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```",
    re.DOTALL | re.MULTILINE,
)
_MARK = re.compile(r"<!-- *(.*?) *-->")
_LINK = re.compile(r"(?<!!)\[([^\]\[]*)\]\(([^()\s]+)\)")


@attrs.frozen
class Block:
    """A fenced block.

    Attributes:
        document: the file, relative to the repository's root.
        line: the line of its fence, counted from 1.
        language: the word after the fence; empty if there is none.
        text: its lines, without the margin of a list.
        marks: the HTML comments on the lines before it, which readers do not see.
    """

    document: str
    line: int
    language: str
    text: str
    marks: tuple[str, ...]


def documents() -> list[Path]:
    """Return the Markdown files of the site, sorted."""
    return sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])


def blocks(path: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a document, in their order."""
    text = path.read_text("utf-8")
    for found in _FENCE.finditer(text):
        margin = len(found["margin"])
        yield Block(
            document=str(path.relative_to(REPOSITORY)),
            line=text.count("\n", 0, found.start("margin")) + 1,
            language=found["language"],
            text="".join(line[margin:] if line[:margin].isspace() else line for line in found["text"].splitlines(True)),
            marks=tuple(_MARK.findall(found["marks"])),
        )


def links(text: str) -> list[tuple[str, str]]:
    """Return the text and the target of each link, in their order."""
    return _LINK.findall(text)
