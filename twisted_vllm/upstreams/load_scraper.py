"""Asks servers for their load, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.config.settings import HealthSettings
from twisted_vllm.upstreams.faults import FAULTS
from twisted_vllm.upstreams.load_reports import CacheHits, LoadReport, read_load
from twisted_vllm.upstreams.probe import Answer, Prober
from twisted_vllm.upstreams.server_state import ServerState

PATH = b"/metrics"

#: The maximum size of an answer in bytes. vLLM's has some 100 kB; with many engines and models it may have a few MB.
MAX_ANSWER = 4_194_304

_UNKNOWN = LoadReport()


class LoadScraper:
    """Asks each server that gets requests once in an interval; the servers' turns are spread over it."""

    _log = Logger()

    def __init__(self, servers: Iterable[ServerState], prober: Prober, clock: Any, settings: HealthSettings) -> None:
        """Ask nothing yet.

        Args:
            servers: The servers that there are; read again at each turn.
            prober: Asks them.
            clock: A provider of IReactorTime.
            settings: Whether and how often to ask.
        """
        self._servers = servers
        self._prober = prober
        self._clock = clock
        self._settings = settings
        self._turn = 0
        self._timer: Any = None
        self._asking: dict[ServerState, Deferred[Any]] = {}
        # the servers that did not tell, which the log has
        self._silent: set[ServerState] = set()
        self._hits: dict[ServerState, CacheHits] = {}
        self._running = False

    def start(self) -> None:
        """Begin to ask, if the settings say so."""
        self._running = True
        self._plan()

    def stop(self) -> None:
        """Ask no more. Idempotent."""
        self._running = False
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        for asking in list(self._asking.values()):
            asking.cancel()

    def update(self, settings: HealthSettings) -> None:
        """Ask as often as other settings say. Without `scrape_metrics`, what was told is forgotten."""
        self._settings = settings
        if not settings.scrape_metrics:
            self._hits.clear()
            for state in self._servers:
                self._set(state, _UNKNOWN)
        if self._running:
            self._plan()

    def _plan(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        interval = self._settings.interval
        if self._settings.scrape_metrics and interval is not None:
            count = sum(1 for _ in self._servers)
            self._timer = self._clock.callLater(interval / max(count, 1), self._next, interval)

    def _next(self, interval: float) -> None:
        servers = list(self._servers)
        self._silent.intersection_update(servers)
        for gone in self._hits.keys() - set(servers):
            del self._hits[gone]
        if servers:
            self._turn = (self._turn + 1) % len(servers)
            state = servers[self._turn]
            if not state.breaker.closed or state.sleeping:
                # what it said before it was taken out is old
                self._set(state, _UNKNOWN)
            elif state not in self._asking:
                self._ask(state, min(self._settings.timeout, interval))
        self._plan()

    def _ask(self, state: ServerState, timeout: float) -> None:
        asking: Deferred[Any] = maybeDeferred(
            self._prober.get, state.server, PATH, timeout=timeout, max_body=MAX_ANSWER
        )
        self._asking[state] = asking
        asking.addCallback(_read)
        asking.addErrback(self._failed, state)
        asking.addCallback(self._told, state)
        asking.addErrback(lambda failure: self._log.failure("Asking a server for its load", failure))

    def _failed(self, failure: Failure, state: ServerState) -> LoadReport | None:
        """Treat a server that cannot be asked as one that does not tell; its health is not decided here."""
        failure.trap(CancelledError, *FAULTS)
        return None

    def _told(self, report: LoadReport | None, state: ServerState) -> None:
        del self._asking[state]
        self._set(state, _UNKNOWN if report is None else report)
        if (report is None) == (state in self._silent) or not self._running:
            return
        if report is None:
            self._silent.add(state)
            self._log.warn(
                "Server {server} does not tell its load at /metrics: only what this gateway sends counts",
                server=state.name,
            )
        else:
            self._silent.discard(state)
            self._log.info("Server {server} tells its load", server=state.name)

    def _set(self, state: ServerState, report: LoadReport) -> None:
        state.waiting, state.kv_usage, state.running = report.waiting, report.kv_usage, report.running
        state.cache_hits = self._hits.setdefault(state, CacheHits()).add(report, self._clock.seconds())


def _read(answer: Answer) -> LoadReport | None:
    return read_load(answer.body) if answer.status == 200 else None
