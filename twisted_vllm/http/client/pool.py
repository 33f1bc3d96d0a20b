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
        self._idle: dict[Hashable, list[tuple[float, int, Connection]]] = {}

    def __repr__(self) -> str:
        counts = ", ".join(f"{key}: {len(stack)}" for key, stack in self._idle.items() if stack)
        return f"<Pool idle {{{counts}}}>"

    def __len__(self) -> int:
        return sum(map(len, self._idle.values()))

    def take(self, key: Hashable, now: float, turn: int = 0) -> Connection | None:
        """Return the most recently used connection, or None if all have been idle for too long.

        Args:
            key: the server.
            now: the time in seconds.
            turn: the number of the reactor's turn. A connection that became idle in it is passed over: what its server
                sent too much may be on its way. 0 passes over none.
        """
        stack = self._idle.get(key)
        if not stack:
            return None
        at = len(stack) - 1
        if turn:
            while at >= 0 and stack[at][1] == turn:
                at -= 1
        if at < 0 or stack[at][0] + self._keep <= now:
            return None
        return stack.pop(at)[2]

    def put(self, key: Hashable, connection: Connection, now: float, turn: int = 0) -> list[Connection]:
        """Add a connection that became idle at `now`, in this turn; return the connections over the limit."""
        stack = self._idle.get(key)
        if stack is None:
            stack = self._idle[key] = []
        stack.append((now, turn, connection))
        if len(stack) <= self._keep_count:
            return []
        surplus = stack[: max(0, len(stack) - self._keep_count)]
        del stack[: len(surplus)]
        return [connection for _, _, connection in surplus]

    def discard(self, key: Hashable, connection: Connection) -> bool:
        """Remove a connection that the other side closed, or that is not to be used; return whether it was idle."""
        stack = self._idle.get(key, [])
        before = len(stack)
        stack[:] = [entry for entry in stack if entry[2] is not connection]
        return len(stack) < before

    def count(self, key: Hashable) -> int:
        """Return how many connections are idle, those that have been idle for too long included."""
        return len(self._idle.get(key, ()))

    def oldest(self, count: int) -> list[Connection]:
        """Remove and return the connections that have been idle for longest, at most `count`."""
        found = nsmallest(
            count,
            ((since, key, idle) for key, stack in self._idle.items() for since, _, idle in stack),
            key=itemgetter(0),
        )
        for _, key, connection in found:
            self.discard(key, connection)
        return [connection for _, _, connection in found]

    def clear(self, key: Hashable) -> list[Connection]:
        """Remove and return all connections of a server."""
        return [connection for _, _, connection in self._idle.pop(key, [])]
