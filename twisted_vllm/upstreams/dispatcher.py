"""Places each request on a server: now, or when one has room.

A request that is placed counts as in flight at its server until its exchange is over. What becomes of it is reported to
the server's circuit breaker, latency and limits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from functools import partial
from math import inf

import msgspec
from twisted.internet.defer import Deferred

from twisted_vllm.config.settings import Server
from twisted_vllm.errors import Draining, GatewayError, NoHealthyUpstream, ServerBusy
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.upstreams.breaker import fault_of_status
from twisted_vllm.upstreams.entry_limits import Share
from twisted_vllm.upstreams.faults import SLOW, fault_of_error, fault_of_request
from twisted_vllm.upstreams.policies import RoutingRequest, ServerSnapshot
from twisted_vllm.upstreams.router import Destination, ModelGroup
from twisted_vllm.upstreams.server_state import ServerState
from twisted_vllm.upstreams.service_rate import LEAST, MOST

#: what a request says of itself to a policy if no policy asks
NO_ROUTING = RoutingRequest()

#: seconds after which a request whose servers are all drained may be sent again
DRAINED_RETRY = 30

_STOPPING = "The gateway is shutting down; send the request again."


class Ask(msgspec.Struct, frozen=True, gc=False):
    """What a request needs of a server.

    Attributes:
        key: whose request it is, for fairness.
        priority: how urgent it is; lower numbers are more urgent.
        routing: what the policy may look at.
        tokens: the tokens that it may use, estimated, for the limits of an entry.
        tried: the servers that failed it.
        server: the server that has what it continues: it goes there if a destination names it.
        unlimited: whether it neither waits for room nor takes any: it is answered without the model.
        asleep: whether it may go to a server that sleeps or is drained: it uses no model, or an operator names it.
        unwell: whether it may go to a server that gets no other requests: an operator names it, or acts on it.
    """

    key: str = ""
    priority: int = 0
    routing: RoutingRequest = NO_ROUTING
    tokens: int = 0
    tried: tuple[ServerState, ...] = ()
    server: Server | None = None
    unlimited: bool = False
    asleep: bool = False
    unwell: bool = False


#: a request that any server may serve
NOTHING_ASKED = Ask()


class Placement:
    """A request that is placed on a server.

    Attributes:
        destination: where.
        group: the model group that it was asked of.
        share: what it takes of the limits of its entry; None if that has none.
        began: when it was placed, in the reactor's seconds.
        queued: the seconds that it waited for room; None if it did not.
    """

    __slots__ = (
        "_dispatcher",
        "_ended",
        "_ticket",
        "_told",
        "_well",
        "began",
        "destination",
        "group",
        "queued",
        "share",
        "unlimited",
    )

    def __init__(
        self,
        dispatcher: Dispatcher,
        group: ModelGroup,
        destination: Destination,
        share: Share | None,
        ticket: int,
        began: float,
    ) -> None:
        self._dispatcher = dispatcher
        self.share = share
        self.unlimited = False
        self._ticket = ticket
        self.began = began
        self._told = self._well = self._ended = False
        self.group = group
        self.destination = destination
        self.queued: float | None = None

    def responded(self, status: int, now: float) -> None:
        """The head of the server's answer came.

        An error counts at once. Anything else is no success yet: a server may send heads, and cut every answer.

        Args:
            status: its status.
            now: the time in the reactor's seconds.
        """
        state = self.destination.state
        self._told = True
        fault = None if status < 500 else fault_of_status(status)
        if fault is None:
            state.last_alive = now
            self._well = True
        else:
            state.breaker.failed(now, fault, self._ticket, answered=True)

    def began_to_answer(self, now: float) -> None:
        """The first byte of the answer's body came, or its head if nobody waits for that."""
        state = self.destination.state
        if self.group.lone is None:
            # nobody chooses by the latency of a lone server
            state.latency.observe(now - self.began, now)
        if self._well and not state.breaker.closed:
            # a trial does not last as long as its answer
            state.breaker.succeeded(now, self._ticket)

    def failed(self, error: GatewayError, now: float, *, sent: bool = False) -> bool:
        """The request failed, before its answer began or within it.

        Args:
            error: why.
            now: the time in the reactor's seconds.
            sent: whether the server took it. It may be the request that breaks the connection: then the server is a
                last resort for others, unless nobody knows whether it still does anything.

        Returns:
            Whether that is a fault of the server.
        """
        state = self.destination.state
        fault = fault_of_request(error, sent=self.began, last_alive=state.last_alive)
        if fault is None:
            if fault_of_error(error) == "timeout":
                state.breaker.count(SLOW)
            return False
        self._told, self._well = True, False
        state.breaker.failed(now, fault, self._ticket, answered=sent and fault != "timeout")
        return True

    def used(self, tokens: int, *, sent: bool) -> None:
        """Tell how many tokens it used, for the limits of its entry. Idempotent."""
        limits = self.destination.limits
        if limits is not None and self.share is not None:
            limits.settle(self.share, tokens, self._dispatcher.seconds(), sent=sent)

    def ended(self) -> None:
        """The exchange is over, or never began. Idempotent."""
        if self._ended:
            return
        self._ended = True
        dispatcher = self._dispatcher
        state = self.destination.state
        if not self._told:
            state.breaker.abandoned(dispatcher.seconds(), self._ticket)
        elif self._well and (state.breaker.fails or not state.breaker.closed):
            state.breaker.succeeded(dispatcher.seconds(), self._ticket)
        if not self.unlimited:
            state.in_flight -= 1
            if state.limit is not None:
                dispatcher.freed(self.group, state)
            if dispatcher.queued:
                dispatcher.serve()


class Waiting:
    """A request that waits for room.

    Attributes:
        deadline: when `expired` is called, in the reactor's seconds.
    """

    __slots__ = ("_dispatcher", "ask", "deadline", "group", "result", "since")

    def __init__(
        self, dispatcher: Dispatcher, group: ModelGroup, ask: Ask, since: float, deadline: float | None
    ) -> None:
        self._dispatcher = dispatcher
        self.group = group
        self.ask = ask
        self.since = since
        self.deadline = deadline
        self.result: Deferred[Placement] = Deferred(partial(dispatcher.cancelled, self))

    def expired(self) -> None:
        """Refuse it: it has waited too long."""
        self.deadline = None
        self._dispatcher.refuse(self, "the model's servers took no request in time")


class _Ticker:
    """Looks after the queues at each check of the deadlines, while anything waits.

    Room may also come from a server that recovers or is added, and from a minute that is over.
    """

    def __init__(self, tick: Callable[[], None]) -> None:
        self.deadline: float | None = 0.0
        self._tick = tick

    def expired(self) -> None:
        """Look after the queues."""
        self._tick()


class Dispatcher:
    """Places requests on servers. ``len()`` is the number of requests that wait for room.

    Attributes:
        queued: the number of requests that wait for room.
        seconds: returns the reactor's time.
    """

    def __init__(self, deadlines: DeadlineSweeper) -> None:
        """Start with nothing in flight.

        Args:
            deadlines: the deadlines of queued requests.
        """
        self._deadlines = deadlines
        self.seconds = deadlines.seconds
        # the groups with queued requests; the first is served next
        self._queues: dict[ModelGroup, None] = {}
        self._ticker = _Ticker(self.serve)
        self._granted: deque[tuple[Waiting, Placement | GatewayError]] = deque()
        self._granting = False
        self.queued = 0

    def __len__(self) -> int:
        return self.queued

    def __repr__(self) -> str:
        return f"<Dispatcher {self.queued} queued>"

    def place_at_once(self, group: ModelGroup) -> Placement | None:
        """Place a request of a group with one server that is well and has no limit; None for any other group.

        It is the usual case, and takes a microsecond.
        """
        lone = group.lone
        if lone is None or group.successor is not None:
            return None
        state = lone.state
        breaker = state.breaker
        if state.limit is not None or not breaker.closed or state.rests:
            return None
        state.in_flight += 1
        return Placement(self, group, lone, None, breaker.ticket, self.seconds())

    def place(self, group: ModelGroup, ask: Ask) -> Placement | Deferred[Placement]:
        """Place a request on a server of a group.

        Returns:
            Its placement, or a Deferred of it if it waits for room. Cancelling that gives up the place in the queue.
            It fails with the errors below.

        Raises:
            NoHealthyUpstream: no server of the group gets requests at present.
            ServerBusy: no server has room, and the queue is full; or none had in time.
        """
        now = self.seconds()
        if group.successor is not None:
            group = group.current
        if self.queued and group.queue:
            # room that came with time alone, such as the next minute of an entry, is for those that wait
            self.serve()
        found = self._choose(group, ask, now)
        if found is not None:
            return self._take(group, found, ask, now)
        return self._wait(group, ask, now)

    def can_place(self, group: ModelGroup, tried: tuple[ServerState, ...]) -> bool:
        """Return whether another server of a group gets requests, beside those that were tried."""
        now, group = self.seconds(), group.current
        return any(each.state not in tried and each.state.is_usable(now) for each in group.destinations)

    def turns(self) -> dict[Deferred[Placement], int]:
        """Return which place in the queue of its model each request that waits has, from 1, by what `place` gave it."""
        return {
            waiting.result: number
            for group in self._queues
            for number, waiting in enumerate(group.queue.in_turn(), start=1)
        }

    def refusal_of(self, group: ModelGroup, *, uses_model: bool = True) -> NoHealthyUpstream | None:
        """Return the error with which requests of a group are refused at present; None if a server takes them.

        Args:
            group: the group.
            uses_model: whether the requests use a model: others go to servers that sleep or are drained too.
        """
        now, group = self.seconds(), group.current
        ask = NOTHING_ASKED if uses_model else Ask(asleep=True)
        if any(each.state.serves(now) or may_go(each.state, ask, now) for each in group.destinations):
            return None
        return self._no_healthy(group, now)

    # choosing

    def _choose(self, group: ModelGroup, ask: Ask, now: float) -> Destination | None:
        """Return the destination that the policy chooses among those with room; None if none has.

        Raises:
            NoHealthyUpstream: none gets requests.
        """
        usable = False
        tiers, destinations, tried = group.tiers, group.destinations, ask.tried
        if ask.server is not None:
            # no other server has what it continues
            bound = tuple(each for each in destinations if each.server.url == ask.server.url)
            if bound:
                tiers, destinations = (bound,), bound
        # every request comes here: what is usual is found out without a call
        for tier in tiers:
            free = []
            for each in tier:
                state = each.state
                breaker = state.breaker
                if (
                    (state.rests and not ask.asleep and not _is_bound_to(state, ask))
                    or not (breaker.closed or ask.unwell or breaker.allows(now))
                    or (tried and state in tried)
                ):
                    continue
                usable = True
                if (state.limit is None and each.limits is None) or ask.unlimited or _has_room(each, ask, now):
                    free.append(each)
            if free:
                return self._chosen(group, free, ask, now)
        if usable:
            return None
        # no server is well: one that answers, though with errors, may still serve this request
        resorts = [each for each in destinations if each.state.serves(now) and each.state not in ask.tried]
        if not resorts:
            raise self._no_healthy(group, now)
        free = resorts if ask.unlimited else [each for each in resorts if _has_room(each, ask, now)]
        return self._chosen(group, free, ask, now) if free else None

    @staticmethod
    def _chosen(group: ModelGroup, free: list[Destination], ask: Ask, now: float) -> Destination:
        if len(free) == 1:
            return free[0]
        policy = group.policy
        reads_latency = policy.reads_latency
        snapshots = []
        for each in free:
            state = each.state
            breaker = state.breaker
            snapshots.append(
                ServerSnapshot(
                    each.key,
                    each.weight if breaker.slow_since is None else each.weight * breaker.share(now),
                    state.in_flight,
                    state.waiting,
                    state.latency.value(now) if reads_latency else 0.0,
                    state.kv_usage,
                )
            )
        return free[policy.choose(snapshots, ask.routing)]

    @staticmethod
    def _no_healthy(group: ModelGroup, now: float) -> NoHealthyUpstream:
        waits = [each.state.breaker.retry_at for each in group.destinations if each.state.drained is None]
        if not waits and group.destinations:
            return NoHealthyUpstream(
                "The servers of this model are taken out of service by the operator at present; send the request again "
                "later.",
                retry_after=DRAINED_RETRY,
            )
        soonest = min(waits, default=now)
        return NoHealthyUpstream(
            "No server of this model can answer at present; send the request again.",
            retry_after=min(max(LEAST, int(soonest - now) + 1), MOST),
        )

    def _take(self, group: ModelGroup, destination: Destination, ask: Ask, now: float) -> Placement:
        state = destination.state
        limits, share = destination.limits, None
        if limits is not None and not ask.unlimited:
            share = limits.take(ask.tokens, now)
        if group.lone is None:
            group.policy.sent(destination.key, ask.routing)
        breaker = state.breaker
        ticket = breaker.ticket if breaker.closed else breaker.begin(now)
        placement = Placement(self, group, destination, share, ticket, now)
        if ask.unlimited:
            placement.unlimited = True
        else:
            state.in_flight += 1
            if state.limit is not None:
                group.queue.rate.began(now)
        return placement

    # the queues

    def regroup(self) -> None:
        """Let requests wait for the servers that their models have now: the router's groups have changed."""
        for group in list(self._queues):
            following = group.current
            if following is not group:
                for waiting in group.queue:
                    waiting.group = following
                del self._queues[group]
                self._queues[following] = None
        self.serve()

    def _wait(self, group: ModelGroup, ask: Ask, now: float) -> Deferred[Placement]:
        patience = patience_of(group)
        minute = wait_for_entries(group, ask.tokens, now)
        if patience is not None and minute > patience:
            raise self._busy(group, "the model's limits in a minute are used up")
        waiting = Waiting(self, group, ask, now, self._deadlines.after(patience))
        # such a request can wait for some of the servers only
        where = (ask.tried, ask.server) if ask.tried or ask.server is not None else None
        pushed_out = self._push(group, waiting, now, where)
        if pushed_out is waiting:
            raise self._busy(group, "too many requests wait for the model's servers")
        self.queued += 1
        self._queues[group] = None
        self._deadlines.add(waiting)
        self._deadlines.add(self._ticker)
        if pushed_out is not None:
            self._dequeued(pushed_out)
            pushed_out.result.errback(self._busy(group, "too many requests of this key wait for the model's servers"))
        return waiting.result

    def _push(self, group: ModelGroup, waiting: Waiting, now: float, where: Hashable) -> Waiting | None:
        """Put a request into the queue; return the one that is refused for it, perhaps itself."""
        ask = waiting.ask
        pushed_out: Waiting | None = group.queue.push(waiting, ask.key, ask.priority, now, where)
        return pushed_out

    def freed(self, group: ModelGroup, state: ServerState) -> None:
        """A place of a server with a limit is free."""
        group.queue.rate.ended(self.seconds())

    def _dequeued(self, waiting: Waiting) -> None:
        self.queued -= 1
        self._deadlines.discard(waiting)
        if not waiting.group.queue:
            self._queues.pop(waiting.group, None)
            if not self._queues:
                self._deadlines.discard(self._ticker)

    def cancelled(self, waiting: Waiting, _: object) -> None:
        """Take out a request that was given up."""
        if waiting.group.queue.discard(waiting, self.seconds()):
            self._dequeued(waiting)

    def refuse(self, waiting: Waiting, reason: str) -> None:
        """Refuse a request that waits."""
        if waiting.group.queue.discard(waiting, self.seconds()):
            self._dequeued(waiting)
            waiting.result.errback(self._busy(waiting.group, reason))

    def refuse_waiting(self) -> int:
        """Refuse all requests that wait, because the gateway stops; return how many there were."""
        waiting = [each for group in self._queues for each in group.queue]
        for each in waiting:
            if each.group.queue.discard(each, self.seconds()):
                self._dequeued(each)
                each.result.errback(Draining(_STOPPING, retry_after=1))
        return len(waiting)

    def _busy(self, group: ModelGroup, reason: str) -> ServerBusy:
        now = self.seconds()
        usable = [each for each in group.destinations if each.state.is_usable(now)]
        places = sum({each.state: each.state.limit or 1 for each in usable}.values()) or 1
        limited = [each.limits.rpm for each in usable if each.limits is not None and each.limits.rpm is not None]
        most = sum(limited) / 60.0 if usable and len(limited) == len(usable) else inf
        seconds = group.queue.retry_after(places, now, most=most, earliest=wait_for_entries(group, 0, now))
        return ServerBusy(f"Busy: {reason}; send the request again.", retry_after=seconds)

    def serve(self) -> None:
        """Give the free places to those that wait, one group after the other."""
        now = self.seconds()
        idle = 0
        while self._queues and idle < len(self._queues):
            group = next(iter(self._queues))
            # the next group has its turn after this one
            del self._queues[group]
            self._queues[group] = None
            if self._serve_next(group, now):
                idle = 0
            else:
                idle += 1
        if self._granting:
            return
        # a request that fails at once frees a place: a loop, because recursion could get too deep
        self._granting = True
        try:
            while self._granted:
                waiting, placement = self._granted.popleft()
                self._grant(waiting, placement)
        finally:
            self._granting = False

    def _serve_next(self, group: ModelGroup, now: float) -> bool:
        """Place the next request of a group; return whether there was room for one."""
        if not any(each.state.serves(now) for each in group.destinations):
            if not any(each.state.drained is not None for each in group.destinations):
                error = self._no_healthy(group, now)
                while (lost := group.queue.pop(lambda _: True, now)) is not None:
                    self._dequeued(lost)
                    self._granted.append((lost, error))
                return False
            # what is bound to a drained server goes on to wait for it; the others are refused below
        elif not any(_has_room(each, NOTHING_ASKED, now) for each in group.destinations):
            # do not ask all that wait
            return False
        chosen: list[Destination | NoHealthyUpstream] = []

        def accepts(waiting: Waiting) -> bool:
            try:
                found = self._choose(group, waiting.ask, now)
            except NoHealthyUpstream as error:
                # the servers that it may use are out: others may be well
                chosen.append(error)
                return True
            if found is not None:
                chosen.append(found)
            return found is not None

        waiting = group.queue.pop(accepts, now)
        if waiting is None:
            return False
        if isinstance(chosen[-1], NoHealthyUpstream):
            self._dequeued(waiting)
            self._granted.append((waiting, chosen[-1]))
            return True
        placement = self._take(group, chosen[-1], waiting.ask, now)
        placement.queued = now - waiting.since
        self._dequeued(waiting)
        self._granted.append((waiting, placement))
        return True

    @staticmethod
    def _grant(waiting: Waiting, placement: Placement | GatewayError) -> None:
        if isinstance(placement, GatewayError):
            if not waiting.result.called:
                waiting.result.errback(placement)
        elif waiting.result.called:
            # cancelled meanwhile
            placement.ended()
        else:
            waiting.result.callback(placement)


def _is_bound_to(state: ServerState, ask: Ask) -> bool:
    """Return whether a request goes to a drained server all the same: no other one has what it continues."""
    return not state.sleeping and ask.server is not None and ask.server.url == state.server.url


def may_go(state: ServerState, ask: Ask, now: float) -> bool:
    """Return whether a server may get a request, if it has room; were it as a trial, and not as a last resort."""
    if state.rests and not ask.asleep and not _is_bound_to(state, ask):
        return False
    return (ask.unwell or state.breaker.allows(now)) and state not in ask.tried


def _has_room(destination: Destination, ask: Ask, now: float) -> bool:
    return destination.state.has_room and (destination.limits is None or not destination.limits.wait(ask.tokens, now))


def patience_of(group: ModelGroup) -> float | None:
    """Return for how many seconds a request may wait: the longest that one of the servers allows; None for ever."""
    allowed = [each.server.timeouts.queue for each in group.destinations]
    return None if None in allowed else max(seconds for seconds in allowed if seconds is not None)


def wait_for_entries(group: ModelGroup, tokens: int, now: float) -> int:
    """Return the whole seconds until the ``rpm`` and ``tpm`` of an entry let a request pass; 0 if one does now."""
    return min(
        (
            0 if each.limits is None else each.limits.known_wait(tokens, now)
            for each in group.destinations
            if each.state.is_usable(now)
        ),
        default=0,
    )
