"""What the documentation is made with: the navigation from its indexes, blocks and their marks, drawings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.site import diagrams, markdown
from docs.site.markdown import REPOSITORY, Block
from docs.site.navigation import Part, parts, toctrees
from docs.site.reference import errors
from docs.site.reference.markdown_table import attributes_of

INDEX = """\
# Documentation

## How-to guides

| page | answers |
| --- | --- |
| [Keys](keys.md) | how to make them; see [limits](limits.md) |
| [Front page](../README.md) | what it is |
| [Quick start](../README.md#quick-start) | a place on a page |

## Words

| word | meaning |
| --- | --- |
| key | a secret |
"""


def test_a_section_whose_table_links_to_pages_is_a_part_of_the_navigation() -> None:
    assert list(parts("docs/README", INDEX)) == [
        Part("How-to guides", (("Keys", "docs/keys"), ("Front page", "README")))
    ]


def test_a_page_is_not_below_itself() -> None:
    [part] = parts("docs/README", INDEX)
    made = "\n\n```{toctree}\n:hidden:\n:caption: How-to guides\n\nKeys </docs/keys>\n```\n"
    assert toctrees("README", [part]) == made


def test_blocks_are_found_with_the_comments_above_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "REPOSITORY", tmp_path)
    page = tmp_path / "page.md"
    listed = "1. Do:\n\n   <!-- not run: no time -->\n   <!-- needs: jq -->\n   ```sh\n   jq .\n   ```\n"
    page.write_text(f"{listed}\n```yaml\na: 1\n```\n")
    assert list(markdown.blocks(page)) == [
        Block("page.md", 5, "sh", "jq .\n", ("not run: no time", "needs: jq")),
        Block("page.md", 9, "yaml", "a: 1\n", ()),
    ]


def test_every_mermaid_block_is_drawn_and_nothing_else_is_kept() -> None:
    drawn = {path.stem for path in diagrams.DRAWINGS.glob("*.svg")}
    assert drawn == set(diagrams.sources()), "run make diagrams"


def test_drawings_have_the_colours_of_the_page() -> None:
    for path in diagrams.DRAWINGS.glob("*.svg"):
        colours = set(re.findall(r"(?<!, )#[0-9a-f]{6}\b", path.read_text("utf-8")))
        # of shadows, which these diagrams do not have
        assert colours <= {"#000000"}, path.name


def test_the_style_sheet_has_every_colour_of_the_drawings() -> None:
    sheet = (REPOSITORY / "docs" / "site" / "static" / "site.css").read_text("utf-8")
    used = {
        name for path in diagrams.DRAWINGS.glob("*.svg") for name in re.findall(r"var\((--[\w-]+)", path.read_text())
    }
    assert [name for name in used if f"{name}:" not in sheet] == []


def test_an_error_without_words_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = tmp_path / "errors.toml"
    words.write_text('[of_nobody]\nmeans = "nothing"\ndo = "nothing"\n')
    monkeypatch.setattr(errors, "_WORDS", words)
    with pytest.raises(ValueError, match="of_nobody"):
        errors.page()


def test_a_field_without_a_description_is_noticed() -> None:
    class Undescribed:
        """A struct.

        Attributes:
            one: the first.
        """

        __struct_fields__ = ("one", "two")

    with pytest.raises(ValueError, match="two"):
        attributes_of(Undescribed)
