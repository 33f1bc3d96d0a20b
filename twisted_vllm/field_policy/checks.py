"""One rule about one field: what is forbidden, and what is limited. Each raises `FieldNotAllowed` with the reason."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from enum import Enum
from typing import Any

import attrs

from twisted_vllm.errors import FieldNotAllowed
from twisted_vllm.field_policy.media import MAX_VALUES, Repeated
from twisted_vllm.field_policy.rules import NEGATIVE_IS_ALL, NUMBERS, SCHEMAS, FieldPath, is_harmless
from twisted_vllm.field_policy.shortened import ShortenedList, ShortenedText, bytes_of, size_of

#: characters of a caller's value that a message repeats
_CLIP = 40

#: how the JSON of numbers, booleans and null begins, as Python writes it
_BEGINS_LITERAL = frozenset("-0123456789tfnNI")

#: the longest text that is read as a number
_MAX_DIGITS = 400


class Level(Enum):
    """Who makes a rule."""

    KEY = "this key"
    TEAM = "the team of this key"
    GATEWAY = "the gateway"


_WHAT_TO_ASK = {
    Level.KEY: "an administrator can change the key's {setting}",
    Level.TEAM: "an administrator can change the team's {setting}",
    Level.GATEWAY: "an administrator can name it in this key's allowed_fields",
}


def values_at(value: Any, names: Sequence[str]) -> Iterator[Any]:
    """Yield the values at a path in a decoded JSON value.

    A name leads into an object; ``*`` leads to each member of an object, or to each item of a list. Every other list
    stands for all its items. Each value is visited at most once.

    Args:
        value: the value; its objects as `twisted_vllm.field_policy.media.pairs` makes them.
        names: the rest of the path.

    Raises:
        ValueError: more than `MAX_VALUES` are visited.
    """
    # each with the number of names that lead to it; the last is the next
    waiting = [(value, 0)]
    room = MAX_VALUES
    while waiting:
        current, depth = waiting.pop()
        if depth == len(names) and not isinstance(current, Repeated):
            yield current
            continue
        found: Collection[Any] = ()
        if isinstance(current, Repeated):
            found = current
        elif isinstance(current, list):
            found, depth = current, depth + (names[depth] == "*")
        elif isinstance(current, dict):
            name = names[depth]
            found = current.values() if name == "*" else (current[name],) if name in current else ()
            depth += 1
        room -= len(found)
        if room < 0:
            raise ValueError("too many values")
        waiting += [(each, depth) for each in found]


@attrs.frozen
class Forbidden:
    """Forbids a field, or one value of it.

    Attributes:
        path: the field.
        level: who forbids it.
        reason: why, in words that follow "because"; empty if nobody said.
    """

    path: FieldPath
    level: Level
    reason: str = ""

    def check(self, value: Any, size: int) -> None:
        """Check the value of the field's top-level member.

        Raises:
            FieldNotAllowed: the field is there, and asks for something.
            ValueError: it has too many values in it.
        """
        name = self.path.names[-1]
        room = MAX_VALUES
        may_be_literal = self.path.value is not None and self.path.value[0] in _BEGINS_LITERAL
        for each in values_at(value, self.path.names[1:]):
            if self.path.value is None:
                if not is_harmless(name, each):
                    raise self.refusal()
            else:
                items = each if isinstance(each, list) else [each]
                if may_be_literal and isinstance(each, ShortenedList):
                    raise ValueError("too many numbers")
                room -= len(items)
                if room < 0:
                    raise ValueError("too many values")
                if any((may_be_literal or isinstance(item, str)) and self.means(item) for item in items):
                    raise self.refusal()

    def means(self, value: Any) -> bool:
        """Return whether this value is forbidden, where the rule names one."""
        wanted = self.path.value
        assert wanted is not None
        if isinstance(value, str):
            text = value
        elif isinstance(value, (list, dict)) or wanted[0] not in _BEGINS_LITERAL:
            # a wanted value has no brackets
            return False
        else:
            text = json.dumps(value)
        return text.startswith(wanted[:-1]) if wanted.endswith("*") else text == wanted

    def refusal(self) -> FieldNotAllowed:
        """Return the error for the client."""
        field = ".".join(self.path.names)
        what = f"`{field}`" if self.path.value is None else f"`{field}` with the value {self.path.value!r}"
        why = f", because {self.reason}" if self.reason else ""
        whom = " to virtual keys" if self.level is Level.GATEWAY else ""
        ask = _WHAT_TO_ASK[self.level].format(setting="forbidden_fields")
        return FieldNotAllowed(
            f"The field {what} is not allowed: {self.level.value} forbids it{whom}{why}. Leave it out; {ask}.",
            param=field,
        )


@attrs.frozen
class Limit:
    """Limits a number, or the size of a text, a list, an object or a schema.

    Attributes:
        path: the field.
        most: the largest number or size.
        level: who sets it.
    """

    path: FieldPath
    most: int
    level: Level

    @property
    def measures_json(self) -> bool:
        """Whether the size of the JSON text counts."""
        return len(self.path.names) == 1 and self.path.names[0] in SCHEMAS

    def check(self, value: Any, size: int) -> None:
        """Check the value of the field's top-level member.

        Args:
            value: the value.
            size: the size of its JSON text in bytes.

        Raises:
            FieldNotAllowed: it is over the limit.
            ValueError: it has too many values in it.
        """
        if self.measures_json:
            self.check_size(size)
            return
        name = self.path.names[-1]
        for each in values_at(value, self.path.names[1:]):
            self._check_one(name, each)

    def check_size(self, size: int) -> None:
        """Check the size of the field's JSON text, in bytes.

        Raises:
            FieldNotAllowed: it is over the limit.
        """
        if size > self.most:
            raise self.refusal(f"has {size} bytes")

    def _check_one(self, name: str, value: Any) -> None:
        if value is None:
            return
        if isinstance(value, (list, dict)):
            if size_of(value) > self.most:
                raise self.refusal(f"has {size_of(value)} {'items' if isinstance(value, list) else 'members'}")
            return
        if isinstance(value, str) and name not in NUMBERS:
            self.check_size(bytes_of(value))
            return
        number = number_of(value)
        if number is None:
            # vLLM refuses it
            return
        # NaN is not within any limit
        if not number <= self.most or (number < 0 and name in NEGATIVE_IS_ALL):
            raise self.refusal(f"is {str(value)[:_CLIP]}")

    def refusal(self, found: str) -> FieldNotAllowed:
        """Return the error for the client.

        Args:
            found: what the request has, in words that follow the field's name.
        """
        field = ".".join(self.path.names)
        ask = _WHAT_TO_ASK[self.level].format(setting="field_limits")
        return FieldNotAllowed(
            f"The field `{field}` {found}, and {self.level.value} allows at most {self.most}. Send less; {ask}.",
            param=field,
        )


def number_of(value: Any) -> float | None:
    """Return a JSON value as the number that pydantic makes of it; None if it makes none.

    pydantic reads ``"40"``, ``" 4_0 "`` and ``true`` as whole numbers.
    """
    if isinstance(value, str):
        if len(value) > _MAX_DIGITS or isinstance(value, ShortenedText):
            return float("inf")
        try:
            return float(value)
        except ValueError:
            return None
    if isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else -float("inf")
    return None
