"""The limit of requests that no ``rpm_limit`` counts."""

from __future__ import annotations

from math import ceil

from twisted_vllm.auth.records import Principal
from twisted_vllm.client_address import client_of
from twisted_vllm.errors import RateLimitExceeded
from twisted_vllm.ratelimit.headers import limit_headers
from twisted_vllm.ratelimit.minute_counts import Counted, Counts, Later, MinuteCounts

#: the keys, and the addresses, to count: a key more or an address more drops the one that asked longest ago
MOST_KEYS = 10_000


class UncountedRequests:
    """Limits what a virtual key reads, and the preflights of an address, which no ``rpm_limit`` counts.

    Administrators are not limited.

    Attributes:
        refused: how many requests were refused.
    """

    def __init__(self, limit: int | None, keys: Counts | None = None, addresses: Counts | None = None) -> None:
        """Set up.

        Args:
            limit: requests of one key or address in a minute; None means no limit.
            keys: the counts by key; None for this process's own.
            addresses: the counts by address, likewise.
        """
        self.refused = 0
        self._keys = MinuteCounts(MOST_KEYS) if keys is None else keys
        self._addresses = MinuteCounts(MOST_KEYS) if addresses is None else addresses
        self.reconfigure(limit)

    def reconfigure(self, limit: int | None) -> None:
        """Use another limit from now on; what was counted in this minute still counts."""
        self._limit = limit

    def count(self, principal: Principal, now: float) -> Later[None] | None:
        """Count a request of a principal.

        Returns:
            None, or what fails with the error if several processes count together.

        Raises:
            RateLimitExceeded: it is one too many for its key.
        """
        if self._limit is None or principal.kind != "key" or principal.may_administer:
            return None
        return self._add(
            self._keys,
            principal.key_id,
            now,
            "Too many requests that only read: this key may send {} of them in a minute",
        )

    def count_preflight(self, address: str, now: float) -> Later[None] | None:
        """Count a preflight without a key, as `count`.

        Raises:
            RateLimitExceeded: it is one too many for its address.
        """
        if self._limit is None:
            return None
        return self._add(
            self._addresses, client_of(address), now, "Too many preflights: an address may send {} in a minute"
        )

    def _add(self, counts: Counts, name: str | bytes, now: float, what: str) -> Later[None] | None:
        counted = counts.add(name, now)
        if isinstance(counted, tuple):
            self._judge(what, counted)
            return None
        return counted.addCallback(lambda counted: self._judge(what, counted))

    def _judge(self, what: str, counted: Counted) -> None:
        count, left = counted
        if self._limit is not None and count > self._limit:
            raise self._refusal(what.format(self._limit), self._limit, left)

    def _refusal(self, what: str, limit: int, left: float) -> RateLimitExceeded:
        self.refused += 1
        seconds = max(1, ceil(left))
        return RateLimitExceeded(
            f"{what} (passthrough.limits.max_uncounted_requests). "
            f"Try again in {seconds} second{'' if seconds == 1 else 's'}.",
            retry_after=seconds,
            limit_headers=limit_headers((limit, 0, left), None),
        )
