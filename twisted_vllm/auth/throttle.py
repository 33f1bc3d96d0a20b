"""Guessing slowed: how many credentials a client's address may get wrong in a minute.

A key is looked up first, and one that is right is served, whatever came before from its address: tenants behind one
address translator must not be able to lock each other out. Only what fails is counted, and refused.
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from math import ceil

from twisted_vllm.errors import GatewayError, MissingApiKey, TooManyFailures

#: seconds over which failures are counted, from the first of them on
WINDOW = 60.0

#: addresses that are remembered; the one that failed longest ago is forgotten first
MOST_ADDRESSES = 4096

#: bytes of an IPv6 address that are one client's: a /64 is what one line gets
_IPV6_BYTES = 8


class AuthenticationThrottle:
    """Counts failed authentications by address.

    Args:
        limit: how many an address may have in a minute; ``None`` counts nothing.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._windows: OrderedDict[str | bytes, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def judge(self, error: MissingApiKey, address: str, now: float) -> GatewayError:
        """Count a failure, and return what the client is told: what was wrong, or that it failed too often.

        Args:
            error: what was wrong. A request without any credential is no guess, and not counted.
            address: where the request came from.
            now: the time in seconds.
        """
        if self._limit is None or type(error) is MissingApiKey:
            return error
        client = _client(address)
        begun, count = self._windows.pop(client, (now, 0))
        if not 0 <= now - begun < WINDOW:
            begun, count = now, 0
        over = count >= self._limit
        self._windows[client] = (begun, count if over else count + 1)
        if len(self._windows) > MOST_ADDRESSES:
            self._windows.popitem(last=False)
        if not over:
            return error
        return TooManyFailures(
            "Too many requests from this address came with keys that are not valid. A valid key still works.",
            retry_after=max(1, ceil(begun + WINDOW - now)),
        )


def _client(address: str) -> str | bytes:
    """Return what stands for a client: its address, or of an IPv6 address the network."""
    if ":" not in address:
        return address
    try:
        found = ip_address(address)
    except ValueError:
        return address
    assert isinstance(found, IPv6Address)
    return found.packed[:_IPV6_BYTES] if found.ipv4_mapped is None else str(found.ipv4_mapped)
