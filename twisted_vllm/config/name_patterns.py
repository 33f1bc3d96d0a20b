"""Model names with wildcards: ``*`` stands for any text.

What they match, and which counts of several, is as in LiteLLM (``router_utils/pattern_match_deployments.py``).
"""

from __future__ import annotations

import re
from functools import lru_cache

WILDCARD = "*"
#: the most wildcards in a name
MAX_WILDCARDS = 8


class NamePattern:
    """A name with wildcards. A match takes time in proportion to the length of the name and of the pattern.

    Attributes:
        text: the pattern.
    """

    __slots__ = ("_first", "_last", "_middle", "text")

    def __init__(self, text: str) -> None:
        """Read a pattern, which has at least one wildcard."""
        self.text = text
        self._first, *middle, self._last = text.split(WILDCARD)
        self._middle = middle[::-1]

    def __repr__(self) -> str:
        return f"<NamePattern {self.text}>"

    def match(self, name: str) -> tuple[str, ...] | None:
        """Return what each wildcard stands for in a name, the first as much as it can; None if it does not match."""
        start, end = len(self._first), len(name) - len(self._last)
        if start > end or not name.startswith(self._first) or not name.endswith(self._last):
            return None
        found = []
        for part in self._middle:
            at = name.rfind(part, start, end)
            if at < 0:
                return None
            found.append(name[at + len(part) : end])
            end = at
        found.append(name[start:end])
        return tuple(found[::-1])


# of the configuration's patterns alone
_compiled = lru_cache(maxsize=256)(NamePattern)


def is_pattern(name: str) -> bool:
    """Return whether a name has wildcards."""
    return WILDCARD in name


def specificity(pattern: str) -> tuple[int, int]:
    """Return what orders patterns: of several that match, the one with the highest value counts.

    It is LiteLLM's order: by the length of the regular expression that it makes of a pattern, then by its special
    characters.
    """
    expression = re.escape(pattern).replace(r"\*", "(.*)")
    return len(expression), sum(expression.count(each) for each in r"*+?\^$|()")


def filled(template: str, segments: tuple[str, ...], name: str) -> str:
    """Return the server's name of a model.

    Args:
        template: the server's name, perhaps with wildcards.
        segments: what the wildcards of the matched pattern stand for.
        name: the name that matched: it is the server's own if the template has fewer wildcards than the pattern.
    """
    pieces = template.split(WILDCARD)
    if len(pieces) == 1:
        return template
    if len(segments) > len(pieces) - 1:
        return name
    return "".join(piece + segment for piece, segment in zip(pieces, (*segments, ""), strict=True))


def callers_name(pattern: str, template: str, served: str) -> str | None:
    """Return the name by which callers ask for a model that a server has; None if the server's name does not tell.

    Args:
        pattern: the ``model_name`` of an entry.
        template: the server's name in this entry.
        served: the server's name of the model.
    """
    if not is_pattern(pattern):
        return pattern if template == served else None
    if not is_pattern(template):
        return None
    segments = _compiled(template).match(served)
    if segments is None:
        return None
    found = filled(pattern, segments, served) if pattern.count(WILDCARD) == template.count(WILDCARD) else served
    matched = _compiled(pattern).match(found)
    # another text may be what the wildcards stand for
    return found if matched is not None and filled(template, matched, found) == served else None
