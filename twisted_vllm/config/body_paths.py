"""Paths of fields in a body: ``metadata.secret``, ``messages[].content[type=image_url]``."""

from __future__ import annotations

import re

import msgspec

#: the most steps of a path
MOST_STEPS = 16

_STEP = re.compile(
    r"(?P<name>[^.\[\]=]{1,128})(?P<item>\[(?:(?P<key>[^.\[\]=]{1,128})=(?P<value>[^.\[\]=]{1,128}))?\])?"
)


class BadPath(ValueError):
    """A path that cannot be read; the message says why."""


class Step(msgspec.Struct, frozen=True):
    """One step of a path.

    Attributes:
        name: the name of a member; ``*`` for each.
        items: whether the member is a list whose items are meant.
        key: the member that an item must have; empty for all items.
        value: the text that it must be.
    """

    name: str
    items: bool = False
    key: str = ""
    value: str = ""


def parse_path(path: str) -> tuple[Step, ...]:
    """Read a path.

    Raises:
        BadPath: it is none.
    """
    found: list[Step] = []
    at = 0
    while at < len(path) or not found:
        matched = _STEP.match(path, at)
        if matched is None or (matched.end() < len(path) and path[matched.end()] != "."):
            raise BadPath(
                "must be names of members with dots between them; [] stands for each item of a list, and "
                "[type=image_url] for each whose member has that value"
            )
        item = matched["item"] is not None
        found.append(Step(matched["name"], item, matched["key"] or "", matched["value"] or ""))
        at = matched.end() + 1
        if len(found) > MOST_STEPS:
            raise BadPath(f"must have at most {MOST_STEPS} steps")
    if path.endswith("."):
        raise BadPath("must not end with a dot")
    return tuple(found)
