"""``--check --probe``: connects to all that the configuration names, and says what it found. It binds nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import msgspec
from twisted.internet.defer import Deferred, TimeoutError, gatherResults, inlineCallbacks
from twisted.internet.threads import deferToThreadPool

from twisted_vllm.app.probe_receivers import Receiver, Unusable, receivers_of
from twisted_vllm.app.probe_redis import look_at_redis
from twisted_vllm.config.describe import url_of
from twisted_vllm.config.name_patterns import NamePattern, is_pattern
from twisted_vllm.config.redis_places import RedisPlace
from twisted_vllm.config.settings import Server, Settings
from twisted_vllm.config.urls import describe_database
from twisted_vllm.errors import GatewayError
from twisted_vllm.http.client.agent import UpstreamAgent
from twisted_vllm.http.client.connect_errors import SPEAKS_TLS, words_of
from twisted_vllm.http.client.treq_client import PassThroughClient
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.net.write_coalescing import WriteCoalescer
from twisted_vllm.ratelimit.redis.client import RedisUnavailable
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.reachability import look_at_database
from twisted_vllm.upstreams.own_requests import get_json, read_at_most

#: seconds to wait for each answer, after the connection
PATIENCE = 10.0
#: bytes of an answer
MAX_ANSWER = 2_097_152
#: names of models that a line repeats
_SHOWN = 10

#: what servers answer to a request without TLS on their port for it: nginx, Go, Apache
_WANTS_TLS = (b"plain http request was sent to https port", b"http request to an https server", b"speaking plain http")


@attrs.frozen
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at.
        text: what was found.
        failed: whether it cannot be used.
    """

    subject: str
    text: str
    failed: bool = False

    def __str__(self) -> str:
        return f"{'FAILED' if self.failed else 'ok':8}{self.subject}: {self.text}"


class _Card(msgspec.Struct):
    id: str


class _Cards(msgspec.Struct):
    data: list[_Card]


class _Unfit(Exception):
    """A server answers, but not as a vLLM that can be used."""


class Probe:
    """Looks at servers, the database, Redis, and those who are told of requests."""

    def __init__(self, reactor: Any, settings: Settings) -> None:
        """Connect to nothing yet."""
        self._reactor = reactor
        self._settings = settings
        self._deadlines = DeadlineSweeper(reactor)
        self._agent = UpstreamAgent(reactor, self._deadlines, WriteCoalescer())
        self._client = PassThroughClient(self._agent)

    @inlineCallbacks
    def run(self) -> Any:
        """Return a Deferred of the findings: each server, the database, Redis, sinks, receivers of OTLP and alerts."""
        self._deadlines.start()
        try:
            findings = yield gatherResults([self._server(server) for server in self._settings.servers])
            findings.append(self._database())
            if self._settings.redis is not None:
                findings.append((yield self._redis(self._settings.redis)))
            findings += yield gatherResults([self._receiver(each) for each in receivers_of(self._settings)])
        finally:
            self._agent.close()
            self._deadlines.stop()
        return findings

    @inlineCallbacks
    def _server(self, server: Server) -> Any:
        try:
            yield self._get(server, b"/health")
            served = _models_of((yield self._get(server, b"/v1/models")))
            missing = [name for name in self._models_at(server) if not _serves(served, name)]
            if missing:
                raise _Unfit(f"it does not serve {_listed(missing)}, but {_listed(served)}")
        except (GatewayError, _Unfit) as error:
            words = words_of(error)
            if not server.tls and (yield self._agent.speaks_tls(server)):
                words = SPEAKS_TLS
            return Finding(url_of(server), words, failed=True)
        except TimeoutError:
            return Finding(url_of(server), f"it gave no answer within {PATIENCE:g} s", failed=True)
        return Finding(url_of(server), f"healthy, serves {_listed(served)}")

    @inlineCallbacks
    def _get(self, server: Server, path: bytes) -> Any:
        answer: Deferred[Any] = get_json(self._client, server, path)
        answer.addTimeout(server.timeouts.connect + PATIENCE, self._reactor)
        response = yield answer
        body = yield read_at_most(response, MAX_ANSWER).addTimeout(PATIENCE, self._reactor)
        if response.code != 200:
            raise _Unfit(_refusal(response.code, path.decode(), body, server))
        return body

    def _models_at(self, server: Server) -> Sequence[str]:
        entries = self._settings.models
        return list(dict.fromkeys(entry.upstream_model for entry in entries if entry.server == server))

    def _database(self) -> Finding:
        subject = describe_database(self._settings.database_url)
        try:
            return Finding(subject, look_at_database(self._settings.database_url))
        except StoreError as error:
            return Finding(subject, str(error), failed=True)

    @inlineCallbacks
    def _redis(self, place: RedisPlace) -> Any:
        try:
            found = yield look_at_redis(self._reactor, place, PATIENCE)
        except RedisUnavailable as error:
            return Finding(place.name, str(error), failed=True)
        return Finding(place.name, f"reachable: {found}")

    @inlineCallbacks
    def _receiver(self, receiver: Receiver) -> Any:
        try:
            found = yield deferToThreadPool(self._reactor, self._reactor.getThreadPool(), receiver.look)
        except Unusable as error:
            return Finding(receiver.subject, str(error), failed=True)
        return Finding(receiver.subject, found)


def _models_of(body: bytes) -> list[str]:
    try:
        return [card.id for card in msgspec.json.decode(body, type=_Cards).data]
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _Unfit("it answers GET /v1/models, but not with a list of models: it is no vLLM") from None


def _serves(served: Sequence[str], name: str) -> bool:
    """Return whether a server has a model, or one that a name with wildcards matches."""
    if not is_pattern(name):
        return name in served
    pattern = NamePattern(name)
    return any(pattern.match(each) is not None for each in served)


def _refusal(status: int, path: str, body: bytes, server: Server) -> str:
    said = f"it answers GET {path} with {status}"
    if not server.tls and any(each in body.lower() for each in _WANTS_TLS):
        return SPEAKS_TLS
    if status in (401, 403):
        return f"{said}: it does not accept the gateway's key (api_key)"
    if status == 404:
        return f"{said}: it is no vLLM, or stands below another path (api_base)"
    return f"{said}: it is not healthy" if path == "/health" else said


def _listed(names: Iterable[str]) -> str:
    found = [name[:200] if name.isprintable() else ascii(name)[:200] for name in names]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more if found else "nothing"


def probe(reactor: Any, settings: Settings) -> bool:
    """Run the reactor until everything was looked at; print a line for each, and return whether all can be used."""
    ended: list[Finding] = []
    finished = False

    def report(findings: list[Finding]) -> None:
        nonlocal finished
        finished = True
        ended.extend(findings)

    def begin() -> None:
        Probe(reactor, settings).run().addCallback(report).addBoth(stop)

    def stop(failure: Any) -> Any:
        reactor.stop()
        return failure

    reactor.callWhenRunning(begin)
    reactor.run()
    for finding in ended:
        print(finding)
    return finished and not any(finding.failed for finding in ended)
