"""What the gateway knows of each server, in one row for each: for the people who run them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IReactorTime

from twisted_vllm.config.drained_servers import DrainedServer
from twisted_vllm.config.settings import Server
from twisted_vllm.upstreams.health_report import reason_of, since_of, state_in_words
from twisted_vllm.upstreams.router import ModelGroup, Router
from twisted_vllm.upstreams.served_models import ServedModels
from twisted_vllm.upstreams.server_state import ServerState

#: seconds to wait for what servers say of their models
PATIENCE = 0.25
#: names of models that a row has, of those that its server lists
MOST_SERVED = 100

#: the state of a drained server that is not configured any more
UNCONFIGURED = "not_configured"


class ServerFigures(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What one process counted of a server, which is named by its URL.

    Attributes:
        server: the server.
        latency: the seconds until its answers begin; 0.0 if they were not measured.
        failures: the requests that failed by its fault, by reason.
    """

    server: bytes
    latency: float
    failures: dict[str, int]


class Figures(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What one process counted.

    Attributes:
        servers: of each server.
        queued: the requests that wait for a server, by the name of their model group.
    """

    servers: list[ServerFigures]
    queued: dict[str, int]


class ServedEntry(msgspec.Struct, frozen=True, gc=False):
    """An entry of the model list at a server; of the default server one without names.

    Attributes:
        model_name: the name that callers use.
        model: the server's name of the model.
        model_id: the id of the entry.
        weight: its share of the requests.
        order: entries with a lower number are used first.
        others: the other servers of the model that get requests.
        fallbacks: the models that are asked in its place.
    """

    model_name: str
    model: str
    model_id: str
    weight: int
    order: int
    others: int
    fallbacks: tuple[str, ...]


class ServerRow(msgspec.Struct, frozen=True, gc=False):
    """A server.

    Attributes:
        server: its name, by which ``x-vllm-passthrough-server`` chooses it.
        address: its URL, which has no credentials.
        configured: whether it is in the configuration; one that is drained stays so without.
        state: as `state_in_words`, or `UNCONFIGURED`.
        reason: why it is in this state.
        since: since when, in Unix seconds.
        gets_requests: whether it gets new requests.
        drained: who drained it, and why; None if nobody did.
        sleeping: whether vLLM's sleep mode is on.
        next_try: when it gets a request or can be found alive at the earliest, in Unix seconds; None if it is well.
        in_flight: the requests of this gateway there.
        max_in_flight: the most of them; None without a limit.
        queued: the requests that wait for it or for others of its models.
        latency: seconds until its answers begin; None if that is not measured.
        errors: the requests that failed by its fault, by reason.
        version: vLLM's version; empty if it is not known.
        running: requests that run inside the server; None if it is not asked. Likewise the next three.
        waiting: requests that wait inside the server.
        kv_usage: the used share of its KV cache, 0.0 to 1.0.
        cache_hits: the share of the prompts' tokens that its prefix cache had, in the last minute.
        entries: the entries of the model list that name it.
        served: the models that it lists itself, `MOST_SERVED` of them; None if it did not tell.
        served_count: how many it lists.
    """

    server: str
    address: str
    configured: bool
    state: str
    reason: str
    since: float
    gets_requests: bool
    drained: DrainedServer | None
    sleeping: bool = False
    next_try: float | None = None
    in_flight: int = 0
    max_in_flight: int | None = None
    queued: int = 0
    latency: float | None = None
    errors: Mapping[str, int] = {}
    version: str = ""
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    cache_hits: float | None = None
    entries: tuple[ServedEntry, ...] = ()
    served: tuple[str, ...] | None = None
    served_count: int = 0


#: asks the other processes for what they counted
AskOthers = Callable[[], Deferred[Sequence[Figures]]]


def _alone() -> Deferred[Sequence[Figures]]:
    return succeed(())


class ServerReports:
    """Reports what is known of each server.

    Attributes:
        ask_others: asks the other processes of the gateway.
    """

    def __init__(self, router: Router, served_models: ServedModels, clock: IReactorTime) -> None:
        """Set up.

        Args:
            router: knows the servers and their models.
            served_models: asks servers which models they have.
            clock: the reactor's clock.
        """
        self._router = router
        self._served_models = served_models
        self._clock = clock
        self._seconds = clock.seconds
        self.ask_others: AskOthers = _alone

    def own_figures(self) -> Figures:
        """Return what this process counted."""
        now = self._seconds()
        servers = [
            ServerFigures(state.server.url, state.latency.value(now), dict(state.breaker.failures))
            for state in self._router.servers
        ]
        queued = {group.name: len(group.queue) for group in self._router.all_groups if len(group.queue)}
        return Figures(servers, queued)

    def rows(self, *, refresh: bool = True) -> Deferred[list[ServerRow]]:
        """Return the rows of all servers, in the order of the configuration.

        Args:
            refresh: whether to ask servers for their models, each at most every few seconds, however often this is
                called. Who takes longer than `PATIENCE` is in the next answer.
        """
        asking: list[Deferred[Any]] = [self.ask_others()]
        if refresh:
            asking.append(self._ask_models())
        return gatherResults(asking, consumeErrors=True).addCallback(lambda found: self._rows(found[0]))

    def _ask_models(self) -> Deferred[Any]:
        told: Deferred[None] = Deferred()
        servers = [state.server for state in self._router.servers if state.breaker.closed]

        def answered(_: None) -> None:
            if not told.called:
                told.callback(None)

        self._served_models.refresh(servers).addCallback(answered)
        if not told.called:
            told.addTimeout(PATIENCE, self._clock, onTimeoutCancel=lambda *_: None)
        return told

    def find(self, text: str) -> str | None:
        """Return the URL of the server with a name or URL, also of a drained one that is not configured; else None."""
        for state in self._router.servers:
            url = state.server.url.decode("latin-1")
            if text in (state.name, url):
                return url
        for each in self._router.servers.drained:
            if text in (each.url, name_of_url(each.url)):
                return each.url
        return None

    @property
    def names(self) -> list[str]:
        """The names of the configured servers."""
        return [state.name for state in self._router.servers]

    def is_configured(self, url: str) -> bool:
        """Return whether a server with a URL is configured."""
        return self._router.servers.with_url(url.encode("latin-1")) is not None

    def _rows(self, elsewhere: Sequence[Figures]) -> list[ServerRow]:
        figures = [self.own_figures(), *elsewhere]
        queued: Counter[str] = Counter()
        for each in figures:
            queued.update(each.queued)
        latencies: dict[bytes, list[float]] = {}
        failures: dict[bytes, Counter[str]] = {}
        for each in figures:
            for of_server in each.servers:
                failures.setdefault(of_server.server, Counter()).update(of_server.failures)
                if of_server.latency > 0.0:
                    latencies.setdefault(of_server.server, []).append(of_server.latency)
        entries, groups = self._entries()
        now = self._seconds()
        rows = []
        for state in self._router.servers:
            url = state.server.url
            measured = latencies.get(url)
            served = self._served(state.server)
            told = state.running is not None or state.waiting > 0.0 or state.kv_usage > 0.0
            rows.append(
                ServerRow(
                    server=state.name,
                    address=url.decode("latin-1"),
                    configured=True,
                    state=state_in_words(state),
                    reason=reason_of(state),
                    since=since_of(state),
                    gets_requests=state.is_usable(now),
                    drained=state.drained,
                    sleeping=state.sleeping,
                    next_try=state.breaker.retry_at or None,
                    in_flight=state.in_flight,
                    max_in_flight=state.limit,
                    queued=sum(queued[name] for name in groups.get(state, ())),
                    latency=sum(measured) / len(measured) if measured else None,
                    errors=dict(failures.get(url, {})),
                    version=state.version,
                    running=state.running,
                    waiting=state.waiting if told else None,
                    kv_usage=state.kv_usage if told else None,
                    cache_hits=state.cache_hits,
                    entries=tuple(entries.get(state, ())),
                    served=None if served is None else tuple(served[:MOST_SERVED]),
                    served_count=0 if served is None else len(served),
                )
            )
        rows += [_unconfigured(each) for each in self._router.servers.drained if not self.is_configured(each.url)]
        return rows

    def _entries(self) -> tuple[dict[ServerState, list[ServedEntry]], dict[ServerState, list[str]]]:
        """Return the entries of each server, and the names of the groups that have a queue for it."""
        now = self._seconds()
        entries: dict[ServerState, list[ServedEntry]] = {}
        for group in self._router.groups:
            usable = {each.state for each in group.destinations if each.state.is_usable(now)}
            for each in group.destinations:
                entry = each.entry
                entries.setdefault(each.state, []).append(
                    ServedEntry(
                        group.name,
                        (each.upstream_model or group.name) if group.name else "",
                        "" if entry is None else entry.model_id,
                        each.weight,
                        each.order,
                        len(usable - {each.state}),
                        group.fallbacks,
                    )
                )
        return entries, _groups_of(self._router.all_groups)

    def _served(self, server: Server) -> list[str] | None:
        if not self._served_models.answers(server):
            return None
        return list(self._served_models.cards(server))


def name_of_url(url: str) -> str:
    """Return the name of the server with a URL: its host, port and base path, as `Server.name`."""
    return url.rpartition("://")[2]


def _groups_of(groups: Iterable[ModelGroup]) -> dict[ServerState, list[str]]:
    found: dict[ServerState, list[str]] = {}
    for group in groups:
        for state in {each.state for each in group.destinations}:
            found.setdefault(state, []).append(group.name)
    return found


def _unconfigured(drained: DrainedServer) -> ServerRow:
    return ServerRow(
        server=name_of_url(drained.url),
        address=drained.url,
        configured=False,
        state=UNCONFIGURED,
        reason=drained.reason,
        since=drained.since,
        gets_requests=False,
        drained=drained,
    )
