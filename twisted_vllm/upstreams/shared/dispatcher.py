"""Places the requests of one of several workers, within limits that hold for all of them.

The supervisor holds the limits of servers, of models' queues and of entries (`twisted_vllm.upstreams.shared.keeper`).
What this worker holds of them it uses without asking, as a single process uses all. A request that finds nothing waits
in the queue, over its bound, until the supervisor has answered for it: a few milliseconds. What then has no place in
the queue either is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from itertools import islice
from typing import Any
from weakref import WeakValueDictionary

from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.upstreams.dispatcher import (
    Ask,
    Dispatcher,
    Placement,
    Waiting,
    may_go,
    patience_of,
    wait_for_entries,
)
from twisted_vllm.upstreams.entry_limits import EntryLimits
from twisted_vllm.upstreams.policies import RoutingRequest
from twisted_vllm.upstreams.router import Destination, ModelGroup
from twisted_vllm.upstreams.server_state import Servers, ServerState
from twisted_vllm.upstreams.shared.claims import (
    CLAIMS,
    GRANTS,
    QUEUE,
    SERVER,
    USED,
    Claim,
    Claims,
    EntryClaim,
    Grant,
    Grants,
    Used,
)
from twisted_vllm.upstreams.shared.leased_limits import LeasedLimits
from twisted_vllm.workers.siblings import Siblings

#: requests of one model for which grants of entries are asked at a time: few, so that workers take turns
MOST_ASKED = 16
#: requests of one model that are looked at for it
MOST_LOOKED_AT = 256


class HeldPlaces:
    """What this worker holds of the places of a server or of a queue.

    Attributes:
        name: as in `Claim`.
        held: the places.
        keep: how many of them it may keep; None if all.
        limit: the limit that the supervisor was told last.
        need: what the supervisor was told last.
        weight: likewise.
    """

    __slots__ = ("held", "keep", "limit", "name", "need", "weight")

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.held = self.need = 0
        self.weight = 1
        self.keep: int | None = None

    def give_back(self, used: int, keep: int) -> int:
        """Give back what is held over `keep` and is not used; return how many places that is."""
        returned = max(min(self.held - used, self.held - keep), 0)
        self.held -= returned
        return returned


class SharingDispatcher(Dispatcher):
    """The dispatcher of one of several workers.

    Attributes:
        on_sent: called with the model's name, the name of a server and what a policy learns when a request is sent.
    """

    def __init__(self, deadlines: DeadlineSweeper, siblings: Siblings, clock: Any) -> None:
        """Start with nothing in flight, and no places.

        Args:
            deadlines: the deadlines of queued requests.
            siblings: the other processes.
            clock: the reactor's clock.
        """
        super().__init__(deadlines)
        self.on_sent: Callable[[str, str, RoutingRequest], None] = _ignore
        self._siblings = siblings
        self._clock = clock
        self._servers: Servers | None = None
        self._leases: dict[str, HeldPlaces] = {}
        self._queue_names: dict[ModelGroup, str] = {}
        # of the entries that there are now
        self._limits: WeakValueDictionary[str, LeasedLimits] = WeakValueDictionary()
        self._returned: list[Used] = []
        # the groups whose new requests the supervisor is asked about, with how many had come when it was
        self._asking: dict[int, dict[ModelGroup, int]] = {}
        self._round = 0
        self._flushing: Any = None
        siblings.on(GRANTS, Grants, self._told)

    def use(self, servers: Servers) -> None:
        """Place requests on these servers; call `regroup` when they change."""
        self._servers = servers
        self._find_limits()

    def make_limits(self, name: str, rpm: int | None, tpm: int | None) -> EntryLimits:
        """Return the limits of an entry."""
        limits = self._limits[name] = LeasedLimits(name, rpm, tpm, self._use)
        return limits

    def regroup(self) -> None:
        """As `Dispatcher.regroup`."""
        self._queue_names.clear()
        self._find_limits()
        super().regroup()

    def tick(self) -> None:
        """Tell the supervisor what is needed no longer. Called several times a second."""
        waiting = self._waiting_at()
        claims = []
        for state in self._limited():
            lease = self._lease_of(state)
            need = self._need_of(state, waiting)
            if need < lease.need:
                claims.append(self._claim(lease, need, 1))
        for name, queued in self._queued().items():
            lease = self._leases[name]
            if queued < lease.need:
                claims.append(self._claim(lease, queued, lease.weight))
        if claims:
            self._send(Claims(0, claims, []))

    def freed(self, group: ModelGroup, state: ServerState) -> None:
        """Note that a place is free; it goes back if others wait for it."""
        super().freed(group, state)
        lease = self._leases.get(_name_of(state))
        if lease is not None and lease.keep is not None and lease.held > lease.keep:
            returned = lease.give_back(state.in_flight_here, lease.keep)
            if returned:
                self._send(Claims(0, [self._claim(lease, lease.need, lease.weight, returned)], []))

    def serve(self) -> None:
        """As `Dispatcher.serve`; what still waits is claimed for."""
        super().serve()
        if self._queues:
            self._flush_soon()

    def _take(self, group: ModelGroup, destination: Destination, ask: Ask, now: float) -> Placement:
        if group.lone is None and group.policy.reads_prompt:
            self.on_sent(group.name, destination.key, ask.routing)
        return super()._take(group, destination, ask, now)

    def _push(self, group: ModelGroup, waiting: Waiting, now: float, where: Hashable) -> Waiting | None:
        ask = waiting.ask
        group.queue.push(waiting, ask.key, ask.priority, now, where, bounded=False)
        self._flush_soon()
        return None

    # what there is

    def _limited(self) -> list[ServerState]:
        return [] if self._servers is None else [state for state in self._servers if state.limit is not None]

    def _find_limits(self) -> None:
        """Have a lease for each server with a limit, and give back those of servers that have none any more."""
        states = {_name_of(state): state for state in self._servers or () if state.limit is not None}
        for state in self._servers or ():
            state.lease = None if state.limit is None else self._lease_of(state)
        claims = []
        for name, lease in list(self._leases.items()):
            if name.startswith(SERVER) and name not in states:
                del self._leases[name]
                claims.append(Claim(name, lease.limit, 0, 1, lease.held))
        queued = self._queued()
        for name, lease in list(self._leases.items()):
            if name.startswith(QUEUE) and not queued.get(name):
                del self._leases[name]
                claims.append(Claim(name, lease.limit, 0, 1, lease.held))
        for name, state in states.items():
            lease = self._leases[name]
            if lease.need and lease.limit != state.limit:
                lease.limit = state.limit or 0
                claims.append(self._claim(lease, lease.need, lease.weight))
        if claims:
            self._send(Claims(0, claims, []))

    def _lease_of(self, state: ServerState) -> HeldPlaces:
        name = _name_of(state)
        lease = self._leases.get(name)
        if lease is None:
            lease = self._leases[name] = HeldPlaces(name, state.limit or 0)
        state.lease = lease
        return lease

    def _queue_name(self, group: ModelGroup) -> str:
        name = self._queue_names.get(group)
        if name is None:
            servers = sorted({each.server.url for each in group.destinations})
            name = f"{QUEUE}{group.name} {b' '.join(servers).decode('latin-1')}"
            self._queue_names[group] = name
        return name

    def _queue_lease(self, group: ModelGroup) -> HeldPlaces:
        name = self._queue_name(group)
        lease = self._leases.get(name)
        if lease is None:
            lease = self._leases[name] = HeldPlaces(name, group.queue.capacity)
        lease.limit = group.queue.capacity
        return lease

    def _queued(self) -> Counter[str]:
        """Return how many requests wait in the queues of each name that has a lease."""
        found: Counter[str] = Counter({name: 0 for name in self._leases if name.startswith(QUEUE)})
        for group in self._queues:
            name = self._queue_name(group)
            if name in found:
                found[name] += len(group.queue)
        return found

    def _waiting_at(self) -> Counter[ServerState]:
        """Return how many requests wait for each server with a limit."""
        found: Counter[ServerState] = Counter()
        for group in self._queues:
            for state in {each.state for each in group.destinations if each.state.limit is not None}:
                found[state] += len(group.queue)
        return found

    @staticmethod
    def _need_of(state: ServerState, waiting: Counter[ServerState]) -> int:
        return min(state.in_flight_here + waiting[state], state.limit or 0)

    # claiming

    def _flush_soon(self) -> None:
        if self._flushing is None:
            # all that come in one turn of the reactor are one message
            self._flushing = self._clock.callLater(0, self._flush)

    def _flush(self) -> None:
        """Claim what the waiting requests need."""
        self._flushing = None
        now = self.seconds()
        waiting = self._waiting_at()
        claims: dict[str, Claim] = {}
        round_of: dict[ModelGroup, int] = {}
        asking = {group.current for groups in self._asking.values() for group in groups}
        for group in self._queues:
            places = self._queue_lease(group)
            count = len(group.queue)
            is_new = count > places.held and group not in asking
            for state in {each.state for each in group.destinations if each.state.limit is not None}:
                lease = self._lease_of(state)
                need = self._need_of(state, waiting)
                if is_new or need > lease.need or lease.limit != state.limit:
                    lease.limit = state.limit or 0
                    claims[lease.name] = self._claim(lease, need, max(group.queue.keys, 1))
            if is_new:
                claims[places.name] = self._claim(places, count, max(group.queue.keys, 1))
                round_of[group] = group.queue.arrivals
        entries = self._entry_claims(now)
        if round_of:
            self._round += 1
            self._asking[self._round] = round_of
        if claims or entries or round_of:
            self._send(Claims(self._round if round_of else 0, list(claims.values()), entries))

    def _entry_claims(self, now: float) -> list[EntryClaim]:
        """Return what has to be told of the requests that could be sent now by entries with limits."""
        wanted: dict[LeasedLimits, list[int]] = {
            limits: [] for limits in self._limits.values() if limits.claimed or limits.has_grants
        }
        for group in self._queues:
            if all(each.limits is None for each in group.destinations):
                continue
            room: dict[ServerState, int] = {}
            asked = 0
            for waiting in islice(group.queue, MOST_LOOKED_AT):
                found = self._intended(group, waiting.ask, now, room)
                if found is None or not isinstance(found.limits, LeasedLimits):
                    continue
                if found.state in room:
                    room[found.state] -= 1
                wanted.setdefault(found.limits, []).append(waiting.ask.tokens)
                asked += 1
                if asked == MOST_ASKED:
                    break
        claims = []
        for limits, tokens in wanted.items():
            if limits.claimed != tokens:
                limits.claimed = list(tokens)
                claims.append(EntryClaim(limits.name, limits.rpm, limits.tpm, tokens))
        return claims

    def _intended(self, group: ModelGroup, ask: Ask, now: float, room: dict[ServerState, int]) -> Destination | None:
        """Return where a request is to go once the limits of the entry allow it; None if it can go nowhere now."""

        def has_room(each: Destination) -> bool:
            state = each.state
            if not may_go(state, ask, now):
                return False
            if ask.server is not None and each.server.url != ask.server.url:
                return False
            if state.limit is None:
                return True
            return room.setdefault(state, self._lease_of(state).held - state.in_flight_here) > 0

        def used_up(each: Destination) -> bool:
            return each.limits is not None and has_room(each)

        for tier in group.tiers:
            found = [
                each
                for each in tier
                if has_room(each) and (each.limits is None or not each.limits.known_wait(ask.tokens, now))
            ]
            if found:
                return self._chosen(group, found, ask, now)
        # what is used up everywhere is claimed all the same: the supervisor grants it when there is room
        return next((each for each in group.destinations if used_up(each)), None)

    @staticmethod
    def _claim(lease: HeldPlaces, need: int, weight: int, returned: int = 0, recall: int = 0) -> Claim:
        lease.need, lease.weight = need, weight
        return Claim(lease.name, lease.limit, need, weight, returned, recall)

    def _send(self, claims: Claims) -> None:
        self._siblings.tell(CLAIMS, claims)

    def _use(self, used: Used) -> None:
        if not self._returned:
            self._clock.callLater(0, self._tell_used)
        self._returned.append(used)

    def _tell_used(self) -> None:
        used, self._returned = self._returned, []
        self._siblings.tell(USED, used)

    # being granted

    def _told(self, message: Grants, sender: int) -> None:
        recalled = [grant for grant in message.grants if not self._granted_places(grant)]
        replies = self._answer_recalls(recalled)
        touched = []
        for entry in message.entries:
            limits = self._limits.get(entry.name)
            if limits is not None:
                limits.granted(entry)
                touched.append(limits)
            else:
                for number, _ in entry.granted:
                    self._use(Used(entry.name, number, 0, False))
        self.serve()
        for number in message.rounds:
            for group, arrivals in self._asking.pop(number, {}).items():
                replies += self._answered(group.current, arrivals)
        for limits in touched:
            limits.give_back()
        if replies:
            self._send(Claims(0, replies, []))
        if self._queues:
            self._flush_soon()

    def _granted_places(self, grant: Grant) -> bool:
        """Take a grant; return whether it wants no answer."""
        lease = self._leases.get(grant.name)
        if lease is None:
            # of a server or a queue that is gone since: it goes back
            self._send(Claims(0, [Claim(grant.name, 0, 0, 1, grant.more, grant.recall)], []))
            return True
        lease.held += grant.more
        lease.keep = None if grant.keep < 0 else grant.keep
        return not grant.recall

    def _answer_recalls(self, recalled: list[Grant]) -> list[Claim]:
        if not recalled:
            return []
        waiting = self._waiting_at()
        states = {_name_of(state): state for state in self._limited()}
        replies = []
        for grant in recalled:
            lease = self._leases[grant.name]
            keep = lease.held if grant.keep < 0 else grant.keep
            state = states.get(grant.name)
            if state is not None:
                used, need = state.in_flight_here, self._need_of(state, waiting)
            else:
                for group in [each for each in self._queues if self._queue_name(each) == grant.name]:
                    self._trim(group, keep)
                used = need = self._queued()[grant.name]
            returned = lease.give_back(used, keep)
            replies.append(self._claim(lease, need, lease.weight, returned, grant.recall))
        return replies

    def _answered(self, group: ModelGroup, arrivals: int) -> list[Claim]:
        """Refuse what has no place in the queue, now that nothing else can be had."""
        lease = self._queue_lease(group)
        later = group.queue.arrivals - arrivals
        self._trim(group, lease.held + later)
        patience = patience_of(group)
        if patience is not None and len(group.queue):
            now = self.seconds()
            waits: dict[int, int] = {}
            for waiting in list(group.queue):
                tokens = waiting.ask.tokens
                if tokens not in waits:
                    waits[tokens] = wait_for_entries(group, tokens, now)
                if waits[tokens] > patience:
                    self.refuse(waiting, "the model's limits in a minute are used up")
        need = len(group.queue)
        return [self._claim(lease, need, lease.weight)] if need != lease.need else []

    def _trim(self, group: ModelGroup, most: int) -> None:
        for waiting in group.queue.trim(most, self.seconds()):
            self._dequeued(waiting)
            waiting.result.errback(self._busy(group, "too many requests wait for the model's servers"))


def _name_of(state: ServerState) -> str:
    return SERVER + state.server.url.decode("latin-1")


def _ignore(model: str, server: str, routing: RoutingRequest) -> None:
    """Do nothing."""
