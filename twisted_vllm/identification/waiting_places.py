"""The places of requests that wait: so many in all, and so many for one address."""

from __future__ import annotations

from collections import Counter

#: requests that may wait, and those of one address (IPv6: one /64)
MOST_WAITING, MOST_OF_ADDRESS = 4_096, 1_024


class WaitingPlaces:
    """Counts who waits.

    Attributes:
        taken: how many wait.
    """

    def __init__(self, most: int = MOST_WAITING, most_of_address: int = MOST_OF_ADDRESS) -> None:
        """Nobody waits.

        Args:
            most: how many may wait.
            most_of_address: how many of one address may.
        """
        self._most = most
        self._most_of_address = most_of_address
        self.taken = 0
        self._of_client: Counter[str | bytes] = Counter()

    def take(self, client: str | bytes) -> bool:
        """Take a place for a client (`twisted_vllm.client_address.client_of`); False if none is left for it."""
        if self.taken >= self._most or self._of_client[client] >= self._most_of_address:
            return False
        self.taken += 1
        self._of_client[client] += 1
        return True

    def leave(self, client: str | bytes) -> None:
        """Give a place back."""
        self.taken -= 1
        self._of_client[client] -= 1
        if not self._of_client[client]:
            del self._of_client[client]
