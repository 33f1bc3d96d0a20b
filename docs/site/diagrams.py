"""The diagrams of the documents, drawn from their Mermaid blocks.

GitHub draws these blocks itself. The site shows drawings that were made before: ``make diagrams`` draws each new block
with Mermaid in Chromium, without a request to anybody but npm's registry. A drawing has the name of its source's hash,
so that none can be out of date. Building the site needs neither program.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from docs.site.markdown import REPOSITORY, blocks, documents

DRAWINGS = REPOSITORY / "docs" / "images" / "diagrams"
_MERMAID = Path(__file__).with_name("mermaid.toml")
#: where the downloaded library is kept
_CACHE = REPOSITORY / "build" / "mermaid.js"

#: colours that Mermaid is given, and the names under which the site's style sheet has those of the light and the dark
#: theme. Mermaid computes with colours, so it cannot be given the names.
_COLOURS: Mapping[str, str] = {
    "#fdfdf1": "box",
    "#11223a": "text",
    "#33445b": "line",
    "#f0f1fa": "group",
    "#c0c1ca": "border",
    "#fafaf2": "label",
}
_BY_NAME = {name: colour for colour, name in _COLOURS.items()}
#: Debian's package fonts-dejavu-core; it is wide, so that the text fits its box in other fonts too
_FONT = "DejaVu Sans, Verdana, sans-serif"
_SETTINGS = {
    "startOnLoad": False,
    "deterministicIds": True,
    "htmlLabels": False,
    "securityLevel": "strict",
    "theme": "base",
    "look": "classic",
    "flowchart": {"htmlLabels": False, "useMaxWidth": True, "wrappingWidth": 400},
    "sequence": {"useMaxWidth": True},
    "fontFamily": _FONT,
    "themeVariables": {
        "fontFamily": _FONT,
        "fontSize": "14px",
        "background": _BY_NAME["label"],
        "primaryColor": _BY_NAME["box"],
        "primaryTextColor": _BY_NAME["text"],
        "primaryBorderColor": _BY_NAME["border"],
        "secondaryColor": _BY_NAME["group"],
        "secondaryTextColor": _BY_NAME["text"],
        "secondaryBorderColor": _BY_NAME["border"],
        "tertiaryColor": _BY_NAME["group"],
        "tertiaryTextColor": _BY_NAME["text"],
        "tertiaryBorderColor": _BY_NAME["border"],
        "arrowheadColor": _BY_NAME["line"],
        "lineColor": _BY_NAME["line"],
        "textColor": _BY_NAME["text"],
        "mainBkg": _BY_NAME["box"],
        "nodeBorder": _BY_NAME["border"],
        "clusterBkg": _BY_NAME["group"],
        "clusterBorder": _BY_NAME["border"],
        "titleColor": _BY_NAME["text"],
        "edgeLabelBackground": _BY_NAME["label"],
        "actorBkg": _BY_NAME["box"],
        "actorBorder": _BY_NAME["border"],
        "actorTextColor": _BY_NAME["text"],
        "actorLineColor": _BY_NAME["line"],
        "signalColor": _BY_NAME["line"],
        "signalTextColor": _BY_NAME["text"],
        "labelBoxBkgColor": _BY_NAME["group"],
        "labelBoxBorderColor": _BY_NAME["border"],
        "labelTextColor": _BY_NAME["text"],
        "loopTextColor": _BY_NAME["text"],
        "noteBkgColor": _BY_NAME["group"],
        "noteBorderColor": _BY_NAME["border"],
        "noteTextColor": _BY_NAME["text"],
        "activationBkgColor": _BY_NAME["group"],
        "activationBorderColor": _BY_NAME["border"],
    },
}


def name_of(source: str) -> str:
    """Return the name of the drawing of a Mermaid block: the beginning of its hash."""
    return hashlib.sha256(source.strip().encode()).hexdigest()[:12]


def drawing_of(source: str) -> str | None:
    """Return the drawing of a Mermaid block as SVG; None if it was not drawn."""
    file = DRAWINGS / f"{name_of(source)}.svg"
    return file.read_text("utf-8") if file.is_file() else None


def sources() -> dict[str, str]:
    """Return all Mermaid blocks of the documents by the names of their drawings."""
    found = [block.text for path in documents() for block in blocks(path) if block.language == "mermaid"]
    return {name_of(text): text.strip() for text in found}


def _library() -> str:
    """Return Mermaid's JavaScript, from npm at the first time.

    Raises:
        ValueError: the package is not the one whose hash ``mermaid.toml`` has.
    """
    from tests.packaging.vendored import fetch

    if not _CACHE.is_file():
        package = tomllib.loads(_MERMAID.read_text("utf-8"))["mermaid"]
        _CACHE.parent.mkdir(exist_ok=True)
        _CACHE.write_bytes(fetch(package)["mermaid.js"])
    return _CACHE.read_text("utf-8")


def _themed(svg: str) -> str:
    """Return a drawing whose colours are those of the page around it, and no larger than it needs to be."""
    # a tenth of a pixel is exact enough, and what Mermaid notes for editors is of no use here
    svg = re.sub(r' data-(?:points|look|et|id)="[^"]*"', "", svg)
    svg = re.sub(r"-?\d+\.\d{2,}", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), svg)
    for colour, name in _COLOURS.items():
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        for written in (colour, colour.upper(), f"rgb({red}, {green}, {blue})"):
            svg = svg.replace(written, f"var(--diagram-{name}, {colour})")
    return svg


def draw(wanted: Mapping[str, str]) -> dict[str, str]:
    """Return the drawings of Mermaid blocks by name.

    Raises:
        SystemExit: Chromium is missing, or a block is not Mermaid.
    """
    from benchmarks.chromium import chromium, find_chromium

    program = find_chromium()
    if program is None:
        raise SystemExit("make diagrams: Chromium is not installed (Debian's package chromium)")
    made = {}
    with chromium(program) as browser:
        page = browser.new_page()
        page.set_content("<!doctype html><body></body>")
        page.add_script_tag(content=_library())
        page.evaluate("(settings) => mermaid.initialize(settings)", _SETTINGS)
        for name, source in wanted.items():
            svg = page.evaluate(
                "([id, source]) => mermaid.render(id, source).then((made) => made.svg)", [f"diagram-{name}", source]
            )
            made[name] = _themed(svg) + "\n"
    return made


def main(arguments: Sequence[str]) -> int:
    """Draw what is missing and remove what no document has; return the exit status."""
    parser = argparse.ArgumentParser(prog="make diagrams", description=__doc__.partition("\n")[0])
    parser.add_argument("--again", action="store_true", help="draw all blocks, also those that were drawn")
    again = parser.parse_args(arguments).again
    DRAWINGS.mkdir(parents=True, exist_ok=True)
    found = sources()
    have = {path.stem for path in DRAWINGS.glob("*.svg")}
    for name in have - found.keys():
        (DRAWINGS / f"{name}.svg").unlink()
        print(f"removed {name}.svg")
    missing = {name: text for name, text in found.items() if again or name not in have}
    for name, svg in (draw(missing) if missing else {}).items():
        (DRAWINGS / f"{name}.svg").write_text(svg, "utf-8")
        print(f"drew {name}.svg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
