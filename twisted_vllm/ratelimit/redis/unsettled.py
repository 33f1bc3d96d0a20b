"""What Redis was asked and is not known to have done."""

from __future__ import annotations

from collections.abc import Iterator

from twisted_vllm.ratelimit.redis.protocol import Settlement


class Unsettled:
    """Admissions that are not answered, and settlements that are not done."""

    def __init__(self) -> None:
        self._number = 0
        self._admissions: dict[int, Settlement] = {}
        self._settlements: dict[int, Settlement] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing is on its way."""
        return not self._admissions and not self._settlements

    def admission_sent(self, number: int, undo: Settlement) -> None:
        """Remember what gives an admission back."""
        self._admissions[number] = undo

    def admission_answered(self, number: int) -> None:
        """Forget that."""
        self._admissions.pop(number, None)

    def settle(self, settlement: Settlement) -> int:
        """Remember a settlement until it is done, and return its number."""
        self._number += 1
        self._settlements[self._number] = settlement
        return self._number

    def settled(self, number: int) -> None:
        """Forget a settlement that is done."""
        self._settlements.pop(number, None)

    def recover(self, known: set[str]) -> Iterator[tuple[int, Settlement]]:
        """Yield what must be settled after a connection was lost.

        Args:
            known: the numbers of the admissions that Redis knows as not settled.
        """
        for number, undo in self._admissions.items():
            if str(number) in known:
                self.settle(undo)
        self._admissions.clear()
        yield from list(self._settlements.items())

    def forget(self) -> None:
        """Forget all: Redis knows of none of it."""
        self._admissions.clear()
        self._settlements.clear()
