"""What the gateway knows of each server while it runs: one state for each URL, whatever names it in the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from twisted_vllm.config.drained_servers import DrainedServer
from twisted_vllm.config.settings import Server
from twisted_vllm.upstreams.breaker import Breaker
from twisted_vllm.upstreams.latency import PeakEwma


class Attempt(Protocol):
    """A request that was sent to a server, whose answer has not begun."""

    def server_died(self, reason: str) -> None:
        """The server was found dead: do not wait for it."""


class Lease(Protocol):
    """What a process may use of a limit that it shares with others: `held` of it."""

    held: int


class ServerState:
    """The state of one server.

    Attributes:
        server: the server, as it is configured.
        name: its name in logs and metrics.
        in_flight: the requests that this gateway has there, with those of its other processes.
        in_flight_elsewhere: those of its other processes, as they last told.
        limit: the most of them; None means no limit.
        lease: how many of them this process may have, if there are several; None if it is alone.
        breaker: decides whether it gets requests.
        latency: the seconds until its answers begin.
        waiting: the requests that wait inside the server, as it reports; 0.0 if it is not asked.
        kv_usage: the used share of its KV cache, as it reports, 0.0 to 1.0; 0.0 if it is not asked.
        running: the requests that run inside the server, as it reports; None if it is not asked.
        cache_hits: what its prefix cache had of the prompts of the last minute; None if it is not asked.
        version: vLLM's version, as it reports; empty if that is not known.
        sleeping: whether vLLM's sleep mode is on.
        drained: who drained it, and why; None if nobody did.
        rests: whether it sleeps or is drained: it gets only requests that may go to it all the same.
        sleep_changed: when `sleeping` changed, in the reactor's seconds.
        last_alive: when it last answered a request well, in the reactor's seconds.
        awaiting: the attempts whose answers have not begun.
        left: whether it is no longer configured.
    """

    __slots__ = (
        "_drained",
        "_sleeping",
        "awaiting",
        "breaker",
        "cache_hits",
        "in_flight",
        "in_flight_elsewhere",
        "kv_usage",
        "last_alive",
        "latency",
        "lease",
        "left",
        "limit",
        "name",
        "rests",
        "running",
        "server",
        "sleep_changed",
        "version",
        "waiting",
    )

    def __init__(self, server: Server, breaker: Breaker) -> None:
        self.server = server
        self.name = server.name
        # one sum, so that what looks at the load adds nothing up
        self.in_flight = self.in_flight_elsewhere = 0
        self.lease: Lease | None = None
        self.limit = server.max_concurrent_requests
        self.breaker = breaker
        self.latency = PeakEwma()
        self.waiting = 0.0
        self.kv_usage = 0.0
        self.running: float | None = None
        self.cache_hits: float | None = None
        self.version = ""
        # both in one, so that the data path looks at one attribute
        self.rests = False
        self._sleeping = False
        self._drained: DrainedServer | None = None
        self.sleep_changed = float("-inf")
        self.last_alive = float("-inf")
        self.awaiting: set[Attempt] = set()
        self.left = False

    def __repr__(self) -> str:
        return f"<ServerState {self.name} {self.breaker.state}, {self.in_flight} in flight>"

    @property
    def has_room(self) -> bool:
        """Whether it may have one more request of this process in flight."""
        if self.limit is None:
            return True
        if self.lease is None:
            return self.in_flight < self.limit
        return self.in_flight - self.in_flight_elsewhere < self.lease.held

    @property
    def in_flight_here(self) -> int:
        """The requests of this process alone."""
        return self.in_flight - self.in_flight_elsewhere

    @property
    def sleeping(self) -> bool:
        """As the attribute."""
        return self._sleeping

    @sleeping.setter
    def sleeping(self, sleeps: bool) -> None:
        self._sleeping = sleeps
        self.rests = sleeps or self._drained is not None

    @property
    def drained(self) -> DrainedServer | None:
        """As the attribute."""
        return self._drained

    @drained.setter
    def drained(self, drained: DrainedServer | None) -> None:
        self._drained = drained
        self.rests = self._sleeping or drained is not None

    def is_usable(self, now: float) -> bool:
        """Return whether it gets requests."""
        return self.breaker.allows(now) and not self.rests

    def serves(self, now: float) -> bool:
        """Return whether it may serve anything, were it as a last resort."""
        return not self.rests and (self.breaker.allows(now) or self.breaker.last_resort)


class Servers:
    """The states of all configured servers."""

    def __init__(self, make_breaker: Callable[[], Breaker]) -> None:
        """Start without servers; `make_breaker` makes the breaker of a new one."""
        self.make_breaker = make_breaker
        self._states: dict[bytes, ServerState] = {}
        # those that left and still have requests in flight
        self._leaving: dict[bytes, ServerState] = {}
        self._drained: Mapping[bytes, DrainedServer] = {}

    def __iter__(self) -> Iterator[ServerState]:
        return iter(tuple(self._states.values()))

    def __len__(self) -> int:
        return len(self._states)

    def state_of(self, server: Server) -> ServerState:
        """Return the state of a configured server, made if it is new."""
        state = self._states.get(server.url)
        if state is None:
            state = self._leaving.pop(server.url, None) or ServerState(server, self.make_breaker())
            state.left = False
            state.drained = self._drained.get(server.url)
            self._states[server.url] = state
        return state

    def set_drained(self, drained: Iterable[DrainedServer]) -> list[ServerState]:
        """Set which servers are drained, also of those that come later; return the states that changed."""
        self._drained = {each.url.encode("latin-1"): each for each in drained}
        changed = [state for state in self if state.drained != self._drained.get(state.server.url)]
        for state in changed:
            state.drained = self._drained.get(state.server.url)
        return changed

    @property
    def drained(self) -> Iterable[DrainedServer]:
        """Those that are drained, also if they are not configured."""
        return self._drained.values()

    def with_url(self, url: bytes) -> ServerState | None:
        """Return the state of the configured server with a URL, or None."""
        return self._states.get(url)

    def named(self, name: str) -> ServerState | None:
        """Return the state of the server with a name, or None."""
        return next((state for state in self._states.values() if state.name == name), None)

    def configure(self, servers: Iterable[Server]) -> list[ServerState]:
        """Set which servers are configured; return the states of those that left.

        What is known of a server that stays is kept: its counts, its breaker and its latency; so is that of one that
        comes back before its requests have ended.
        """
        by_url: dict[bytes, Server] = {}
        for server in servers:
            by_url.setdefault(server.url, server)
        for server in by_url.values():
            state = self.state_of(server)
            state.server = server
            state.limit = server.max_concurrent_requests
        gone = [url for url in self._states if url not in by_url]
        left = [self._states.pop(url) for url in gone]
        for state in left:
            state.left = True
        leaving = (*self._leaving.items(), *zip(gone, left, strict=True))
        self._leaving = {url: state for url, state in leaving if state.in_flight_here}
        return left
