"""Per-address throttling of failed authentication.

A valid key is always served, even after failures: tenants behind one NAT must not be able to lock each other out.
"""

from __future__ import annotations

from math import ceil

from twisted_vllm.client_address import client_of
from twisted_vllm.errors import GatewayError, MissingApiKey, TooManyFailures
from twisted_vllm.ratelimit.minute_counts import Counted, Counts, Later, MinuteCounts


class AuthenticationThrottle:
    """Counts failed authentications by address.

    Args:
        limit: failures per address and minute; ``None`` means no limit.
        failures: the counts by address; None for this process's own.
    """

    def __init__(self, limit: int | None, failures: Counts | None = None) -> None:
        self._failures = MinuteCounts() if failures is None else failures
        self.reconfigure(limit)

    def reconfigure(self, limit: int | None) -> None:
        """Use another limit from now on; what was counted in this minute still counts."""
        self._limit = limit

    def __len__(self) -> int:
        return len(self._failures)

    def is_over(self, address: str, now: float) -> bool:
        """Return whether so many failures came from an address that one more is answered 429."""
        return self._limit is not None and self._failures.count(client_of(address), now) >= self._limit

    def record_failure(self, error: MissingApiKey, address: str, now: float) -> GatewayError | Later[GatewayError]:
        """Count a failure, and return the error for the client.

        Args:
            error: the failure; a request without a credential is not counted.
            address: the client's address.
            now: the time in seconds.

        Returns:
            `error`, or `TooManyFailures`; later if several processes count together.
        """
        if self._limit is None or type(error) is MissingApiKey:
            return error
        counted = self._failures.add(client_of(address), now)
        if isinstance(counted, tuple):
            return self._judge(error, counted)
        return counted.addCallback(lambda counted: self._judge(error, counted))

    def _judge(self, error: MissingApiKey, counted: Counted) -> GatewayError:
        failed, left = counted
        if self._limit is None or failed <= self._limit:
            return error
        return TooManyFailures(
            "Too many requests from this address came with keys that are not valid. A valid key still works.",
            retry_after=max(1, ceil(left)),
        )
