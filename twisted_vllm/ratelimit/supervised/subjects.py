"""Numbers for those who have limits, so that each is sent to the supervisor once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from twisted_vllm.ratelimit.allowance import Allowance, Limited
from twisted_vllm.ratelimit.supervised.messages import Operation

#: subjects that have a number; about 1 KB each in both processes
MOST_SUBJECTS = 20_000

_Found = tuple[int, Allowance]


class Subjects:
    """Gives numbers to subjects. One whose limits changed is sent again, with its number.

    There are two generations of at most half of `most` each. One that is named moves to the newer one, which becomes
    the older one when it is full; what was not named meanwhile is forgotten.

    Args:
        send: sends an operation.
        most: subjects that have a number, at least twice as many as one request names.
    """

    def __init__(self, send: Callable[[tuple[Any, ...]], None], most: int = MOST_SUBJECTS) -> None:
        self._send = send
        self._half = most // 2
        self._number = 0
        self._newer: dict[tuple[str, str], _Found] = {}
        self._older: dict[tuple[str, str], _Found] = {}

    def __len__(self) -> int:
        """Return how many have a number."""
        return len(self._newer) + len(self._older)

    def number_of(self, subject: Limited) -> int:
        """Return the number of a subject. It is sent before anything that is sent afterwards."""
        key, allowance = (subject.kind, subject.id), subject.allowance
        found = self._newer.get(key)
        if found is not None and (found[1] is allowance or found[1] == allowance):
            return found[0]
        return self._number_of_other(key, allowance)

    def _number_of_other(self, key: tuple[str, str], allowance: Allowance) -> int:
        found = self._newer.pop(key, None) or self._older.pop(key, None)
        if found is None:
            self._number += 1
            number = self._number
        else:
            number = found[0]
        if found is None or found[1] != allowance:
            self._send((Operation.DEFINE, number, *key, msgspec.json.encode(allowance)))
        if len(self._newer) >= self._half:
            if self._older:
                self._send((Operation.FORGET, *(forgotten for forgotten, _ in self._older.values())))
            self._newer, self._older = {}, self._newer
        self._newer[key] = number, allowance
        return number
