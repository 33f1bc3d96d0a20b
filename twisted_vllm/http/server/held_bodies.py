"""The account of the request bodies that the gateway holds in memory: who may hold how much, who waits, and for whom.

Bodies that are held whole ask for room before they are read. All together have `total` bytes, and one key has a share.
A body that finds no room waits without being read, so that TCP slows its client down. Each key has a queue of its own,
and the keys take turns. A body that was given room needs nothing else from the account, so nobody waits in a circle.

Of all, and of each key, three uses are counted (`Pool`):

- large bodies, by their declared size, or by what a chunked one asks for until it is complete;
- small bodies: they pass large ones that wait, as long as they use an eighth;
- what arrived of bodies that wait: an eighth too. Beyond that a body is refused instead of waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from twisted_vllm.errors import GatewayError, NoRoomForBody, RequestTimeout

#: a whole body up to this size, in bytes, is not counted: with `max_connections` it has a bound of its own
UNCOUNTED = 8_192

#: a body up to this size, in bytes, is small: it need not wait behind large ones, and whatever is in it, it is read in
#: less than 20 ms
SMALL_BODY = 65_536

#: small bodies, bodies that wait, and unparsed bytes may each use one part of so many
PARTS = 8

#: a large body that others wait for must arrive at this rate, in bytes per second (0.5 Mbit/s), after `GRACE` seconds
MIN_RATE = 65_536
GRACE = 10.0

#: what Retry-After says to a request that found no room, in seconds
RETRY_AFTER = 5


class Holder(Protocol):
    """A request whose body asked for room."""

    @property
    def body_received(self) -> int:
        """Bytes of its body that arrived."""

    def room_granted(self) -> None:
        """Go on: there is room now."""

    def room_refused(self, error: GatewayError) -> None:
        """End: the wait was too long, or the body came too slowly."""


class Pool:
    """What is held of all, or of one key; in bytes.

    Attributes:
        large: by large bodies.
        small: by small bodies.
        waiting: by what arrived of bodies that wait.
        other: by what is no body yet: unparsed requests.
    """

    __slots__ = ("_part", "_room", "large", "other", "small", "waiting")

    def __init__(self, room: int, part: int) -> None:
        """Make an empty pool.

        Args:
            room: the most that may be used, save by what waits.
            part: the most that each of `small`, `waiting` and `other` may use.
        """
        self._room = room
        self._part = part
        self.large = self.small = self.waiting = self.other = 0

    def reconfigure(self, room: int, part: int) -> None:
        """Use other bounds from now on; what is held stays."""
        self._room = room
        self._part = part

    @property
    def held(self) -> int:
        """Everything."""
        return self.large + self.small + self.waiting + self.other

    def fits(self, size: int) -> bool:
        """Return whether a body fits. A large one goes ahead alone whatever its size, so that none waits for ever."""
        return not self.large or self.large + self.small + self.other + size <= self._room

    def fits_small(self, size: int) -> bool:
        """Return whether a small body fits beside the large ones."""
        return self.small + size <= self._part and self.large + self.small + self.other + size <= self._room

    def fits_waiting(self, size: int) -> bool:
        """Return whether a body may wait of which `size` bytes arrived."""
        return self.waiting + size <= self._part

    def fits_other(self, size: int) -> bool:
        """Return whether so many unparsed bytes may be kept."""
        return self.other + size <= self._part and self.large + self.small + self.other + size <= self._room


class _Owner(Pool):
    """What one key holds, and its bodies that wait, oldest first."""

    __slots__ = ("holdings", "name", "queue")

    def __init__(self, name: str, room: int, part: int) -> None:
        super().__init__(room, part)
        self.name = name
        self.holdings = 0
        self.queue: dict[Holding, None] = {}


class Holding:
    """The room of one body.

    Attributes:
        holder: its request.
        size: bytes that it has, or waits for.
        waiting: whether it waits.
        since: when it was given room or began to wait, in the clock's seconds.
        ended: whether the room was given back.
    """

    __slots__ = ("_account", "_arrived", "_is_small", "_owner", "ended", "holder", "since", "size", "waiting")

    def __init__(self, account: HeldBodies, owner: _Owner, holder: Holder, size: int) -> None:
        self.holder = holder
        self.size = size
        self.waiting = self.ended = self._is_small = False
        self.since = 0.0
        self._account = account
        self._owner = owner
        self._arrived = 0

    def grow(self, size: int) -> None:
        """Ask for `size` bytes in all; look at `waiting` for the answer.

        Raises:
            NoRoomForBody: too much waits already. The room is released.
        """
        self._account.grow(self, size)

    def complete(self) -> None:
        """The whole body arrived: keep room for exactly what came."""
        self._account.complete(self)

    def stop_timing(self) -> None:
        """The gateway does not read the rest yet: how fast the body comes says nothing any more."""
        self._account.stop_timing(self)

    def release(self) -> None:
        """Give the room back, or stop waiting. Idempotent."""
        self._account.release(self)


class HeldBodies:
    """Gives room to bodies, in turn.

    Attributes:
        refused: bodies that were refused because there was no room.
        deadline: when `expired` is to be called, in the clock's seconds; None while nobody waits.
    """

    def __init__(self, total: int, per_key: int | None, patience: float | None, seconds: Callable[[], float]) -> None:
        """Make an empty account.

        Args:
            total: bytes that all bodies may use.
            per_key: bytes that the bodies of one key may use; None is a quarter of `total`.
            patience: seconds for which a body waits for room; None waits without limit.
            seconds: the clock.
        """
        self.refused = 0
        self.deadline: float | None = None
        self._total = Pool(0, 0)
        self._seconds = seconds
        self._owners: dict[str, _Owner] = {}
        # the owners of bodies that wait, in the order of their turns
        self._turns: dict[_Owner, None] = {}
        self._arriving: dict[Holding, None] = {}
        self._serving = False
        self.reconfigure(total, per_key, patience)

    def reconfigure(self, total: int, per_key: int | None, patience: float | None) -> None:
        """Use other bounds from now on: bodies that wait may have room, and what is held stays.

        The arguments are the constructor's.
        """
        # what waits has a part of its own, so that `total` is the most of all
        part = total // PARTS
        self._total.reconfigure(total - part, part)
        self._share = total // 4 if per_key is None else per_key
        self._all = total - part
        self._patience = patience
        for owner in self._owners.values():
            room = self._room_of(owner.name)
            owner.reconfigure(room, room // PARTS)
        self._serve()

    @property
    def held(self) -> int:
        """Bytes that are held."""
        return self._total.held

    @property
    def waiting(self) -> int:
        """Bodies that wait for room."""
        return sum(len(owner.queue) for owner in self._turns)

    def __len__(self) -> int:
        """Return how many keys have or want room."""
        return len(self._owners)

    def ask(self, holder: Holder, key: str, size: int) -> Holding:
        """Ask for room; look at `Holding.waiting` for the answer. If it waits, the holder hears of the end.

        Args:
            holder: the request.
            key: the id of its key; empty for requests of which no share is kept, because they have no key.
            size: bytes of the body.

        Raises:
            NoRoomForBody: too much waits already.
        """
        owner = self._owners.get(key)
        if owner is None:
            room = self._room_of(key)
            owner = self._owners[key] = _Owner(key, room, room // PARTS)
        owner.holdings += 1
        holding = Holding(self, owner, holder, size)
        self._place(holding)
        return holding

    def grow(self, holding: Holding, size: int) -> None:
        """As `Holding.grow`."""
        self._give_back(holding)
        holding.size = size
        self._place(holding)

    def complete(self, holding: Holding) -> None:
        """As `Holding.complete`."""
        self.stop_timing(holding)
        surplus = holding.size - holding.holder.body_received
        if surplus and not holding.waiting:
            self._give_back(holding)
            holding.size -= surplus
            self._take(holding, holding._is_small)
            self._serve()

    def stop_timing(self, holding: Holding) -> None:
        """As `Holding.stop_timing`."""
        self._arriving.pop(holding, None)

    def release(self, holding: Holding) -> None:
        """As `Holding.release`."""
        owner = holding._owner
        if holding.ended:
            return
        holding.ended = True
        if holding.waiting:
            self._leave_queue(holding)
        else:
            self._give_back(holding)
        owner.holdings -= 1
        if not owner.holdings:
            del self._owners[owner.name]
        self._serve()

    def _room_of(self, key: str) -> int:
        return self._share if key else self._all

    # bytes of connections

    def take_unparsed(self, size: int) -> bool:
        """Count bytes that wait on a connection behind a request; return whether they may be kept."""
        if not self._total.fits_other(size):
            return False
        self._total.other += size
        return True

    def drop_unparsed(self, size: int) -> None:
        """Count them out."""
        self._total.other -= size
        self._serve()

    # the queues

    def _place(self, holding: Holding) -> None:
        """Give room to a body, or let it wait."""
        size, owner, total = holding.size, holding._owner, self._total
        if size <= SMALL_BODY and owner.fits_small(size) and total.fits_small(size):
            self._take(holding, True)
            return
        if not self._turns and owner.fits(size) and total.fits(size):
            self._take(holding, False)
            return
        holding.waiting = True
        holding.since = self._seconds()
        owner.queue[holding] = None
        self._turns.setdefault(owner)
        self._serve(asking=holding)
        if holding.waiting:
            arrived = holding.holder.body_received
            if not (owner.fits_waiting(arrived) and total.fits_waiting(arrived)):
                self.refused += 1
                self.release(holding)
                raise self._no_room("too many requests wait for it already")
            holding._arrived = arrived
            owner.waiting += arrived
            total.waiting += arrived
            self.deadline = holding.since

    def _take(self, holding: Holding, is_small: bool) -> None:
        holding._is_small = is_small
        for pool in (holding._owner, self._total):
            if is_small:
                pool.small += holding.size
            else:
                pool.large += holding.size
        if not is_small and holding.size > holding.holder.body_received:
            holding.since = self._seconds()
            self._arriving[holding] = None

    def _give_back(self, holding: Holding) -> None:
        self.stop_timing(holding)
        for pool in (holding._owner, self._total):
            if holding._is_small:
                pool.small -= holding.size
            else:
                pool.large -= holding.size

    def _leave_queue(self, holding: Holding) -> None:
        owner = holding._owner
        del owner.queue[holding]
        if not owner.queue:
            del self._turns[owner]
        owner.waiting -= holding._arrived
        self._total.waiting -= holding._arrived
        holding._arrived = 0
        holding.waiting = False
        if not self._turns:
            self.deadline = None

    def _serve(self, asking: Holding | None = None) -> None:
        """Give room to the bodies whose turn it is, and tell all of them but `asking`."""
        if self._serving:
            # the loop below looks again: a request that ends at once must not go on in the stack of the one before
            return
        self._serving = True
        try:
            while self._turns and (granted := list(self._grants())):
                for holding in granted:
                    # an earlier one may have ended this one
                    if holding is not asking and not holding.ended:
                        holding.holder.room_granted()
        finally:
            self._serving = False

    def _grants(self) -> Iterator[Holding]:
        progress = True
        while progress:
            progress = False
            for owner in list(self._turns):
                holding = next(iter(owner.queue))
                if not owner.fits(holding.size):
                    # its own share is used up: others need not wait for that
                    continue
                if not self._total.fits(holding.size):
                    # nobody passes it, or it would wait for ever
                    return
                self._leave_queue(holding)
                self._take(holding, False)
                if owner.queue:
                    # the others' turn
                    del self._turns[owner]
                    self._turns[owner] = None
                progress = True
                yield holding

    # time

    def expired(self) -> None:
        """Refuse the bodies that waited too long, and cut those that arrive too slowly while others wait."""
        now = self._seconds()
        if self._patience is not None:
            for holding in self._overdue(now - self._patience):
                # an earlier one may have made room for this one
                if holding.waiting:
                    self.refused += 1
                    self.release(holding)
                    holding.holder.room_refused(self._no_room("this one waited for it in vain"))
        for holding in self._slow(now):
            if self._turns and not holding.ended:
                self.release(holding)
                holding.holder.room_refused(
                    RequestTimeout("The body came too slowly, and other requests wait for the memory that it takes.")
                )

    def _overdue(self, before: float) -> list[Holding]:
        found = []
        for owner in self._turns:
            for holding in owner.queue:
                if holding.since > before:
                    break
                found.append(holding)
        return found

    def _slow(self, now: float) -> list[Holding]:
        """Return the bodies that arrive too slowly and keep others waiting: of their own key, or of any."""
        # who has room in its share waits for all
        all_wait = any(owner.fits(next(iter(owner.queue)).size) for owner in self._turns)
        return [
            holding
            for holding in self._arriving
            if (all_wait or holding._owner.queue)
            and holding.holder.body_received < (now - holding.since - GRACE) * MIN_RATE
        ]

    @staticmethod
    def _no_room(why: str) -> NoRoomForBody:
        return NoRoomForBody(
            f"The gateway has no room for this body in memory at present, and {why}. Try again. The operator sets "
            "the room in passthrough.limits: max_held_total_bytes, and max_held_bytes_per_key for one key.",
            retry_after=RETRY_AFTER,
        )
