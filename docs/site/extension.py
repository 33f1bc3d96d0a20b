"""What the site adds to Sphinx: navigation from the indexes, diagrams, pages of the files that documents link to."""

from __future__ import annotations

import html
import posixpath
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from pygments.lexers.special import TextLexer
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.osutil import relative_uri

from docs.site.diagrams import drawing_of
from docs.site.navigation import DECISIONS, INDEX, Part, parts, toctrees

_LOG = logging.getLogger(__name__)
#: larger files are not shown as a page, but given to download
_SHOWN_BYTES = 100_000
#: parts of the theme's pages that have no name for those who do not see them
_NAMED_PARTS = {
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="All pages">',
    '<aside class="toc-drawer': '<aside aria-label="This page" class="toc-drawer',
    '<div id="search-results">': '<h1>Search</h1>\n<div id="search-results">',
}


def _add_navigation(app: Sphinx, document: str, source: list[str]) -> None:
    """Append the tables of contents to the pages that have one."""
    if document == app.config.root_doc:
        listed = list(parts(INDEX, Path(app.srcdir, f"{INDEX}.md").read_text("utf-8")))
        app.env.note_dependency(f"{INDEX}.md")
        # the index is in no table of its own
        listed.insert(0, Part("", (("Documentation", INDEX),)))
        source[0] += toctrees(document, listed)


def _leave_decisions_to_their_index(app: Sphinx, doctree: nodes.document) -> None:
    """Keep the decisions out of the navigation of every page: their index lists them all."""
    if app.env.docname.startswith(DECISIONS):
        app.env.metadata[app.env.docname]["orphan"] = True


def _draw_diagrams(app: Sphinx, doctree: nodes.document) -> None:
    """Put the drawing in the place of each Mermaid block."""
    for block in list(doctree.findall(nodes.literal_block)):
        if block.get("language") != "mermaid":
            continue
        drawing = drawing_of(block.astext())
        if drawing is None:
            _LOG.warning("a diagram was not drawn: run make diagrams", location=block)
            continue
        block.replace_self(nodes.raw("", f'<figure class="diagram" tabindex="0">{drawing}</figure>', format="html"))


class _RepositoryFiles(SphinxPostTransform):
    """Links to files and folders of the repository lead to pages that show them."""

    # before MyST resolves its references and Sphinx copies downloads
    default_priority = 5

    def run(self, **_: Any) -> None:
        """Replace the links of one document."""
        for file in list(self.document.findall(addnodes.download_reference)):
            self._link(file, self._named(file["reftarget"]))
        for other in list(self.document.findall(addnodes.pending_xref)):
            if other["reftype"] != "myst":
                continue
            if other["refdomain"] == "doc":
                # a Markdown file that is no page of the site, such as a folder's README
                name = f"{other['reftarget']}.md"
                if other["reftarget"] not in self.env.found_docs and Path(self.env.srcdir, name).is_file():
                    self._link(other, name)
            elif Path(self.env.srcdir, self._named(other["reftarget"])).is_dir():
                self._link(other, self._named(other["reftarget"]))

    def _named(self, target: str) -> str:
        """Return a target relative to the repository's root."""
        return posixpath.normpath(posixpath.join(posixpath.dirname(self.env.docname), target)).lstrip("/")

    def _link(self, node: nodes.Element, name: str) -> None:
        """Make a node a link to the page of a file or folder."""
        path = Path(self.env.srcdir, name)
        if path.is_file() and path.stat().st_size > _SHOWN_BYTES:
            return
        self.env.metadata[self.env.docname].setdefault("repository_files", set()).add(name)
        uri = relative_uri(self.app.builder.get_target_uri(self.env.docname), f"{name}.html")
        link = nodes.reference("", "", internal=True, refuri=uri)
        link += [child.deepcopy() for child in node.children]
        node.replace_self(link)


def _pages_of_files(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a page for each file and folder that a document links to."""
    names: set[str] = set()
    for metadata in app.env.metadata.values():
        names |= metadata.get("repository_files", set())
    for name in sorted(names):
        folder = Path(app.srcdir, name)
        if folder.is_dir():
            names |= {f"{name}/{path.name}" for path in folder.iterdir() if _is_shown(path)}
    for name in sorted(names):
        path = Path(app.srcdir, name)
        body = _folder(path, names) if path.is_dir() else _file(path)
        yield name, {"title": name, "body": f"<h1>{html.escape(name)}</h1>\n{body}"}, "page.html"


def _is_shown(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.stat().st_size <= _SHOWN_BYTES


def _folder(path: Path, names: set[str]) -> str:
    items = []
    for each in sorted(path.iterdir()):
        if each.name.startswith((".", "__")):
            continue
        text = html.escape(each.name)
        linked = any(name.endswith(f"{path.name}/{each.name}") for name in names)
        items.append(f'<li><a href="{path.name}/{text}.html">{text}</a></li>' if linked else f"<li>{text}</li>")
    return f"<ul>{''.join(items)}</ul>"


def _file(path: Path) -> str:
    try:
        # systemd's units are written as ini files
        lexer = get_lexer_for_filename("unit.ini" if path.suffix in (".service", ".socket") else path.name)
    except ClassNotFound:
        lexer = TextLexer()
    return highlight(path.read_text("utf-8"), lexer, HtmlFormatter(cssclass="highlight"))


def _finish(app: Sphinx, failure: Exception | None) -> None:
    """Name the parts of each page, and give each folder's README the name that web servers look for, too."""
    if failure is not None or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text("utf-8")
        for before, after in _NAMED_PARTS.items():
            text = text.replace(before, after)
        page.write_text(text, "utf-8")
    for page in Path(app.outdir).rglob("README.html"):
        shutil.copyfile(page, page.with_name("index.html"))


def _make_accessible(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Mend what axe finds in the pages of the theme."""
    # what scrolls sideways can be reached with the keyboard
    body = context.get("body", "").replace('<div class="table-wrapper', '<div tabindex="0" class="table-wrapper')
    body = body.replace("<pre>", '<pre tabindex="0">')
    # the empty corner of a table is no header
    context["body"] = re.sub(r'<th class="head">(?:<p></p>)?</th>', "<td></td>", body)
    tree = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect it to Sphinx."""
    app.connect("source-read", _add_navigation)
    app.connect("doctree-read", _draw_diagrams)
    app.connect("doctree-read", _leave_decisions_to_their_index)
    app.add_post_transform(_RepositoryFiles)
    app.connect("html-collect-pages", _pages_of_files)
    app.connect("html-page-context", _make_accessible, priority=900)
    app.connect("build-finished", _finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": False}
