"""The navigation of the site, read from the indexes that GitHub shows: there is no second list of the pages.

Each section of ``docs/README.md`` whose table links to pages becomes a part of the navigation, with the section's
heading as its caption.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

import attrs

from docs.site.markdown import links

INDEX = "docs/README"
#: the beginning of the decisions' names
DECISIONS = "docs/decisions/0"


@attrs.frozen
class Part:
    """A part of the navigation.

    Attributes:
        caption: its heading; empty before the first one.
        pages: titles and documents, relative to the repository's root and without ``.md``.
    """

    caption: str
    pages: tuple[tuple[str, str], ...]


def parts(index: str, text: str) -> Iterator[Part]:
    """Yield the parts of an index that list pages.

    Args:
        index: the document that lists, without ``.md``.
        text: its Markdown.
    """
    for section in re.split(r"^## +", text, flags=re.MULTILINE)[1:]:
        caption, _, body = section.partition("\n")
        pages = []
        for line in body.splitlines():
            # the first cell of a row of a table names the page; other cells may link anywhere
            cell = line.removeprefix("| ").partition(" |")[0] if line.startswith("| ") else ""
            pages += [
                (title, posixpath.normpath(posixpath.join(posixpath.dirname(index), target.removesuffix(".md"))))
                for title, target in links(cell)
                if target.endswith(".md")
            ]
        if pages:
            yield Part(caption.strip(), tuple(pages))


def toctrees(document: str, listed: list[Part]) -> str:
    """Return MyST's directives for hidden tables of contents, to be appended to a document."""
    directives = []
    for part in listed:
        lines = ["```{toctree}", ":hidden:", *([f":caption: {part.caption}"] if part.caption else []), ""]
        lines += [f"{title} </{page}>" for title, page in part.pages if page != document]
        directives.append("\n".join([*lines, "```"]))
    return "\n\n" + "\n\n".join(directives) + "\n"
