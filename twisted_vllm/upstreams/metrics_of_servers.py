"""Asks all servers for their metrics, for ``GET /metrics/upstreams``.

Whoever asks while a collection runs, or within a second after it, gets its result: anybody may ask, and each collection
costs every server a scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.config.settings import Server
from twisted_vllm.errors import UpstreamProtocolError
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.client.treq_client import PassThroughClient
from twisted_vllm.http.net.bounded_turns import Cooperate
from twisted_vllm.upstreams.merged_metrics import Exposition, Unreadable, merged
from twisted_vllm.upstreams.own_requests import get, read_at_most

#: the path of a server's metrics
PATH = b"/metrics"
#: the format that is asked for; vLLM 0.32 escapes its names in any other
_ACCEPT = b"text/plain;version=0.0.4"
_OPEN = b"application/openmetrics-text"
#: seconds to wait for a server; Prometheus waits 10 for everything
TIMEOUT = 5.0
#: the maximum size of a server's metrics, and of all together, in bytes; vLLM 0.32 has some 200 kB
MAX_SIZE, MAX_TOTAL = 4_194_304, 33_554_432
#: servers that are asked at the same time
AT_ONCE = 32
#: seconds that a result is used again
FRESH = 1.0


class MetricsOfServers:
    """Collects the metrics of all servers, once at a time."""

    _log = Logger()

    def __init__(
        self,
        client: PassThroughClient,
        clock: IReactorTime,
        cooperate: Cooperate,
        servers: Callable[[], Iterable[Server]],
    ) -> None:
        """Set up.

        Args:
            client: asks the servers; it must not queue.
            clock: the reactor's clock.
            cooperate: runs an iterator in steps.
            servers: returns the servers that are configured now.
        """
        self._client = client
        self._clock = clock
        self._cooperate = cooperate
        self._servers = servers
        self._collecting = False
        self._waiting: list[Deferred[bytes]] = []
        self._last: tuple[float, bytes] | None = None
        #: the servers whose metrics could not be read at last, each with the reason that the log was told
        self.missing: dict[str, str] = {}

    def expose(self) -> Deferred[bytes]:
        """Return the metrics of all servers as text; see `merged`. Cancelling it stops nothing for others."""
        wanted: Deferred[bytes] = Deferred(self._dropped)
        last = self._last
        if last is not None and not self._collecting and 0.0 <= self._clock.seconds() - last[0] < FRESH:
            wanted.callback(last[1])
            return wanted
        self._waiting.append(wanted)
        if not self._collecting:
            self._collecting, self._last = True, None
            _Collection(self).start().addCallbacks(self._collected, self._failed)
        return wanted

    def _dropped(self, wanted: Deferred[bytes]) -> None:
        if wanted in self._waiting:
            self._waiting.remove(wanted)

    def _collected(self, text: bytes) -> None:
        self._last = (self._clock.seconds(), text)
        for wanted in self._end():
            wanted.callback(text)

    def _failed(self, failure: Failure) -> None:
        for wanted in self._end():
            wanted.errback(failure)

    def _end(self) -> list[Deferred[bytes]]:
        self._collecting = False
        waiting, self._waiting = self._waiting, []
        return waiting


class _Collection:
    """One collection."""

    def __init__(self, owner: MetricsOfServers) -> None:
        self._client = owner._client
        self._clock = owner._clock
        self._cooperate = owner._cooperate
        self._log = owner._log
        self._missing_before = owner.missing
        self._servers: dict[str, Server] = {}
        for server in owner._servers():
            # two servers may have one name: an address with and without TLS
            self._servers.setdefault(server.name, server)
        for name in owner.missing.keys() - self._servers.keys():
            del owner.missing[name]
        self._found: dict[str, Exposition] = {}
        self._room = MAX_TOTAL
        self._turns = DeferredSemaphore(AT_ONCE)

    def start(self) -> Deferred[bytes]:
        asked = [self._turns.run(self._ask, server) for server in self._servers.values()]
        everything: Deferred[Any] = gatherResults(asked)
        return everything.addCallback(lambda _: self._merge())

    def _ask(self, server: Server) -> Deferred[None]:
        asked: Deferred[Any] = get(self._client, server, PATH, _ACCEPT)
        asked.addCallback(self._receive, server).addTimeout(TIMEOUT, self._clock)
        return asked.addCallback(self._read, server).addErrback(self._missing, server)

    def _receive(self, response: UpstreamResponse, server: Server) -> Deferred[tuple[bytes, bool]]:
        if response.code != 200:
            response.stopProducing()
            raise UpstreamProtocolError(f"It answered {response.code}.")
        is_open = response.head.content_type.strip().lower().startswith(_OPEN)
        return read_at_most(response, MAX_SIZE).addCallback(lambda body: (body, is_open))

    def _read(self, received: tuple[bytes, bool], server: Server) -> Deferred[None]:
        body, is_open = received
        self._room -= len(body)
        if self._room < 0:
            raise Unreadable(f"the metrics of all servers are over {MAX_TOTAL} bytes")
        exposition = Exposition(server.name, is_open=is_open)

        def keep(_: object) -> None:
            self._found[server.name] = exposition
            if self._missing_before.pop(server.name, None) is not None:
                self._log.info("The metrics of {server} are in /metrics/upstreams again", server=server.name)

        return self._cooperate(exposition.read(body)).whenDone().addCallback(keep)

    def _missing(self, failure: Failure, server: Server) -> None:
        reason = failure.getErrorMessage() or type(failure.value).__name__
        if self._missing_before.get(server.name) == reason:
            # Prometheus asks four times a minute, and the server may be away for the night
            return
        self._missing_before[server.name] = reason
        self._log.warn(
            "The metrics of {server} are missing in /metrics/upstreams: {reason}",
            server=server.name,
            reason=reason,
            once_a_second=server.name,
        )

    def _merge(self) -> Deferred[bytes]:
        pieces: list[bytes] = []

        def write() -> Iterator[None]:
            for piece in merged((name, self._found.get(name)) for name in self._servers):
                pieces.append(piece)
                yield

        return self._cooperate(write()).whenDone().addCallback(lambda _: b"".join(pieces))
