"""Answers that are given again for a moment: those who look at the same thing at the same time share one."""

from __future__ import annotations


class LatestAnswers:
    """The last answers by a number that the request names. There are no more than such numbers."""

    def __init__(self) -> None:
        """Keep none."""
        self._kept: dict[int, tuple[float, bytes]] = {}

    def get(self, number: int, now: float) -> bytes | None:
        """Return an answer that is young enough; `now` is in seconds."""
        found = self._kept.get(number)
        return found[1] if found is not None and now < found[0] else None

    def keep(self, number: int, ends: float, body: bytes) -> None:
        """Keep an answer until a time in seconds."""
        self._kept[number] = ends, body
