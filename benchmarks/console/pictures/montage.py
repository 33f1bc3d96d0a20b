"""One small picture of a page: light and dark, wide and on a phone; put together and compressed by Chromium."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence

import attrs
from playwright.sync_api import Browser

#: a file is as small as this in bytes, at the cost of its quality
MOST_BYTES = 60_000
_QUALITIES = (90, 80, 70, 60, 50, 40, 30)
#: of a screenshot's size: a smaller one where the file would look bad, and pixels between two
_SCALES, _GAP = (0.75, 0.65, 0.55), 12


@attrs.frozen
class View:
    """A window.

    Attributes:
        scheme: ``light`` or ``dark``.
        width: pixels of the window.
        height: likewise.
    """

    scheme: str
    width: int
    height: int = 800


_WIDE, _PHONE = 1280, 390
#: the rows of a picture
ROWS: Sequence[Sequence[View]] = [[View(scheme, _WIDE), View(scheme, _PHONE)] for scheme in ("light", "dark")]
VIEWS = tuple(view for row in ROWS for view in row)


def montage(browser: Browser, shots: Mapping[View, bytes]) -> bytes:
    """Return a picture in WebP of these screenshots in PNG."""
    for scale in _SCALES:
        for picture in _compressed(browser, shots, scale):
            if len(picture) <= MOST_BYTES:
                return picture
    return picture


def _compressed(browser: Browser, shots: Mapping[View, bytes], scale: float) -> Iterator[bytes]:
    """Yield the picture in this size, smaller and smaller."""
    rows = [[view for view in row if view in shots] for row in ROWS]
    rows = [row for row in rows if row]
    width = max(sum(round(view.width * scale) + _GAP for view in row) - _GAP for row in rows)
    height = sum(round(row[0].height * scale) + _GAP for row in rows) - _GAP
    images = "<br>".join("".join(_image(view, shots[view], scale) for view in row) for row in rows)
    page = browser.new_page(viewport={"width": width, "height": height})
    try:
        page.set_content(
            "<style>body{margin:0;background:#888;font-size:0;white-space:nowrap;line-height:0}"
            f"img{{margin:0 {_GAP}px {_GAP}px 0}}</style>{images}"
        )
        page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
        session = page.context.new_cdp_session(page)
        for quality in _QUALITIES:
            found = session.send("Page.captureScreenshot", {"format": "webp", "quality": quality})
            yield b64decode(found["data"])
    finally:
        page.close()


def _image(view: View, shot: bytes, scale: float) -> str:
    source = b64encode(shot).decode("ascii")
    size = f'width="{round(view.width * scale)}" height="{round(view.height * scale)}"'
    return f'<img {size} src="data:image/png;base64,{source}">'
