"""The addresses of a host name: which of them a request goes to, and which is passed over. It does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

#: seconds that an address which accepted no connection is passed over: the first time, and at most
PASS_OVER, MAX_PASS_OVER = 5.0, 60.0
#: the most addresses of a name; a resolver may give any number
MAX_ADDRESSES = 64


class _Dead(msgspec.Struct, frozen=True, gc=False):
    """An address that accepts no connection.

    Attributes:
        until: when it is tried again, in seconds.
        pause: how long it is passed over, in seconds.
        on_trial: whether a connection tries it.
    """

    until: float
    pause: float
    on_trial: bool = False


class Addresses:
    """The addresses of one name.

    Attributes:
        known: all of them, in the resolver's order.
    """

    __slots__ = ("_dead", "_turn", "known")

    def __init__(self) -> None:
        """Start without any."""
        self.known: tuple[str, ...] = ()
        self._dead: dict[str, _Dead] = {}
        self._turn = 0

    def update(self, found: Iterable[str]) -> frozenset[str]:
        """Replace the addresses, of which there is at least one; return those that are gone."""
        known = tuple(dict.fromkeys(found))[:MAX_ADDRESSES]
        gone = frozenset(self.known) - frozenset(known)
        self.known = known
        for address in gone:
            self._dead.pop(address, None)
        return gone

    def best(self, load: Mapping[str, int], now: float) -> str:
        """Return the address for the next request: of those that are not passed over, the least loaded, in turn.

        Args:
            load: the connections in use, by address; 0 if it is missing.
            now: the time in seconds.
        """
        self._turn += 1
        return self._best(load, now)

    def _best(self, load: Mapping[str, int], now: float) -> str:
        candidates = self._candidates(now)
        if len(candidates) == 1:
            return candidates[0]
        start = self._turn % len(candidates)
        return min(candidates[start:] + candidates[:start], key=lambda address: load.get(address, 0))

    def order(self, load: Mapping[str, int], now: float) -> tuple[str, ...]:
        """Return all addresses in the order in which to try them for a connection, the same one as `best` first.

        An address whose time is over is tried by one connection, and is passed over again meanwhile.
        """
        first = self._best(load, now)
        if first in self._dead:
            pause = self._dead[first].pause
            self._dead[first] = _Dead(now + pause, pause, on_trial=True)
        candidates = frozenset(self._candidates(now))
        return tuple(sorted(self.known, key=lambda each: (each != first, each not in candidates, load.get(each, 0))))

    def failed(self, address: str, now: float) -> bool:
        """An address accepted no connection; return whether that is news."""
        if address not in self.known:
            return False
        dead = self._dead.get(address)
        if dead is None:
            self._dead[address] = _Dead(now + PASS_OVER, PASS_OVER)
        elif dead.on_trial:
            # many connections may fail at the same time: they count once
            pause = min(dead.pause * 2, MAX_PASS_OVER)
            self._dead[address] = _Dead(now + pause, pause)
        return dead is None

    def accepted(self, address: str) -> bool:
        """An address accepted a connection; return whether that is news."""
        return self._dead.pop(address, None) is not None

    def _candidates(self, now: float) -> tuple[str, ...]:
        """Return the addresses that are not passed over; all, if that is none."""
        if not self._dead:
            return self.known
        return (
            tuple(each for each in self.known if each not in self._dead or self._dead[each].until <= now) or self.known
        )
