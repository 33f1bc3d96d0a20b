"""The pool of idle connections. It decides which to reuse and which to close, and does no I/O."""

from __future__ import annotations

from collections.abc import Hashable
from heapq import nsmallest
from operator import itemgetter
from typing import Generic, TypeVar

Connection = TypeVar("Connection")

#: seconds to keep an idle connection; vLLM's server (uvicorn) closes it after 5 s
KEEP = 4.0

#: idle connections to keep per server
KEEP_COUNT = 256


class Pool(Generic[Connection]):
    """Idle connections by server; the most recently used is taken first.

    The caller closes the connections that a method returns as removed.
    """

    def __init__(self, keep: float = KEEP, keep_count: int = KEEP_COUNT) -> None:
        self._keep = keep
        self._keep_count = keep_count
        self._idle: dict[Hashable, list[tuple[float, Connection]]] = {}

    def __repr__(self) -> str:
        counts = ", ".join(f"{key}: {len(stack)}" for key, stack in self._idle.items() if stack)
        return f"<Pool idle {{{counts}}}>"

    def __len__(self) -> int:
        return sum(map(len, self._idle.values()))

    def take(self, key: Hashable, now: float) -> Connection | None:
        """Return the most recently used connection, or None if it has been idle for too long."""
        stack = self._idle.get(key)
        if stack and stack[-1][0] + self._keep > now:
            return stack.pop()[1]
        return None

    def put(self, key: Hashable, connection: Connection, now: float) -> list[Connection]:
        """Add a connection that became idle at `now`; return the connections over the limit."""
        stack = self._idle.get(key)
        if stack is None:
            stack = self._idle[key] = []
        stack.append((now, connection))
        if len(stack) <= self._keep_count:
            return []
        surplus = stack[: max(0, len(stack) - self._keep_count)]
        del stack[: len(surplus)]
        return [connection for _, connection in surplus]

    def discard(self, key: Hashable, connection: Connection) -> None:
        """Remove a connection that the other side closed."""
        stack = self._idle.get(key, [])
        stack[:] = [pair for pair in stack if pair[1] is not connection]

    def oldest(self, count: int) -> list[Connection]:
        """Remove and return the connections that have been idle for longest, at most `count`."""
        found = nsmallest(
            count, ((since, key, idle) for key, stack in self._idle.items() for since, idle in stack), key=itemgetter(0)
        )
        for _, key, connection in found:
            self.discard(key, connection)
        return [connection for _, _, connection in found]

    def clear(self) -> list[Connection]:
        """Remove and return all connections."""
        connections = [connection for stack in self._idle.values() for _, connection in stack]
        self._idle.clear()
        return connections
