"""Regular expressions of the operator that are applied to texts of strangers: none may take long on any text.

Python's `re` backtracks. A pattern is accepted if at each position of a text it can take few ways only: repeats are
bounded, and not nested; one without an upper bound is the last of its pattern, where nothing after it can fail.
"""

from __future__ import annotations

import importlib
import re
from functools import lru_cache
from types import MappingProxyType
from typing import Any

#: the most ways in which a pattern can be tried at one position, times the characters that each may read
MOST_STEPS = 4_096
#: the longest pattern, in characters
LONGEST = 1_024

_parser: Any = importlib.import_module("re._parser")
_constants: Any = importlib.import_module("re._constants")

_ONE = frozenset((_constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY, _constants.IN))
_REPEATS = frozenset((_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT))

#: patterns by name
READY = MappingProxyType(
    {
        "email": r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}",
        "credit_card": r"(?<![\w.])(?:\d[ -]?){12,18}\d(?![\w])",
        "iban": r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b",
        "phone": r"(?<![\w.])\+\d{1,3}(?:[ ()./-]{0,2}\d){6,13}(?!\d)",
        "us_ssn": r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])",
        "ipv4": r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])",
    }
)


class UnsafePattern(ValueError):
    """A pattern that is refused; the message says why and what to do."""


@lru_cache(maxsize=256)
def compiled(pattern: str) -> re.Pattern[str]:
    """Return a pattern by its name, or a regular expression that is safe.

    Raises:
        UnsafePattern: it is no regular expression, or may take long.
    """
    ready = READY.get(pattern)
    if ready is not None:
        return re.compile(ready)
    if len(pattern) > LONGEST:
        raise UnsafePattern(f"is longer than {LONGEST} characters (write several patterns)")
    try:
        tree = _parser.parse(pattern)
        found = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UnsafePattern(f"is no regular expression of Python's re: {error}") from None
    ways, width = _cost(tree, last=True)
    if ways * max(1, width) > MOST_STEPS:
        raise UnsafePattern(
            f"may be tried in {ways} ways of up to {width} characters at each position of a text (make its repeats "
            "shorter, such as {1,16}, or write several patterns)"
        )
    if found.match("") is not None:
        raise UnsafePattern("matches the empty text (demand at least one character)")
    return found


def _cost(tree: Any, *, last: bool) -> tuple[int, int]:
    """Return in how many ways a sequence can match at one position, and how many characters it may read.

    Args:
        tree: what was parsed.
        last: whether nothing follows it.
    """
    ways, width = 1, 0
    items = list(tree)
    for number, (kind, value) in enumerate(items):
        more_ways, more_width = _cost_of(kind, value, last=last and number == len(items) - 1)
        ways = min(ways * more_ways, MOST_STEPS + 1)
        width = min(width + more_width, MOST_STEPS + 1)
    return ways, width


def _cost_of(kind: Any, value: Any, *, last: bool) -> tuple[int, int]:
    if kind in _ONE:
        return 1, 1
    if kind is _constants.AT:
        return 1, 0
    if kind is _constants.SUBPATTERN:
        return _cost(value[3], last=last)
    if kind is _constants.ATOMIC_GROUP:
        return _cost(value, last=last)
    if kind in (_constants.ASSERT, _constants.ASSERT_NOT):
        return _cost(value[1], last=False)
    if kind is _constants.BRANCH:
        costs = [_cost(each, last=last) for each in value[1]]
        return sum(ways for ways, _ in costs), max(width for _, width in costs)
    if kind in _REPEATS:
        return _cost_of_repeat(kind, value, last=last)
    raise UnsafePattern("refers back to what it matched, which may take long (take that out)")


def _cost_of_repeat(kind: Any, value: Any, *, last: bool) -> tuple[int, int]:
    least, most, repeated = value
    items = list(repeated)
    is_one = len(items) == 1 and items[0][0] in _ONE
    if most is _constants.MAXREPEAT:
        if not is_one or not last:
            raise UnsafePattern(
                "repeats without an upper bound before its end, which may take long (write {1,64} in place of +, and "
                "{0,64} in place of *)"
            )
        # what it takes is taken once: nothing after it can fail
        return 1, least
    ways, width = _cost(repeated, last=False)
    if most > MOST_STEPS:
        raise UnsafePattern(f"repeats more than {MOST_STEPS} times (write a lower bound)")
    inner = ways
    for _ in range(most - 1):
        inner = min(inner * ways, MOST_STEPS + 1)
    choices = 1 if kind is _constants.POSSESSIVE_REPEAT else most - least + 1
    return min(choices * inner, MOST_STEPS + 1), min(most * width, MOST_STEPS + 1)
