"""Fake requests, agents and authenticators for tests of the pass-through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.records import ANONYMOUS
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Server, Timeouts
from twisted_vllm.context import Authorization, Peer, RequestContext
from twisted_vllm.errors import BodyTooLarge, GatewayError
from twisted_vllm.http.client.interfaces import IUpstreamAgent
from twisted_vllm.http.headers import RequestHead, ResponseHead
from twisted_vllm.http.server.ids import RequestIds
from twisted_vllm.proxy.admission import Admission, Admitted

HeaderPairs = list[tuple[bytes, bytes]]


def server(name: str = "gpu-1:8000", api_key: str | None = None, base_path: bytes = b"") -> Server:
    host, _, port = name.partition(":")
    secret = None if api_key is None else Secret(api_key)
    return Server(name, host, int(port), False, base_path, name.encode(), secret, Timeouts())


class BaseModelsOf:
    """The base models of servers: known at once, or once they were asked.

    Attributes:
        adapters: the models that every server has beside its base model.
        asked: the names of the servers that were asked.
    """

    def __init__(
        self, *, answers: dict[str, str] | None = None, adapters: frozenset[str] = frozenset(), **known: str
    ) -> None:
        self.adapters = adapters
        self._known = known
        self._answers = answers or {}
        self.asked: list[str] = []

    def base_model(self, server: Server) -> str | None:
        return self._known.get(server.host, None if self._answers else "")

    def has_model(self, server: Server, name: str) -> bool:
        return name in self.adapters or name == self._known.get(server.host)

    def ask(self, server: Server) -> Deferred[None]:
        self.asked.append(server.host)
        self._known[server.host] = self._answers.get(server.host, "")
        return succeed(None)


class FakeSite:
    leaving = draining = False
    aborted = False
    ids = RequestIds(bytes)


class FakeChannel:
    def __init__(self) -> None:
        self.site = FakeSite()


class FakeRequest:
    """The part of `GatewayRequest` that the pass-through uses. It records the calls."""

    def __init__(
        self,
        method: bytes = b"POST",
        uri: bytes = b"/vllm/v1/completions",
        headers: HeaderPairs | None = None,
        body: bytes = b"",
        body_complete: bool = True,
        body_length: int | None = None,
        peer: Peer | None = None,
    ) -> None:
        self.channel = FakeChannel()
        self.site = self.channel.site
        self.is_awaited = False
        self.method = method
        self.uri = uri
        self.path = uri.partition(b"?")[0]
        self.head = RequestHead(method, uri, b"HTTP/1.1", headers or [])
        self.head.length = len(body) if body_length is None and body_complete else body_length
        self.context = RequestContext(peer or Peer("192.0.2.1", False), 10.0)
        self.context.head = self.head
        self.context.request_id = b"5f0e"
        self.trailers: HeaderPairs | None = []
        self.body = body
        self.body_complete = body_complete
        self.body_received = len(body)
        self.work: Any = None
        self.finished = False

        self.answered: GatewayError | None = None
        self.failures: list[Failure] = []
        self.events: list[Any] = []
        self.room = None
        self.collecting: tuple[int, Callable[[bytes], None]] | None = None
        self.sink: Callable[[bytes, bool], None] | None = None

    @property
    def body_length(self) -> int | None:
        return self.head.length

    # what a resource asks

    def await_room(
        self, most: int, proceed: Callable[[], None], refuse: Callable[[GatewayError], None] | None = None
    ) -> None:
        proceed()

    def await_part_room(self, size: int, proceed: Callable[[], None]) -> None:
        self.events.append(("room", size))
        proceed()

    def give_room_back(self) -> None:
        self.events.append("give room back")

    def collect_body(self, limit: int, done: Callable[[bytes], None]) -> None:
        self.collecting = (limit, done)
        if self.body_complete:
            done(self.body)

    def too_large(self, limit: int) -> BodyTooLarge:
        return BodyTooLarge.over("max_held_body_bytes", limit, self.body_length)

    def stream_body(self, sink: Callable[[bytes, bool], None]) -> None:
        self.sink = sink
        if self.body or self.body_complete:
            sink(self.body, self.body_complete)

    def ask_for_body(self) -> None:
        self.events.append("ask for body")

    def take_body(self) -> bytes:
        return self.body

    def awaits_continue(self) -> bool:
        return b"expect" in self.head.first

    def informational(self, status: int, reason: bytes, headers: HeaderPairs) -> None:
        self.events.append(("informational", status))

    def pause_body(self, why: str = "body") -> None:
        self.events.append("pause body")

    def resume_body(self, why: str = "body") -> None:
        self.events.append("resume body")

    # the response

    def answer(self, error: GatewayError) -> None:
        self.answered = error

    def respond(self, status: int, headers: HeaderPairs, body: bytes) -> None:
        self.events.append(("respond", status, headers, body))

    def processingFailed(self, failure: Failure) -> None:
        self.failures.append(failure)

    def relay_head(self, head: ResponseHead) -> None:
        self.events.append(("head", head.status, head.reason, head.relayed))

    def relay_body(self, data: bytes, last: bool, trailers: HeaderPairs | None = None) -> None:
        self.events.append(("body", data, last))
        self.trailers = trailers

    def flush(self) -> None:
        self.events.append("flush")

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.events.append(("producer", streaming))

    def abort(self) -> None:
        self.events.append("abort")

    @property
    def written(self) -> list[tuple[bytes, bool]]:
        return [event[1:] for event in self.events if event[0] == "body"]


class SentRequest:
    """A request that was passed to an agent.

    Attributes:
        url: its URL.
        headers: its headers.
        body: its body: bytes, a producer, or None.
        options: further arguments.
        result: the agent's Deferred.
        cancelled: whether it was cancelled.
    """

    def __init__(self, method: bytes, url: bytes, headers: Any, body: Any, options: dict[str, Any]) -> None:
        self.method = method
        self.url = url
        self.headers = headers
        self.body = body
        self.options = options
        self.cancelled = False
        self.result: Deferred[Any] = Deferred(self._cancel)

    def _cancel(self, _: object) -> None:
        self.cancelled = True
        self.end()

    def fail(self, error: Exception) -> None:
        """Let the exchange fail before its response."""
        self.result.errback(Failure(error))
        self.end()

    def end(self) -> None:
        """End the exchange."""
        on_ended = self.options.pop("on_ended", None)
        if on_ended is not None:
            on_ended()


@implementer(IUpstreamAgent)
class FakeAgent:
    """Records the requests to send.

    Attributes:
        sent: the requests, in order.
        fault: raised instead, if not None.
        error: what each request fails with at once, if not None.
    """

    def __init__(self) -> None:
        self.sent: list[SentRequest] = []
        self.fault: Exception | None = None
        self.error: Exception | None = None

    def request(
        self, method: bytes, uri: bytes, headers: Any = None, bodyProducer: Any = None, **options: Any
    ) -> Deferred[Any]:
        if self.fault is not None:
            raise self.fault
        request = SentRequest(method, uri, headers, bodyProducer, options)
        self.sent.append(request)
        if self.error is not None:
            request.fail(self.error)
        return request.result


class FakeAuthenticator:
    """Authenticates every caller as one principal, or refuses."""

    def __init__(self, principal: Any = ANONYMOUS) -> None:
        self.changes = 0
        self.index = KeyIndex()
        self.principal = principal
        self.asked: list[tuple[Any, float]] = []

    def known(self, credential: bytes) -> None:
        return None

    def authenticate(self, headers: Any, now: float) -> Any:
        self.asked.append((headers, now))
        if isinstance(self.principal, Exception):
            raise self.principal
        return self.principal


class WholeRequest:
    """An admitted request, as the first server of its model gets it.

    Attributes:
        server: that server.
        entry: the entry whose price counts; None if there is none.
        body: the body for it; None if it streams.
        renamed: the server's name of the model for a streaming form, if it differs from the form's.
        response_id: the id of the response, if the gateway chose it.
    """

    def __init__(self, admission: Admission, authorization: Authorization, admitted: Admitted) -> None:
        self.admitted = admitted
        self.serving = serving = admitted.serving
        destinations = [each for each in serving.group.destinations if each.server == serving.server]
        destination = destinations[0] if destinations else serving.group.destinations[0]
        prepared = admission.prepare(authorization, admitted, destination)
        self.server, self.entry = destination.server, destination.entry
        self.body, self.renamed, self.response_id = prepared.body, prepared.renamed, prepared.response_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self.admitted, name)
