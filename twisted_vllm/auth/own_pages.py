"""The pages of the console that a link may lead to after a sign-in."""

from __future__ import annotations

#: where the console is: nothing else is led to
HOME = "/ui"
#: characters of a page that is led to
LONGEST_PAGE = 1_024


def own_page(text: str) -> str:
    """Return a page of the console that a link named; its first page for everything else, such as another site."""
    path = text.partition("?")[0]
    is_below = path == HOME or path.startswith(f"{HOME}/")
    is_plain = text.isascii() and text.isprintable() and not set(' "<>\\#') & set(text) and "//" not in path
    # a browser resolves dots, also encoded ones
    goes_up = any(part in (".", "..") for part in path.lower().replace("%2e", ".").replace("%2f", "/").split("/"))
    return text if is_below and is_plain and not goes_up and len(text) <= LONGEST_PAGE else HOME
