"""The documentation's site: built without a warning, every link leads somewhere, everybody can use it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import attrs
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from benchmarks.chromium import chromium, find_chromium
from docs.site.markdown import REPOSITORY, documents

#: seconds that a build may take on a machine that does other things too
PATIENCE = 300
#: of each kind a page: the front page, an index, commands with a diagram, a generated table, a file, the search.
#: Small ones: axe needs seconds for a page with thousands of cells
PAGES = (
    "index.html",
    "docs/README.html",
    "docs/limits.html",
    "docs/routes.html",
    "config/systemd/vllm-passthrough.service.html",
    "search.html?q=rate_limit_exceeded",
)
#: WCAG 2.1 A and AA, and what axe calls best practice
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"], "resultTypes": ["violations"]}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    directory = tmp_path_factory.mktemp("site")
    strict = ("--fail-on-warning", "--keep-going", "--nitpicky", "--quiet")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            *strict,
            "-c",
            "docs/site",
            "-d",
            directory / "read",
            ".",
            directory / "html",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return directory / "html"


@attrs.define
class Links(HTMLParser):
    """What a page links to, what it loads, and what can be linked to in it."""

    targets: list[str] = attrs.field(factory=list)
    loaded: list[str] = attrs.field(factory=list)
    anchors: set[str] = attrs.field(factory=set)

    def __attrs_post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.anchors.add(found.get("id", ""))
        if tag == "a" and "href" in found:
            self.targets.append(found["href"])
        if "src" in found:
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(found["href"])


@cache
def links_of(page: Path) -> Links:
    found = Links()
    found.feed(page.read_text("utf-8"))
    return found


def test_every_document_has_a_page(site: Path) -> None:
    names = [path.relative_to(REPOSITORY).with_suffix(".html") for path in documents()]
    assert [str(name) for name in names if not (site / name).is_file()] == []


def test_every_link_leads_to_a_page_and_a_place_on_it(site: Path) -> None:
    broken = []
    for page in site.rglob("*.html"):
        found = links_of(page)
        for target in {*found.targets, *found.loaded}:
            parts = urlsplit(target)
            if parts.scheme:
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not file.is_file() or (
                parts.fragment and file.suffix == ".html" and unquote(parts.fragment) not in links_of(file).anchors
            ):
                broken.append(f"{page.relative_to(site)}: {target}")
    assert broken == []


def test_every_document_is_in_the_navigation(site: Path) -> None:
    named = {target.partition("#")[0] for target in links_of(site / "README.html").targets}
    pages = {str(path.relative_to(REPOSITORY).with_suffix(".html")) for path in documents()}
    # the decisions are listed on a page of their own
    decisions = {f"docs/decisions/{target}" for target in links_of(site / "docs" / "decisions" / "README.html").targets}
    assert sorted(pages - named - decisions - {"README.html"}) == []


def test_nothing_is_loaded_from_another_server(site: Path) -> None:
    loaded = {name for page in site.rglob("*.html") for name in links_of(page).loaded}
    assert [name for name in loaded if urlsplit(name).netloc] == []


def test_each_diagram_is_drawn_and_says_in_words_what_it_shows(site: Path) -> None:
    drawn = 0
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert "language-mermaid" not in text
        assert "highlight-mermaid" not in text
        for figure in text.split('<figure class="diagram"')[1:]:
            svg = figure.partition("</figure>")[0]
            assert "<title" in svg
            assert "<desc" in svg
            drawn += 1
    assert drawn >= 4


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("Chromium is not installed (Debian's package chromium)")
    with chromium(program) as found:
        yield found


@pytest.mark.parametrize(("colours", "width"), [("light", 1300), ("dark", 1300), ("light", 390)])
def test_everybody_can_use_the_pages(site: Path, browser: Browser, colours: str, width: int) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=colours,  # type: ignore[arg-type]  # a text of Playwright's own choice
        reduced_motion="reduce",
    )
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for name in PAGES:
        page.goto(f"file://{site}/{name}")
        page.wait_for_load_state("networkidle")
        violations = Axe().run(page, options=RULES).response["violations"]
        assert [(name, each["id"], each["nodes"][0]["html"]) for each in violations] == []
        # what is wider than a phone scrolls by itself, and not with the page
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    context.close()


def test_the_search_finds_an_error_by_its_code(site: Path, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"file://{site}/search.html?q=rate_limit_exceeded")
    found = page.get_by_role("link", name="Errors", exact=True).last
    found.wait_for()
    found.click()
    page.get_by_role("heading", name="Errors").first.wait_for()
    page.close()
