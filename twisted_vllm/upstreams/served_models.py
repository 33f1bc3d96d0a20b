"""The models of each server, as ``GET /v1/models`` reports them.

The gateway's own list of models is made of them. ``/invocations`` needs the base model, as vLLM ignores the body's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, DeferredList
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
#: seconds that an answer is listed, and that a list waits for answers
LISTED, PATIENCE = 5.0, 2.0
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

#: the header by which Anthropic's SDKs are known, which read other fields of a list
ANTHROPIC_VERSION = b"anthropic-version"

#: a model as a server lists it
Card = dict[str, Any]


class _Answers:
    """What one server said of its models.

    Attributes:
        served: the base model and the names; nothing if it does not tell.
        until: how long this holds, in the reactor's seconds.
        asked: when it was asked last.
        answers: whether it answered then.
    """

    __slots__ = ("_cards", "_text", "answers", "asked", "served", "until")

    def __init__(self) -> None:
        self.served = _NOTHING
        self.until = self.asked = 0.0
        self.answers = False
        self._text = b""
        self._cards: dict[str, Card] = {}

    def told(self, served: _Served, text: bytes) -> None:
        """Take an answer."""
        self.served, self.answers, self._text = served, True, text

    def failed(self, now: float) -> None:
        """Note that there was no answer. What it said before holds for its time, its cards as long as it is known."""
        self.answers = False
        if now >= self.until:
            self.served = _NOTHING

    @property
    def cards(self) -> dict[str, Card]:
        """The models of the last answer by name; they are read when somebody looks at them."""
        if self._text:
            self._cards = {card["id"]: card for card in msgspec.json.decode(self._text)["data"]}
            self._text = b""
        return self._cards


_UNKNOWN = _Answers()


class ServedModels:
    """Asks servers for their models, and remembers the base model, the names and what they say of each."""

    _log = Logger()

    def __init__(self, client: PassThroughClient, clock: IReactorTime) -> None:
        """Start with nothing known.

        Args:
            client: sends requests to servers.
            clock: the reactor's clock.
        """
        self._client = client
        self._clock = clock
        #: how often a server was asked
        self.changes = 0
        self._known: dict[Server, _Answers] = {}
        self._asking: dict[Server, list[Deferred[None]]] = {}

    def base_model(self, server: Server) -> str | None:
        """Return the name of a server's base model, empty if the server does not tell; None if it must be asked."""
        known = self._known.get(server, _UNKNOWN)
        return known.served.base if self._clock.seconds() < known.until else None

    def has_model(self, server: Server, name: str) -> bool:
        """Return whether a server listed a model, base model or adapter, when it was asked last."""
        return name in self._known.get(server, _UNKNOWN).served.names

    def cards(self, server: Server) -> Mapping[str, Card]:
        """Return what a server last said of its models, by its names; empty if it never did."""
        return self._known.get(server, _UNKNOWN).cards

    def answers(self, server: Server) -> bool:
        """Return whether a server answered when it was asked last."""
        return self._known.get(server, _UNKNOWN).answers

    def refresh(self, servers: Iterable[Server]) -> Deferred[None]:
        """Ask those servers whose answers are older than `LISTED`.

        Returns:
            A Deferred that fires when all have answered, after `PATIENCE` at the latest, and never fails. A server that
            did not answer the last time is asked, but nothing waits for it.
        """
        now = self._clock.seconds()
        asked = []
        for server in dict.fromkeys(servers):
            known = self._known.get(server)
            if known is None or now - known.asked >= (LISTED if known.answers else RETRY):
                answer = self.ask(server)
                if known is None or known.answers:
                    asked.append(answer)
        done: Deferred[None] = Deferred()

        def all_answered(_: object) -> None:
            if not done.called:
                done.callback(None)

        DeferredList(asked).addCallback(all_answered)
        if not done.called:
            done.addTimeout(PATIENCE, self._clock, onTimeoutCancel=lambda *_: None)
        return done

    def ask(self, server: Server) -> Deferred[None]:
        """Ask a server; the Deferred fires when `base_model` has an answer, and never fails."""
        waiting: Deferred[None] = Deferred()
        if server in self._asking:
            self._asking[server].append(waiting)
            return waiting
        self._asking[server] = [waiting]
        answer: Deferred[Any] = get_json(self._client, server, b"/v1/models")
        answer.addCallback(read_at_most, MAX_ANSWER).addTimeout(TIMEOUT, self._clock)
        answer.addCallback(_read)
        answer.addErrback(self._failed, server)
        answer.addCallback(self._told, server)
        return waiting

    def keep_only(self, servers: Iterable[Server]) -> None:
        """Forget what is known of all other servers."""
        kept = frozenset(servers)
        for server in [server for server in self._known if server not in kept]:
            del self._known[server]

    def _failed(self, failure: Failure, server: Server) -> None:
        self._log.warn(
            "The server {server} does not say which model it serves: {reason}",
            server=server.name,
            reason=failure.getErrorMessage(),
            once_a_second=server.name,
        )

    def _told(self, answer: tuple[_Served, bytes] | None, server: Server) -> None:
        now = self._clock.seconds()
        known = self._known.setdefault(server, _Answers())
        known.asked = now
        self.changes += 1
        if answer is None:
            known.failed(now)
        else:
            known.told(*answer)
        if answer is not None or known.served is _NOTHING:
            known.until = now + (FRESH if known.served.base else RETRY)
        for waiting in self._asking.pop(server):
            if not waiting.called:
                waiting.callback(None)


def _read(answer: bytes) -> tuple[_Served, bytes]:
    """Return what an answer lists. The base model is the first that is no adapter: vLLM lists it first."""
    if answer.count(b"{") > MAX_OBJECTS:
        raise UpstreamProtocolError(f"The server's list of models has over {MAX_OBJECTS} objects.")
    cards = _decode(answer).data
    base = next((card.id for card in cards if card.parent is None), "")
    return _Served(base, frozenset(card.id for card in cards)), answer
