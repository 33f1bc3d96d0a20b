"""The few elements of SVG that a dashboard is drawn with."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

FONT = "Inter,'Helvetica Neue',Helvetica,Arial,'Liberation Sans',sans-serif"

Point = tuple[float, float]


class Drawing:
    """Collects elements.

    Attributes:
        width: in pixels.
        height: in pixels.
    """

    def __init__(self, width: float, height: float, background: str) -> None:
        self.width = width
        self.height = height
        self._parts: list[str] = []
        self.rectangle(0, 0, width, height, background)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        color: str,
        *,
        size: float = 12,
        weight: int = 400,
        anchor: str = "start",
    ) -> None:
        """Write a text; `y` is its base line."""
        bold = "" if weight == 400 else f' font-weight="{weight}"'
        place = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._parts.append(
            f'<text x="{_short(x)}" y="{_short(y)}" fill="{color}" font-size="{_short(size)}"{bold}{place}>'
            f"{escape(text)}</text>"
        )

    def rectangle(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        *,
        radius: float = 0,
        stroke: str = "",
        opacity: float = 1,
    ) -> None:
        """Fill a rectangle, with a border if it has a color."""
        more = f' rx="{_short(radius)}"' if radius else ""
        more += f' stroke="{stroke}"' if stroke else ""
        more += f' fill-opacity="{opacity:g}"' if opacity != 1 else ""
        place = f'x="{_short(x)}" y="{_short(y)}" width="{_short(width)}" height="{_short(height)}"'
        self._parts.append(f'<rect {place} fill="{fill}"{more}/>')

    def line(
        self, points: Sequence[Point], color: str, *, width: float = 1, opacity: float = 1, dashed: bool = False
    ) -> None:
        """Draw a line through points."""
        more = f' stroke-opacity="{opacity:g}"' if opacity != 1 else ""
        more += ' stroke-dasharray="4 3"' if dashed else ""
        self._parts.append(
            f'<path d="{_path(points)}" fill="none" stroke="{color}" stroke-width="{_short(width)}"'
            f' stroke-linejoin="round"{more}/>'
        )

    def area(self, points: Sequence[Point], color: str, opacity: float) -> None:
        """Fill what lies between points."""
        self._parts.append(f'<path d="{_path(points)}Z" fill="{color}" fill-opacity="{opacity:g}"/>')

    def document(self) -> str:
        """Return the whole file."""
        size = f'width="{_short(self.width)}" height="{_short(self.height)}"'
        box = f'viewBox="0 0 {_short(self.width)} {_short(self.height)}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box} font-family="{FONT}">'
        return "\n".join([head, *self._parts, "</svg>", ""])


def _path(points: Sequence[Point]) -> str:
    """Points that add nothing to a straight line are left out."""
    kept: list[Point] = []
    for point in points:
        x, y = round(point[0], 1), round(point[1], 1)
        if len(kept) > 1 and kept[-1][1] == y == kept[-2][1]:
            kept.pop()
        kept.append((x, y))
    return "M" + "L".join(f"{_short(x)} {_short(y)}" for x, y in kept)


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
