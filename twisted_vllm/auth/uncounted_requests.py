"""The limit of requests that no ``rpm_limit`` counts."""

from __future__ import annotations

from math import ceil

from twisted_vllm.auth.records import Principal
from twisted_vllm.client_address import client_of
from twisted_vllm.errors import RateLimitExceeded
from twisted_vllm.ratelimit.headers import limit_headers
from twisted_vllm.ratelimit.minute_counts import MinuteCounts

#: the keys, and the addresses, to count: a key more or an address more drops the one that asked longest ago
MOST_KEYS = 10_000


class UncountedRequests:
    """Limits what a virtual key reads, and the preflights of an address, which no ``rpm_limit`` counts.

    Administrators are not limited.

    Attributes:
        refused: how many requests were refused.
    """

    def __init__(self, limit: int | None) -> None:
        """Set the limit: requests of one key or address in a minute; None means no limit."""
        self.refused = 0
        self._keys = MinuteCounts(MOST_KEYS)
        self._addresses = MinuteCounts(MOST_KEYS)
        self.reconfigure(limit)

    def reconfigure(self, limit: int | None) -> None:
        """Use another limit from now on; what was counted in this minute still counts."""
        self._limit = limit

    def count(self, principal: Principal, now: float) -> None:
        """Count a request of a principal.

        Raises:
            RateLimitExceeded: it is one too many for its key.
        """
        if self._limit is None or principal.kind != "key" or principal.may_administer:
            return
        counted, left = self._keys.add(principal.key_id, now)
        if counted > self._limit:
            raise self._refusal(
                f"Too many requests that only read: this key may send {self._limit} of them in a minute",
                self._limit,
                left,
            )

    def count_preflight(self, address: str, now: float) -> None:
        """Count a preflight without a key.

        Raises:
            RateLimitExceeded: it is one too many for its address.
        """
        if self._limit is None:
            return
        counted, left = self._addresses.add(client_of(address), now)
        if counted > self._limit:
            raise self._refusal(
                f"Too many preflights: an address may send {self._limit} in a minute", self._limit, left
            )

    def _refusal(self, what: str, limit: int, left: float) -> RateLimitExceeded:
        self.refused += 1
        seconds = max(1, ceil(left))
        return RateLimitExceeded(
            f"{what} (passthrough.limits.max_uncounted_requests). "
            f"Try again in {seconds} second{'' if seconds == 1 else 's'}.",
            retry_after=seconds,
            limit_headers=limit_headers((limit, 0, left), None),
        )
