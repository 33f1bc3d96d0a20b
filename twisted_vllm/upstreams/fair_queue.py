"""The queue of one model, in front of all its servers: whose request goes next. It does no I/O.

- **Priority first.** A lower number is more urgent, as in vLLM's scheduler (``vllm/v1/core/sched/request_queue.py``).
- **No priority starves.** While a request of a less urgent priority has waited `AGING` seconds, every `AGED_TURN`-th
  request that leaves the queue is of such a priority; those priorities take turns.
- **Keys take turns** within a priority: round robin in rounds, each key one request a round. A key that was not served
  in this round goes before all that were, so a burst of one key delays the next request of another by no more than the
  time until a server has room. This is deficit round robin (Shreedhar and Varghese, 1995) with a cost of 1 for a
  request: what a request takes is a place of a server. Its tokens are only estimated, by what its client declares, and
  a large request would have to wait for many small ones.
- **No key fills the queue.** When it is full, a key that has less than its share of the places (all places divided by
  the keys that wait) gets one: the newest request of the key with the most is pushed out.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from itertools import chain
from math import inf
from typing import Generic, TypeVar

from twisted_vllm.upstreams.service_rate import ServiceRate

Item = TypeVar("Item", bound=Hashable)

#: seconds after which a request of a less urgent priority may leave before more urgent ones
AGING = 5.0
#: of so many requests that leave the queue, one is of such a priority
AGED_TURN = 4
#: keys to remember as served in one round; more begin a new round
MOST_SERVED = 10_000


class _Entry(Generic[Item]):
    """A request that waits.

    Attributes:
        item: the request.
        lane: the requests of its key and priority.
        since: when it came, in seconds.
        number: its place in the order of arrival.
        where: what says which servers accept it; see `FairQueue.push`.
    """

    __slots__ = ("item", "lane", "number", "since", "where")

    def __init__(self, item: Item, lane: _Lane[Item], number: int, since: float, where: Hashable) -> None:
        self.item = item
        self.lane = lane
        self.number = number
        self.since = since
        self.where = where


#: requests in the order of arrival. A plain dictionary would step over all that left before its first one.
_Line = OrderedDict[_Entry[Item], None]


class _Key(Generic[Item]):
    """A key that has requests in the queue: how many, and in which priorities."""

    __slots__ = ("lanes", "name", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting = 0
        self.lanes: dict[int, _Lane[Item]] = {}


class _Lane(Generic[Item]):
    """The requests of one key in one priority.

    Attributes:
        key: the key.
        level: the priority.
        lines: the requests by `_Entry.where`; no line is empty.
        turns: the turns of `level` in which it stands.
    """

    __slots__ = ("key", "level", "lines", "turns")

    def __init__(self, key: _Key[Item], level: _Level[Item], turns: dict[_Lane[Item], None]) -> None:
        self.key = key
        self.level = level
        self.lines: dict[Hashable, _Line[Item]] = {}
        self.turns = turns

    def first(self, accepts: Callable[[Item], bool], refused: set[Hashable]) -> _Entry[Item] | None:
        """Return the oldest request that is accepted; `refused` learns which `_Entry.where` are not."""
        found: _Entry[Item] | None = None
        for where, line in self.lines.items():
            if where in refused:
                continue
            entry = next(iter(line))
            if found is not None and entry.number > found.number:
                continue
            if accepts(entry.item):
                found = entry
            elif where is not None:
                refused.add(where)
        return found

    def newest_first(self) -> list[_Entry[Item]]:
        """Return its requests, the oldest last."""
        if len(self.lines) == 1:
            return list(reversed(next(iter(self.lines.values()))))
        return sorted(chain(*self.lines.values()), key=lambda entry: entry.number, reverse=True)

    def newest(self) -> _Entry[Item]:
        """Return the request that came last."""
        return max((next(reversed(line)) for line in self.lines.values()), key=lambda entry: entry.number)


class _Level(Generic[Item]):
    """The requests of one priority.

    Attributes:
        priority: the priority.
        waiting: all of them, in the order of arrival.
        turns: the keys that have their turn in this round, in order.
        later: the keys that were served in this round, and wait for the next one.
        served: the names of all that were served in this round.
    """

    __slots__ = ("later", "priority", "served", "turns", "waiting")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.waiting: _Line[Item] = OrderedDict()
        self.turns: dict[_Lane[Item], None] = {}
        self.later: dict[_Lane[Item], None] = {}
        self.served: set[str] = set()

    def first(self, accepts: Callable[[Item], bool], refused: set[Hashable]) -> _Entry[Item] | None:
        """Return the request whose turn it is, of those that are accepted."""
        if not self.turns:
            self.turns, self.later = self.later, self.turns
            self.served.clear()
        for lane in self.turns:
            entry = lane.first(accepts, refused)
            if entry is not None:
                return entry
        # nobody loses by this: the others of this round are not accepted
        for lane in self.later:
            entry = lane.first(accepts, refused)
            if entry is not None:
                return entry
        return None

    def take_turn(self, lane: _Lane[Item]) -> None:
        """Note that a key was served: it waits for the next round."""
        if len(self.served) >= MOST_SERVED:
            self.served.clear()
        self.served.add(lane.key.name)
        if lane.lines:
            del lane.turns[lane]
            lane.turns = self.later
            self.later[lane] = None

    def has_aged(self, now: float) -> bool:
        """Return whether a request has waited `AGING` seconds."""
        return now - next(iter(self.waiting)).since >= AGING


class FairQueue(Generic[Item]):
    """A bounded queue, by priority and fair between keys. Times are in seconds. ``len()`` is the number of requests.

    Attributes:
        capacity: the most requests; a change does not push out those that wait.
        rate: how fast they leave for a server. It must be told with `ServiceRate.began` and `ServiceRate.ended` of each
            request at a server, whether or not it had to wait.
    """

    __slots__ = ("_aged", "_entries", "_keys", "_levels", "_number", "_priorities", "_since_aged", "capacity", "rate")

    def __init__(self, capacity: int) -> None:
        """Create an empty queue.

        Args:
            capacity: the most requests, 0 or more: the sum of what the model's servers allow.
        """
        self.capacity = capacity
        self.rate = ServiceRate()
        self._entries: dict[Item, _Entry[Item]] = {}
        self._keys: dict[str, _Key[Item]] = {}
        self._levels: dict[int, _Level[Item]] = {}
        # of `_levels`, most urgent first
        self._priorities: list[int] = []
        self._number = 0
        # requests that left since the last one that left because it had aged, and that one's priority
        self._since_aged = 0
        self._aged = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: Item) -> bool:
        return item in self._entries

    def __iter__(self) -> Iterator[Item]:
        """Iterate over the requests in the order of arrival."""
        return iter(self._entries)

    def in_turn(self) -> Iterator[Item]:
        """Iterate over the requests as they would leave if none came, and servers accepted each; aging is left out."""
        for priority in self._priorities:
            level = self._levels[priority]
            lanes = [lane.newest_first() for lane in level.turns]
            later = [lane.newest_first() for lane in level.later]
            while lanes or later:
                for lane in lanes:
                    yield lane.pop().item
                # a key that has more waits for the next round
                lanes, later = later + [lane for lane in lanes if lane], []

    def __repr__(self) -> str:
        return f"<FairQueue {len(self)} of {self.capacity} wait, of {len(self._keys)} keys>"

    @property
    def arrivals(self) -> int:
        """How many requests ever came."""
        return self._number

    @property
    def keys(self) -> int:
        """How many keys have requests here."""
        return len(self._keys)

    def push(
        self, item: Item, key: str, priority: int, now: float, where: Hashable = None, *, bounded: bool = True
    ) -> Item | None:
        """Let a request wait.

        Args:
            item: the request; it is not in the queue.
            key: whose it is: the id of a virtual key, or one name for all callers of another kind.
            priority: the key's priority; lower is more urgent.
            now: the time.
            where: what says which servers accept it, if not all do. Requests with an equal value are accepted by the
                same servers, so `pop` asks for one of them only.
            bounded: whether the capacity counts; if not, `trim` must follow.

        Returns:
            The request that is refused: this one, or another that it pushed out. None if there was room.
        """
        pushed_out: Item | None = None
        if bounded and len(self._entries) >= self.capacity:
            newest = self._to_push_out(key)
            if newest is None:
                return item
            self._remove(newest)
            pushed_out = newest.item
        if not self._entries:
            self.rate.waiting(now)
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = _Level(priority)
            insort(self._priorities, priority)
        owner = self._keys.get(key)
        if owner is None:
            owner = self._keys[key] = _Key(key)
        lane = owner.lanes.get(priority)
        if lane is None:
            turns = level.later if key in level.served else level.turns
            lane = owner.lanes[priority] = _Lane(owner, level, turns)
            turns[lane] = None
        self._number += 1
        entry = _Entry(item, lane, self._number, now, where)
        line = lane.lines.get(where)
        if line is None:
            line = lane.lines[where] = OrderedDict()
        line[entry] = None
        level.waiting[entry] = None
        self._entries[item] = entry
        owner.waiting += 1
        return pushed_out

    def pop(self, accepts: Callable[[Item], bool], now: float) -> Item | None:
        """Take out the request that goes next.

        Args:
            accepts: whether a request may go to the server that has room. It is asked for the oldest request of a key
                and `where`, not for all that wait. It changes nothing in the queue.
            now: the time.

        Returns:
            The request; None if none is accepted.
        """
        if not self._entries:
            return None
        refused: set[Hashable] = set()
        found: _Entry[Item] | None = None
        priorities = self._priorities
        if len(priorities) > 1 and self._since_aged >= AGED_TURN - 1:
            found = self._first_aged(accepts, refused, now)
        if found is not None:
            self._since_aged = 0
        else:
            for priority in priorities:
                found = self._levels[priority].first(accepts, refused)
                if found is not None:
                    break
            else:
                return None
            self._since_aged += 1
        lane = found.lane
        self._remove(found)
        lane.level.take_turn(lane)
        self.rate.served(now)
        if not self._entries:
            self.rate.empty(now)
        return found.item

    def trim(self, most: int, now: float) -> list[Item]:
        """Take out what is beyond `most` requests: the newest of the key that has the most of them, one by one."""
        pushed_out = []
        while len(self._entries) > max(most, 0):
            newest = self._newest_of_most()
            self._remove(newest)
            pushed_out.append(newest.item)
        if pushed_out and not self._entries:
            self.rate.empty(now)
        return pushed_out

    def discard(self, item: Item, now: float) -> bool:
        """Take a request out, because its client left or it has waited too long; return whether it was in."""
        entry = self._entries.get(item)
        if entry is None:
            return False
        self._remove(entry)
        if not self._entries:
            self.rate.empty(now)
        return True

    def retry_after(self, places: int, now: float, *, most: float = inf, earliest: float = 0.0) -> int:
        """Return what ``Retry-After`` says to a request that is refused now, in seconds; see `ServiceRate.promise`.

        Args:
            places: the requests that the model's servers serve at a time, those in use alone.
            now: the time.
            most: the most requests a second that other limits allow.
            earliest: seconds before which other limits allow none.
        """
        return self.rate.promise(len(self._entries), self.capacity, places, now, most=most, earliest=earliest)

    def _first_aged(self, accepts: Callable[[Item], bool], refused: set[Hashable], now: float) -> _Entry[Item] | None:
        """Return the next request of a less urgent priority that must not wait any longer."""
        priorities = self._priorities
        after = bisect_right(priorities, self._aged)
        for priority in priorities[max(after, 1) :] + priorities[1:after]:
            level = self._levels[priority]
            if level.has_aged(now):
                found = level.first(accepts, refused)
                if found is not None:
                    self._aged = priority
                    return found
        return None

    def _to_push_out(self, key: str) -> _Entry[Item] | None:
        """Return the request that makes room for one of a key; None if that key has its share already."""
        own = self._keys.get(key)
        sharing, waiting = len(self._keys), 0
        if own is None:
            sharing += 1
        else:
            waiting = own.waiting
        if (waiting + 1) * sharing > self.capacity:
            return None
        return self._newest_of_most()

    def _newest_of_most(self) -> _Entry[Item]:
        most = max(self._keys.values(), key=lambda each: each.waiting)
        return max((lane.newest() for lane in most.lanes.values()), key=lambda entry: entry.number)

    def _remove(self, entry: _Entry[Item]) -> None:
        lane = entry.lane
        level, owner = lane.level, lane.key
        del self._entries[entry.item]
        del level.waiting[entry]
        owner.waiting -= 1
        if not owner.waiting:
            del self._keys[owner.name]
        line = lane.lines[entry.where]
        del line[entry]
        if line:
            return
        del lane.lines[entry.where]
        if lane.lines:
            return
        del lane.turns[lane]
        del owner.lanes[level.priority]
        if not level.waiting:
            del self._levels[level.priority]
            self._priorities.remove(level.priority)
