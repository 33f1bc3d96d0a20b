"""Queues requests for servers with a concurrency limit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from twisted_vllm.config.settings import Server
from twisted_vllm.errors import GatewayError, ServerBusy
from twisted_vllm.http.client.agent import UpstreamAgent
from twisted_vllm.http.client.body import hold
from twisted_vllm.http.client.interfaces import NO_PROTOCOLS, Again, Informational, IUpstreamAgent, LeftQueue, Sent
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.upstreams.concurrency import ConcurrencyLimiter, Decision

#: seconds in ``Retry-After`` of a refused request
RETRY_AFTER = 1


class _Request:
    """A request to a server with a concurrency limit, from its arrival until its exchange is over.

    Attributes:
        deadline: when `expired` is called while it is queued, in the reactor's seconds.
        limiter: the limiter of its server.
        send: sends it; None after it was sent, refused or given up.
        since: when it was queued, in the reactor's seconds.
        result: the caller's Deferred, while it is queued.
        sent: the agent's Deferred, once it was sent from the queue.
    """

    __slots__ = ("_left_queue", "_on_expired", "deadline", "limiter", "result", "send", "sent", "since")

    def __init__(
        self,
        limiter: ConcurrencyLimiter[_Request],
        send: Callable[..., Deferred[UpstreamResponse]],
        left_queue: LeftQueue | None,
        on_expired: Callable[[_Request], None],
    ) -> None:
        self.limiter = limiter
        self.send: Callable[..., Deferred[UpstreamResponse]] | None = send
        self.deadline: float | None = None
        self.since = 0.0
        self.result: Deferred[UpstreamResponse] | None = None
        self.sent: Deferred[UpstreamResponse] | None = None
        self._left_queue = left_queue
        self._on_expired = on_expired

    def report(self, seconds: float | None, sent: bool) -> None:
        """Report to the caller how long the request waited, and whether it is sent to the server."""
        left_queue, self._left_queue = self._left_queue, None
        if left_queue is not None:
            left_queue(seconds, sent)

    def expired(self) -> None:
        """Refuse the request: it has waited too long."""
        self.deadline = None
        self._on_expired(self)


@implementer(IUpstreamAgent)
class QueueingAgent:
    """Passes each request to its agent as soon as the server's concurrency limit allows.

    ``len()`` is the number of queued requests.
    """

    _log = Logger()

    def __init__(
        self,
        agent: UpstreamAgent,
        servers: Iterable[Server],
        deadlines: DeadlineSweeper,
        seconds: Callable[[], float],
    ) -> None:
        """Create the queues.

        Args:
            agent: sends the requests.
            servers: all servers; those with the same URL share one limit, whatever their keys.
            deadlines: the deadlines of queued requests.
            seconds: the reactor's time.
        """
        self._agent = agent
        self._deadlines = deadlines
        self._seconds = seconds
        self._queued: set[_Request] = set()
        self._granted: deque[_Request] = deque()
        self._sending = False
        self._limiters: dict[Server, ConcurrencyLimiter[_Request]] = {}
        by_url: dict[bytes, ConcurrencyLimiter[_Request]] = {}
        for server in servers:
            limit = server.max_concurrent_requests
            if limit is not None:
                limiter = by_url.setdefault(server.url, ConcurrencyLimiter(limit, server.max_queued_requests))
                self._limiters[server] = limiter

    def __len__(self) -> int:
        return len(self._queued)

    def __repr__(self) -> str:
        return f"<QueueingAgent {list(dict.fromkeys(self._limiters.values()))}>"

    @property
    def needed(self) -> bool:
        """Whether any server has a concurrency limit."""
        return bool(self._limiters)

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: bytes | IBodyProducer | None = None,
        *,
        server: Server | None = None,
        protocols: frozenset[bytes] = NO_PROTOCOLS,
        informational: Informational | None = None,
        left_queue: LeftQueue | None = None,
        on_sent: Sent | None = None,
        again: Again | None = None,
    ) -> Deferred[UpstreamResponse]:
        """Send a request now or when its turn comes, or fail with `ServerBusy`; see `IUpstreamAgent`."""
        send = partial(
            self._agent.request,
            method,
            uri,
            headers,
            bodyProducer,
            server=server,
            protocols=protocols,
            informational=informational,
            on_sent=on_sent,
            again=again,
        )
        limiter = None if server is None else self._limiters.get(server)
        if server is None or limiter is None:
            return send()
        request = _Request(limiter, send, left_queue, self._expire)
        decision = limiter.acquire(request)
        if decision is Decision.GRANTED:
            return self._send(request)
        if decision is Decision.REFUSED:
            request.report(None, False)
            return fail(_busy("too many requests wait for the model's server"))
        request.since = self._seconds()
        request.deadline = self._deadlines.after(server.timeouts.queue)
        result: Deferred[UpstreamResponse] = Deferred(partial(self._cancel, request))
        request.result = result
        self._queued.add(request)
        self._deadlines.add(request)
        hold(bodyProducer)
        return result

    # sending

    def _send(self, request: _Request) -> Deferred[UpstreamResponse]:
        send, request.send = request.send, None
        assert send is not None
        try:
            return send(on_ended=partial(self._free, request))
        except BaseException:
            self._free(request)
            raise

    def _free(self, request: _Request) -> None:
        """Release the request, and send the queued request that is granted instead."""
        following = request.limiter.release(request)
        if following is None:
            return
        self._dequeue(following)
        self._granted.append(following)
        if self._sending:
            return
        # a request that fails at once releases the next: a loop, because recursion could get too deep
        self._sending = True
        try:
            while self._granted:
                self._send_granted(self._granted.popleft())
        finally:
            self._sending = False

    def _send_granted(self, request: _Request) -> None:
        result = request.result
        if request.send is None or result is None:
            # given up meanwhile; the next request was granted instead
            return
        request.report(self._seconds() - request.since, True)
        try:
            request.sent = self._send(request)
        except Exception:
            self._log.failure("A queued request could not be sent")
            result.errback(GatewayError("The gateway failed to process this request; its log says why."))
        else:
            request.sent.addCallbacks(result.callback, result.errback)

    # cancelled or expired in the queue

    def _cancel(self, request: _Request, _: object) -> None:
        if request.sent is not None:
            request.sent.cancel()
        else:
            self._drop(request)

    def _expire(self, request: _Request) -> None:
        self._drop(request)
        if request.result is not None:
            request.result.errback(_busy("the model's server took no request in time"))

    def _drop(self, request: _Request) -> None:
        request.send = None
        self._dequeue(request)
        request.report(self._seconds() - request.since, False)
        self._free(request)

    def _dequeue(self, request: _Request) -> None:
        self._queued.discard(request)
        self._deadlines.discard(request)


def _busy(reason: str) -> ServerBusy:
    return ServerBusy(f"Busy: {reason}; send the request again.", retry_after=RETRY_AFTER)
