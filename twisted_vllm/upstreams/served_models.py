"""The models of each server, as ``GET /v1/models`` reports them.

Only ``/invocations`` needs this, where vLLM ignores the body's model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.config.settings import Server
from twisted_vllm.errors import UpstreamProtocolError
from twisted_vllm.http.client.treq_client import PassThroughClient
from twisted_vllm.upstreams.own_requests import get_json, read_at_most

#: seconds that an answer is used
FRESH = 60.0
#: seconds until a server that gave no answer is asked again
RETRY = 5.0
#: seconds to wait for an answer
TIMEOUT = 5.0
#: the maximum size of an answer in bytes, and its most objects, of which vLLM writes two for a model; it takes up
#: to 15 ms to decode
MAX_ANSWER, MAX_OBJECTS = 2_097_152, 20_000


class _Card(msgspec.Struct):
    id: str
    parent: str | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


class _Served(msgspec.Struct, frozen=True, gc=False):
    base: str = ""
    names: frozenset[str] = frozenset()


_NOTHING = _Served()
_decode = msgspec.json.Decoder(_Cards).decode


class ServedModels:
    """Asks servers for their models, and remembers the base model and the names."""

    _log = Logger()

    def __init__(self, client: PassThroughClient, clock: IReactorTime) -> None:
        """Start with nothing known.

        Args:
            client: sends requests to servers.
            clock: the reactor's clock.
        """
        self._client = client
        self._clock = clock
        self._known: dict[Server, tuple[_Served, float]] = {}
        self._asking: dict[Server, list[Deferred[None]]] = {}

    def base_model(self, server: Server) -> str | None:
        """Return the name of a server's base model, empty if the server does not tell; None if it must be asked."""
        served, until = self._known.get(server, (_NOTHING, 0.0))
        return served.base if self._clock.seconds() < until else None

    def has_model(self, server: Server, name: str) -> bool:
        """Return whether a server listed a model, base model or adapter, when it was asked last."""
        return name in self._known.get(server, (_NOTHING, 0.0))[0].names

    def ask(self, server: Server) -> Deferred[None]:
        """Ask a server; the Deferred fires when `base_model` has an answer, and never fails."""
        waiting: Deferred[None] = Deferred()
        if server in self._asking:
            self._asking[server].append(waiting)
            return waiting
        self._asking[server] = [waiting]
        answer: Deferred[Any] = get_json(self._client, server, b"/v1/models")
        answer.addCallback(read_at_most, MAX_ANSWER).addTimeout(TIMEOUT, self._clock)
        answer.addCallbacks(_served, lambda failure: self._failed(server, failure))
        answer.addErrback(lambda failure: self._failed(server, failure))
        answer.addCallback(self._told, server)
        return waiting

    def keep_only(self, servers: Iterable[Server]) -> None:
        """Forget what is known of all other servers."""
        kept = frozenset(servers)
        for server in [server for server in self._known if server not in kept]:
            del self._known[server]

    def _failed(self, server: Server, failure: Failure) -> _Served:
        self._log.warn(
            "The server {server} does not say which model it serves: {reason}",
            server=server.name,
            reason=failure.getErrorMessage(),
            once_a_second=server.name,
        )
        return _NOTHING

    def _told(self, served: _Served, server: Server) -> None:
        self._known[server] = (served, self._clock.seconds() + (FRESH if served.base else RETRY))
        for waiting in self._asking.pop(server):
            if not waiting.called:
                waiting.callback(None)


def _served(answer: bytes) -> _Served:
    """Return what an answer lists. The base model is the first that is no adapter: vLLM lists it first."""
    if answer.count(b"{") > MAX_OBJECTS:
        raise UpstreamProtocolError(f"The server's list of models has over {MAX_OBJECTS} objects.")
    cards = _decode(answer).data
    return _Served(next((card.id for card in cards if card.parent is None), ""), frozenset(card.id for card in cards))
