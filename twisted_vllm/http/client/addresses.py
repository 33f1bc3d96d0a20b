"""The addresses of a host name: which of them a request goes to, and which is passed over. It does no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

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

    __slots__ = ("_candidates", "_dead", "_turn", "_until", "known")

    def __init__(self) -> None:
        """Start without any."""
        self.known: tuple[str, ...] = ()
        self._dead: dict[str, _Dead] = {}
        # those that are not passed over, which is right until then
        self._candidates: tuple[str, ...] = ()
        self._until = inf
        self._turn = 0

    def update(self, found: Iterable[str]) -> frozenset[str]:
        """Replace the addresses, of which there is at least one; return those that are gone."""
        known = tuple(dict.fromkeys(found))[:MAX_ADDRESSES]
        gone = frozenset(self.known) - frozenset(known)
        self.known = known
        for address in gone:
            self._dead.pop(address, None)
        self._until = -inf
        return gone

    def best(self, load: Callable[[str], int], now: float) -> str:
        """Return the address for the next request: of those that are not passed over, the least loaded, in turn.

        Args:
            load: returns how many connections of an address are in use.
            now: the time in seconds.
        """
        candidates = self._candidates if now < self._until else self._look(now)
        if len(candidates) == 1:
            return candidates[0]
        self._turn += 1
        return self._least(candidates, load)

    def order(self, load: Callable[[str], int], now: float) -> tuple[str, ...]:
        """Return all addresses in the order in which to try them for a connection, the same one as `best` first.

        An address whose time is over is tried by one connection, and is passed over again meanwhile.
        """
        candidates = self._look(now)
        first = self._least(candidates, load)
        if first in self._dead:
            pause = self._dead[first].pause
            self._dead[first] = _Dead(now + pause, pause, on_trial=True)
            self._until = -inf
        return tuple(sorted(self.known, key=lambda each: (each != first, each not in candidates, load(each))))

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
        self._until = -inf
        return dead is None

    def accepted(self, address: str) -> bool:
        """An address accepted a connection; return whether that is news."""
        if address not in self._dead:
            return False
        del self._dead[address]
        self._until = -inf
        return True

    def _least(self, candidates: tuple[str, ...], load: Callable[[str], int]) -> str:
        start = self._turn % len(candidates)
        return min(candidates[start:] + candidates[:start], key=load)

    def _look(self, now: float) -> tuple[str, ...]:
        """Return the addresses that are not passed over; all, if that is none."""
        dead = self._dead
        candidates = tuple(each for each in self.known if each not in dead or dead[each].until <= now)
        self._candidates = candidates or self.known
        self._until = min((each.until for each in dead.values() if each.until > now), default=inf)
        return self._candidates
