"""Has the processes of a gateway know the same of its servers: their breakers, their load, and what checks found.

Breakers are told at once. What changes with each request is looked at every `INTERVAL`, and told if it has changed: the
requests of each process at a server, and the housekeeper's findings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from twisted.internet.task import LoopingCall

from twisted_vllm.upstreams.server_state import Servers, ServerState
from twisted_vllm.upstreams.shared.breaker import Seen, SharedBreaker, Status
from twisted_vllm.workers.siblings import HOUSEKEEPER, Siblings

#: seconds between two looks at what has changed
INTERVAL = 0.05

#: the topics of messages
STATUS, SEEN, LOADS, FACTS = "servers.status", "servers.seen", "servers.loads", "servers.facts"
CHECK, EMPTIED = "servers.check", "servers.emptied"


class StatusOf(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The state of the breaker of a server, which is named by its URL."""

    server: bytes
    status: Status


class SeenAt(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What was seen of a server with a closed breaker."""

    server: bytes
    seen: Seen


class Load(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The requests of a process at a server, and when one was last answered well."""

    server: bytes
    in_flight: int
    last_alive: float | None


class Fact(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What the housekeeper found out of a server, as in `ServerState`."""

    server: bytes
    waiting: float
    kv_usage: float
    sleeping: bool
    sleep_changed: float | None
    running: float | None = None
    cache_hits: float | None = None
    version: str = ""


class SharedServers:
    """Tells the other processes of this one's servers, and takes what they tell.

    Attributes:
        on_awake: called with a server that woke up.
        on_emptied: called with each server whose prefix cache was emptied through another process.
        check_now: called in the housekeeper with each server that is to be checked at once.
        on_tick: called every `INTERVAL`.
    """

    def __init__(self, siblings: Siblings, clock: Any) -> None:
        """Set up; `use` must follow, and `start`.

        Args:
            siblings: the other processes.
            clock: the reactor's clock.
        """
        self.on_awake: Callable[[ServerState], object] = _ignore
        self.on_emptied: Callable[[ServerState], object] = _ignore
        self.check_now: Callable[[ServerState], object] = _ignore
        self.on_tick: list[Callable[[], object]] = []
        self._siblings = siblings
        self._clock = clock
        self._servers: Servers | None = None
        self._by_breaker: dict[SharedBreaker, ServerState] = {}
        self._told_loads: dict[ServerState, tuple[int, float]] = {}
        self._told_facts: dict[ServerState, Fact] = {}
        # the requests of other processes that are counted in the states
        self._elsewhere: dict[int, dict[ServerState, int]] = {}
        self._loop = LoopingCall(self._look)
        self._loop.clock = clock
        siblings.on(STATUS, list[StatusOf], self._status_told)
        siblings.on(SEEN, SeenAt, self._seen_elsewhere)
        siblings.on(LOADS, list[Load], self._loads_told)
        if not siblings.housekeeps:
            siblings.on(FACTS, list[Fact], self._facts_told)
        siblings.on(CHECK, list[bytes], self._asked_to_check)
        siblings.on(EMPTIED, list[bytes], self._emptied_elsewhere)
        siblings.on_joined(self._joined)
        siblings.on_left(self._left)

    def make_breaker(self, **options: Any) -> SharedBreaker:
        """Return the breaker of a new server; the arguments are those of `Breaker`."""
        breaker = SharedBreaker(self._siblings.number, self._tell, **options)
        breaker.turn = self._turn_after(0)
        return breaker

    def use(self, servers: Servers) -> None:
        """Share these servers, whose breakers `make_breaker` made."""
        self._servers = servers

    def start(self) -> None:
        """Look at what changes."""
        if not self._loop.running:
            self._loop.start(INTERVAL, now=False)

    def stop(self) -> None:
        """Look no more. Idempotent."""
        if self._loop.running:
            self._loop.stop()

    def checked(self, state: ServerState) -> None:
        """Tell what a check of the housekeeper found."""
        breaker = state.breaker
        if isinstance(breaker, SharedBreaker) and not breaker.closed:
            self._tell(breaker, breaker.status)
        self._tell_facts([state])

    def acted(self) -> None:
        """Have all servers checked at once: they may have been told to sleep or to wake."""
        states = list(self._states())
        for state in states:
            self.check_now(state)
        for number, slot in self._siblings.others.items():
            if slot == HOUSEKEEPER:
                self._siblings.send(number, CHECK, [state.server.url for state in states])

    def emptied(self) -> None:
        """Forget in all processes what is in the servers' prefix caches."""
        states = list(self._states())
        for state in states:
            self.on_emptied(state)
        self._siblings.share(EMPTIED, [state.server.url for state in states])

    # telling

    def _tell(self, breaker: SharedBreaker, news: Status | Seen) -> None:
        state = self._state_of(breaker)
        if state is None:
            return
        if isinstance(news, Seen):
            self._siblings.share(SEEN, SeenAt(state.server.url, news))
        else:
            breaker.turn = self._turn_after(breaker.owner)
            self._siblings.share(STATUS, [StatusOf(state.server.url, news)])

    def _look(self) -> None:
        """Tell what has changed since the last look."""
        if self._siblings.serves:
            loads = self._changed_loads()
            if loads:
                self._siblings.share(LOADS, loads)
        if self._siblings.housekeeps:
            self._tell_facts(self._states())
        for tick in self.on_tick:
            tick()

    def _changed_loads(self) -> list[Load]:
        told, found = self._told_loads, []
        current: dict[ServerState, tuple[int, float]] = {}
        for state in self._states():
            load = current[state] = (state.in_flight_here, state.last_alive)
            if told.get(state) != load and (state in told or load[0] or load[1] > 0.0):
                found.append(Load(state.server.url, load[0], _finite(load[1])))
        # those that left may still have requests in flight: their count ends with the next look that sees them
        self._told_loads = current
        return found

    def _tell_facts(self, states: Sequence[ServerState]) -> None:
        found = []
        for state in states:
            fact = _fact_of(state)
            if self._told_facts.get(state) != fact:
                self._told_facts[state] = fact
                found.append(fact)
        if len(self._told_facts) > 2 * len(self._states()) + 16:
            self._told_facts = {state: fact for state, fact in self._told_facts.items() if not state.left}
        if found:
            self._siblings.share(FACTS, found)

    def _joined(self, process: int) -> None:
        """Tell a process that is ready all that this one knows."""
        self._turns_change()
        send = self._siblings.send
        states = self._states()
        known = [
            StatusOf(state.server.url, state.breaker.status)
            for state in states
            if isinstance(state.breaker, SharedBreaker)
        ]
        if known:
            send(process, STATUS, known)
        if self._siblings.serves:
            loads = [Load(each.server.url, each.in_flight_here, _finite(each.last_alive)) for each in states]
            if loads:
                send(process, LOADS, loads)
        if self._siblings.housekeeps and states:
            send(process, FACTS, [_fact_of(state) for state in states])

    # being told

    def _status_told(self, message: list[StatusOf], sender: int) -> None:
        later = []
        for told in message:
            state = self._with_url(told.server)
            if state is None or not isinstance(state.breaker, SharedBreaker):
                continue
            breaker = state.breaker
            if breaker.adopt(told.status, sender):
                breaker.turn = self._turn_after(breaker.owner)
            else:
                later.append(StatusOf(told.server, breaker.status))
        if later:
            # the sender had not heard of it
            self._siblings.send(sender, STATUS, later)

    def _seen_elsewhere(self, message: SeenAt, sender: int) -> None:
        state = self._with_url(message.server)
        if state is not None and isinstance(state.breaker, SharedBreaker):
            state.breaker.saw(self._clock.seconds(), message.seen)

    def _loads_told(self, message: list[Load], sender: int) -> None:
        counted = self._elsewhere.setdefault(sender, {})
        for load in message:
            state = self._with_url(load.server)
            if state is None:
                continue
            difference = load.in_flight - counted.get(state, 0)
            if difference:
                counted[state] = load.in_flight
                state.in_flight += difference
                state.in_flight_elsewhere += difference
            if load.last_alive is not None and load.last_alive > state.last_alive:
                state.last_alive = load.last_alive
        if len(counted) > 2 * len(self._states()) + 16:
            self._elsewhere[sender] = {state: count for state, count in counted.items() if count and not state.left}

    def _facts_told(self, message: list[Fact], sender: int) -> None:
        for fact in message:
            state = self._with_url(fact.server)
            if state is None:
                continue
            state.waiting, state.kv_usage = fact.waiting, fact.kv_usage
            state.running, state.cache_hits, state.version = fact.running, fact.cache_hits, fact.version
            if fact.sleep_changed is not None:
                state.sleep_changed = fact.sleep_changed
            woke, state.sleeping = state.sleeping and not fact.sleeping, fact.sleeping
            if woke:
                self.on_awake(state)

    def _asked_to_check(self, servers: list[bytes], sender: int) -> None:
        for url in servers:
            state = self._with_url(url)
            if state is not None:
                self.check_now(state)

    def _emptied_elsewhere(self, servers: list[bytes], sender: int) -> None:
        for url in servers:
            state = self._with_url(url)
            if state is not None:
                self.on_emptied(state)

    def _left(self, process: int) -> None:
        """Forget a process that has ended."""
        for state, count in self._elsewhere.pop(process, {}).items():
            state.in_flight -= count
            state.in_flight_elsewhere -= count
        self._turns_change()
        now = self._clock.seconds()
        for state in self._states():
            if isinstance(state.breaker, SharedBreaker):
                state.breaker.left(process, now)

    # whose turn it is

    def _turns_change(self) -> None:
        for state in self._states():
            if isinstance(state.breaker, SharedBreaker):
                state.breaker.turn = self._turn_after(state.breaker.owner)

    def _turn_after(self, owner: int) -> int:
        """Return how many processes may begin a trial before this one: the owner of the last change is the first."""
        siblings = self._siblings
        if siblings.housekeeps:
            return 0
        serving = sorted([siblings.number, *(each for each, slot in siblings.others.items() if slot != HOUSEKEEPER)])
        first = serving.index(owner) if owner in serving else 0
        return (serving.index(siblings.number) - first) % len(serving)

    def _states(self) -> Sequence[ServerState]:
        return () if self._servers is None else tuple(self._servers)

    def _with_url(self, url: bytes) -> ServerState | None:
        return None if self._servers is None else self._servers.with_url(url)

    def _state_of(self, breaker: SharedBreaker) -> ServerState | None:
        state = self._by_breaker.get(breaker)
        if state is None:
            self._by_breaker = {
                each.breaker: each for each in self._states() if isinstance(each.breaker, SharedBreaker)
            }
            state = self._by_breaker.get(breaker)
        return state


def _fact_of(state: ServerState) -> Fact:
    return Fact(
        state.server.url,
        state.waiting,
        state.kv_usage,
        state.sleeping,
        _finite(state.sleep_changed),
        state.running,
        state.cache_hits,
        state.version,
    )


def _finite(seconds: float) -> float | None:
    """Return a time; None for one that never was."""
    return None if seconds == float("-inf") else seconds


def _ignore(state: ServerState) -> None:
    """Do nothing."""
