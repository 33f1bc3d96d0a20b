"""Requests on their way to a server that takes only so many at once: the others wait here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from twisted.logger import Logger

from twisted_vllm.config.settings import Server
from twisted_vllm.errors import GatewayError, ServerBusy
from twisted_vllm.http.client.exchange import UpstreamExchange
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.proxy.relay import Relay, RequestBody
from twisted_vllm.upstreams.concurrency import ConcurrencyLimiter, Verdict

#: seconds after which one who was turned away may try again
RETRY_AFTER = 1


class _Waiting:
    """An exchange in the queue, with its deadline."""

    __slots__ = ("_exchange", "_expired", "deadline", "since")

    def __init__(
        self,
        exchange: UpstreamExchange,
        since: float,
        deadline: float | None,
        expired: Callable[[UpstreamExchange], None],
    ) -> None:
        self.since = since
        self.deadline = deadline
        self._exchange = exchange
        self._expired = expired

    def expired(self) -> None:
        self.deadline = None
        self._expired(self._exchange)


class UpstreamQueues:
    """Sends each exchange as soon as its server may have one more; `finished` says when it has one less."""

    _log = Logger()

    def __init__(
        self,
        servers: Iterable[Server],
        send: Callable[[UpstreamExchange], None],
        sweeper: DeadlineSweeper,
        seconds: Callable[[], float],
    ) -> None:
        """Make the queues.

        Args:
            servers: every server; those of one address, whatever their keys, share its slots.
            send: sends an exchange to its server.
            sweeper: the deadlines of those that wait.
            seconds: the reactor's time.
        """
        self._send = send
        self._sweeper = sweeper
        self._seconds = seconds
        self._slots: dict[Server, ConcurrencyLimiter[UpstreamExchange]] = {}
        # whoever asks lasts as long as its request; its exchange it may let go of before
        self._entered: dict[object, UpstreamExchange] = {}
        self._waiting: dict[UpstreamExchange, _Waiting] = {}
        self._granted: deque[UpstreamExchange] = deque()
        self._sending = False
        by_address: dict[tuple[object, ...], ConcurrencyLimiter[UpstreamExchange]] = {}
        for server in servers:
            limit = server.max_concurrent_requests
            if limit is not None:
                address = (server.host, server.port, server.tls, server.base_path)
                slots = by_address.setdefault(address, ConcurrencyLimiter(limit, server.max_queued_requests))
                self._slots[server] = slots

    def __len__(self) -> int:
        return len(self._waiting)

    def __repr__(self) -> str:
        return f"<UpstreamQueues {list(dict.fromkeys(self._slots.values()))}>"

    @property
    def needed(self) -> bool:
        """Whether any server has a cap."""
        return bool(self._slots)

    def forward(self, exchange: UpstreamExchange) -> None:
        """Send `exchange` now or when its turn comes, or fail it with `ServerBusy`."""
        slots = self._slots.get(exchange.server)
        if slots is None:
            self._send(exchange)
            return
        verdict = slots.ask(exchange)
        if verdict is not Verdict.REFUSED:
            self._entered[exchange.asker] = exchange
        if verdict is Verdict.GRANTED:
            self._send(exchange)
        elif verdict is Verdict.QUEUED:
            exchange.at = self
            deadline = self._sweeper.after(exchange.server.timeouts.queue)
            waiting = self._waiting[exchange] = _Waiting(exchange, self._seconds(), deadline, self._expired)
            self._sweeper.add(waiting)
            body: object = exchange.body
            if isinstance(body, RequestBody):
                # what is to come of it stays with the client
                body.hold()
        else:
            _turned_away(exchange)
            exchange.fail(_busy("too many requests wait for the model's server"))

    def finished(self, request: GatewayRequest) -> None:
        """Take note that a request was answered or given up, whatever became of it."""
        exchange = self._entered.get(getattr(request.note, "relay", None))
        if exchange is not None:
            self._leave(exchange)

    def give_up(self, exchange: UpstreamExchange) -> None:
        """Forget one that waits, about which nobody asks any more."""
        _turned_away(exchange)
        self._leave(exchange)

    def _expired(self, exchange: UpstreamExchange) -> None:
        self._leave(exchange)
        _turned_away(exchange)
        exchange.fail(_busy("the model's server took no request in time"))

    def _leave(self, exchange: UpstreamExchange) -> None:
        self._entered.pop(exchange.asker, None)
        self._forget(exchange)
        following = self._slots[exchange.server].leave(exchange)
        if following is None:
            return
        self._forget(following)
        self._granted.append(following)
        if not self._sending:
            # one that fails at once makes room for the next: in turn, not one within the other
            self._sending = True
            try:
                while self._granted:
                    self._send_granted(self._granted.popleft())
            finally:
                self._sending = False

    def _send_granted(self, exchange: UpstreamExchange) -> None:
        if exchange.over:
            # given up since, and its slot passed on
            return
        try:
            self._send(exchange)
        except Exception:
            # nobody above waits for this one
            self._log.failure("A request that had waited could not be sent")
            exchange.fail(GatewayError("The gateway failed to process this request; its log says why."))

    def _forget(self, exchange: UpstreamExchange) -> None:
        waiting = self._waiting.pop(exchange, None)
        if waiting is not None:
            self._sweeper.discard(waiting)
            if isinstance(exchange.asker, Relay):
                exchange.asker.queued = self._seconds() - waiting.since


def _turned_away(exchange: UpstreamExchange) -> None:
    """Note that no server was asked."""
    if isinstance(exchange.asker, Relay):
        exchange.asker.went_on = False


def _busy(reason: str) -> ServerBusy:
    return ServerBusy(f"Busy: {reason}; send the request again.", retry_after=RETRY_AFTER)
