"""Lists of items with names of their own: sinks, and destinations of traces."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol, TypeVar

from twisted_vllm.config.checks import checker, kind_of, text
from twisted_vllm.config.problems import Place, Rejected

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Named(Protocol):
    """An item of such a list."""

    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


@checker("name", "letters, digits, '.', '_' and '-'")
def item_name(value: object, place: Place) -> str:
    """Check for the name of an item, which stands in metrics, in the log and as a directory."""
    found = text(value, place)
    if not _NAME.fullmatch(found) or not found.strip("."):
        raise Rejected("must be a name of letters, digits, '.', '_' and '-'")
    return found


def named_items(
    value: object, place: Place, what: str, most: int, read: Callable[[object, Place], N | None]
) -> tuple[N, ...]:
    """Check for a list of items, none of which has the name of another.

    Args:
        value: the list; None has none.
        place: its place.
        what: what one item is called.
        most: the most items.
        read: checks one item; None if it was refused.

    Raises:
        Rejected: it is no such list.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Rejected(f"must be a list, not {kind_of(value)} (write each {what} after '- ')")
    if len(value) > most:
        raise Rejected(f"may have {most} {what}s at most")
    found: dict[str, N] = {}
    for index, content in enumerate(value):
        here = place.item(index)
        item = read(content, here)
        if item is None:
            continue
        if item.name in found:
            here.key("name").refuse(f"stands twice (give each {what} a name of its own)")
        found[item.name] = item
    return tuple(found.values())
