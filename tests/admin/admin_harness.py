"""An AdminApp with fakes around it, asked through twisted.web without a socket."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
from treq.testing import RequestTraversalAgent, StubTreq
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from zope.interface import implementer

from tests.storage.memory_database import MemoryDatabase
from twisted_vllm.admin.app import AdminApp
from twisted_vllm.admin.context import Readiness
from twisted_vllm.auth.authenticator import Authenticator
from twisted_vllm.auth.grants import Revision
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.named_callers import NamedCallers
from twisted_vllm.auth.records import KeyRecord, Principal
from twisted_vllm.auth.sessions import SessionSealer
from twisted_vllm.config.secret import Secret
from twisted_vllm.context import Peer, RequestContext
from twisted_vllm.observability.metrics.registry import Metrics
from twisted_vllm.storage.interfaces import IReports, IStore
from twisted_vllm.storage.registry import Registry
from twisted_vllm.storage.report_queue import ReportCaller
from twisted_vllm.storage.store import Store

MASTER_KEY = "sk-master-secret-0123"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@attrs.frozen
class Answer:
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes
    length: int | str

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The refusal, which every answer of the gateway's own has in the same shape."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert self.headers["x-vllm-passthrough-error"] == error["code"]
        assert self.headers["content-type"] == "application/json"
        return error


def value_of(deferred: Deferred[Any]) -> Any:
    """Return what a Deferred fired with; it must have."""
    fired: list[Any] = []
    deferred.addBoth(fired.append)
    assert fired, "the Deferred has not fired"
    if isinstance(fired[0], Failure):
        fired[0].raiseException()
    return fired[0]


@implementer(IStore)
class HeldStore:
    """A store that makes changes when the test lets it."""

    def __init__(self) -> None:
        self.inner = Store(MemoryDatabase())
        self.held: list[tuple[Deferred[Any], Any]] = []

    def read(self, work: Any) -> Deferred[Any]:
        return self.inner.read(work)

    def change(self, work: Any) -> Deferred[Any]:
        return self._hold(lambda: self.inner.change(work))

    def load(self) -> Deferred[Any]:
        return self.inner.load()

    def spend(self) -> Deferred[Any]:
        return self.inner.spend()

    def changes_since(self, revision: Revision) -> Deferred[Any]:
        return self.inner.changes_since(revision)

    def _hold(self, work: Any) -> Deferred[Any]:
        deferred: Deferred[Any] = Deferred()
        self.held.append((deferred, work))
        return deferred

    def release(self) -> None:
        """Do what was asked first."""
        deferred, work = self.held.pop(0)
        work().chainDeferred(deferred)

    def refuse(self, error: Exception) -> None:
        """Fail what was asked first."""
        self.held.pop(0)[0].errback(error)


@implementer(IReports)
class StoreReports:
    """Reports that the store reads as it reads everything else.

    Attributes:
        callers: who asked, and whether for the next part of a report.
    """

    def __init__(self, store: IStore) -> None:
        self.callers: list[tuple[ReportCaller, bool]] = []
        self._store = store

    def read(self, caller: ReportCaller, work: Any, *, begun: bool = False) -> Deferred[Any]:
        self.callers.append((caller, begun))
        return self._store.read(work)


class Recorded(Resource):
    """Gives requests the context and the body that the gateway's own have, and keeps them, to see what the log would.

    Attributes:
        requests: the requests.
        bodies_read: how many of them were asked for their body.
        read: returns the body of a request, if not what came.
    """

    isLeaf = True

    def __init__(self, inner: IResource) -> None:
        super().__init__()
        self._inner = inner
        self.requests: list[Any] = []
        self.bodies_read = 0
        self.read: Callable[[Any], Deferred[bytes]] | None = None

    def _read(self, request: Any) -> Deferred[bytes]:
        self.bodies_read += 1
        return succeed(request.content.read()) if self.read is None else self.read(request)

    def render(self, request: Any) -> Any:
        if not hasattr(request, "context"):
            request.context = RequestContext(Peer("192.0.2.1", False), 0.0)
            request.context.request_id = b"request-%d" % len(self.requests)
            request.read_body = lambda: self._read(request)
        self.requests.append(request)
        return self._inner.render(request)


class Gateway:
    """The gateway's own routes, on a clock that the test turns."""

    def __init__(
        self,
        store: IStore | None = None,
        master_key: str | None = MASTER_KEY,
        metrics_are_open: bool = True,
        sealer: SessionSealer | None = None,
        provider: str = "",
        console: Callable[[AdminApp], IResource] | None = None,
        **options: Any,
    ) -> None:
        self._random = 0
        self.set_cookies: list[str] = []
        self.clock = Clock()
        self.store = Store(MemoryDatabase()) if store is None else store
        self.reports = StoreReports(self.store)
        self.index = KeyIndex()
        self.callers = NamedCallers(self.index)
        self.registry = Registry(self.store, self.index)
        self.state = Readiness(draining=False, database=True)
        app = AdminApp(
            authenticator=Authenticator(
                None if master_key is None else Secret(master_key),
                self.index,
                sealer=sealer,
                provider=provider,
                callers=self.callers,
            ),
            registry=self.registry,
            reports=self.reports,
            clock=self.clock,
            now=self.now,
            randbytes=self._randbytes,
            readiness=lambda: self.state,
            metrics=Metrics(),
            metrics_of_servers=lambda: succeed(b"x 1\n"),
            metrics_are_open=metrics_are_open,
            **options,
        )
        self.app = app
        self.recorded = Recorded(app.resource(None if console is None else console(app)))
        self.agent = RequestTraversalAgent(self.recorded)
        # StubTreq makes its methods when it is made.
        self._treq: Any = StubTreq(self.recorded)

    def records(self) -> list[KeyRecord]:
        """Return the keys that the store holds."""
        found: list[KeyRecord] = value_of(self.store.read(lambda transaction: transaction.keys.find()))
        return found

    def principal_of(self, token: str) -> Principal:
        """Return whom the key of a token acts as."""
        found = self.index.find(token)
        assert found is not None
        return found.principal

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.clock.seconds())

    def _randbytes(self, count: int) -> bytes:
        self._random += 1
        return self._random.to_bytes(count, "big")

    def call(
        self,
        method: str,
        path: str,
        key: str | None = MASTER_KEY,
        body: object = None,
        headers: Any = None,
        data: Any = None,
    ) -> Answer:
        """Ask and return the answer; `body` is sent as JSON, `data` as it is."""
        response = value_of(self.ask(method, path, key, body, headers, data))
        found = {name.decode().lower(): values[-1].decode() for name, values in response.headers.getAllRawHeaders()}
        self.set_cookies = [value.decode() for value in response.headers.getRawHeaders(b"set-cookie", [])]
        return Answer(response.code, found, value_of(response.content()), response.length)

    def ask(
        self,
        method: str,
        path: str,
        key: str | None = MASTER_KEY,
        body: object = None,
        headers: Any = None,
        data: Any = None,
    ) -> Deferred[Any]:
        """As `call`; return treq's response, once it comes."""
        sent = dict(headers or {})
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        if body is not None:
            data = json.dumps(body).encode()
        asked: Deferred[Any] = self._treq.request(
            method, f"http://gateway:4000{path}", headers=sent, data=data, allow_redirects=False
        )
        return asked

    def deliver(self) -> None:
        """Deliver the answers to requests that took longer than a call."""
        self._treq.flush()

    def get(self, path: str, key: str | None = MASTER_KEY, **options: Any) -> Answer:
        return self.call("GET", path, key, **options)

    def post(self, path: str, body: object = None, key: str | None = MASTER_KEY, **options: Any) -> Answer:
        return self.call("POST", path, key, body, **options)

    def make_key(self, **fields: object) -> dict[str, Any]:
        """Make a key and return what the administrator sees of it."""
        answer = self.post("/key/generate", fields)
        assert answer.status == 200, answer.body
        made: dict[str, Any] = answer.json
        return made
