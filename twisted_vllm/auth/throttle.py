"""Per-address throttling of failed authentication.

A valid key is always served, even after failures: tenants behind one NAT must not be able to lock each other out.
"""

from __future__ import annotations

from collections import OrderedDict
from math import ceil

from twisted_vllm.client_address import client_of
from twisted_vllm.errors import GatewayError, MissingApiKey, TooManyFailures

#: how long failures are counted, in seconds from the first one
WINDOW_SECONDS = 60.0

#: the maximum number of addresses to track; the one that failed longest ago is dropped first
MAX_ADDRESSES = 4096


class AuthenticationThrottle:
    """Counts failed authentications by address.

    Args:
        limit: failures per address and minute; ``None`` means no limit.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._windows: OrderedDict[str | bytes, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def record_failure(self, error: MissingApiKey, address: str, now: float) -> GatewayError:
        """Count a failure, and return the error for the client.

        Args:
            error: the failure; a request without a credential is not counted.
            address: the client's address.
            now: the time in seconds.

        Returns:
            `error`, or `TooManyFailures`.
        """
        if self._limit is None or type(error) is MissingApiKey:
            return error
        client = client_of(address)
        start, count = self._windows.pop(client, (now, 0))
        if not 0 <= now - start < WINDOW_SECONDS:
            start, count = now, 0
        over = count >= self._limit
        self._windows[client] = (start, count if over else count + 1)
        if len(self._windows) > MAX_ADDRESSES:
            self._windows.popitem(last=False)
        if not over:
            return error
        return TooManyFailures(
            "Too many requests from this address came with keys that are not valid. A valid key still works.",
            retry_after=max(1, ceil(start + WINDOW_SECONDS - now)),
        )
