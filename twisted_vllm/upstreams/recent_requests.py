"""How the last requests were shared out among servers.

What is in flight says how busy a server is now, which is mostly chance; this says which server is given too much. It
counts requests and knows no time: a request counts less with each later one.
"""

from __future__ import annotations

from collections.abc import Sequence

#: requests of each server that are remembered: the count of a request falls to 1/e while so many others come
MEMORY = 64

_MOST = 1e100


class RecentRequests:
    """The recent requests of each server, and how many of them had a beginning that no server knew."""

    __slots__ = ("_fresh", "_requests", "_unit")

    def __init__(self) -> None:
        self._requests: dict[str, float] = {}
        self._fresh: dict[str, float] = {}
        # what the next request counts: growing, in place of all others falling
        self._unit = 1.0

    def requests(self, servers: Sequence[str]) -> list[float]:
        """Return the recent requests of servers; the last one counts 1.0.

        A new server begins the count anew for all: shares of the time without it say nothing now.
        """
        requests, unit = self._requests, self._unit
        try:
            return [requests[name] / unit for name in servers]
        except KeyError:
            self._begin(requests.keys() | set(servers))
            return [0.0] * len(servers)

    def fresh(self, servers: Sequence[str]) -> list[float]:
        """Return, of the requests that `requests` returned, those that had a fresh beginning."""
        fresh, unit = self._fresh, self._unit
        return [fresh[name] / unit for name in servers]

    def _begin(self, servers: set[str]) -> None:
        self._requests = dict.fromkeys(servers, 0.0)
        self._fresh = dict.fromkeys(servers, 0.0)
        self._unit = 1.0

    def add(self, server: str, *, fresh: bool) -> None:
        """Count a request.

        Args:
            server: the server that got it.
            fresh: whether no server knew its beginning.
        """
        if server not in self._requests:
            self._begin(self._requests.keys() | {server})
        requests = self._requests
        self._unit *= 1.0 + 1.0 / (MEMORY * len(requests))
        requests[server] += self._unit
        if fresh:
            self._fresh[server] += self._unit
        if self._unit > _MOST:
            unit = self._unit
            self._requests = {name: count / unit for name, count in requests.items()}
            self._fresh = {name: count / unit for name, count in self._fresh.items()}
            self._unit = 1.0

    def forget(self, server: str) -> None:
        """Drop a server that left."""
        self._requests.pop(server, None)
        self._fresh.pop(server, None)
