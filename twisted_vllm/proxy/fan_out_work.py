"""Sends an act to several servers at once, and answers with what each of them said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed

from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.config.settings import Server
from twisted_vllm.context import RequestContext
from twisted_vllm.errors import PRIVATE_RESPONSE, GatewayError, UpstreamTimeout, UpstreamUnreachable
from twisted_vllm.http.client.held_body_producer import HeldBodyProducer
from twisted_vllm.http.client.raw_headers import RawHeaders
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.proxy.act_log import ActedOn
from twisted_vllm.proxy.chosen_servers import may_choose
from twisted_vllm.proxy.fan_out import MAX_ANSWER, ServerAnswer, answered, joined, unanswered
from twisted_vllm.proxy.forwarding import Forwarding, framing_of
from twisted_vllm.proxy.relay import cause_of_cut
from twisted_vllm.upstreams.own_requests import read_at_most
from twisted_vllm.upstreams.server_state import ServerState

#: sends the request to one server
Send = Callable[[Server], Deferred[UpstreamResponse]]
#: seconds that a server may take that was unwell before; others have their own timeouts
UNWELL_TIMEOUT = 15.0


class FanOut(Forwarding):
    """One act on several servers, from its admission on."""

    __slots__ = ()

    def _place(self) -> None:
        request, forwarder = self._request, self._forwarder
        context = request.context
        context.server = None
        if forwarder.accounting is not None:
            forwarder.accounting.placed_everywhere(context, self._authorization)
        for observe in forwarder.lifecycle.admitted:
            observe(context)
        context.sent = True
        for observe in forwarder.lifecycle.sent:
            observe(context)
        named = may_choose(self._authorization.principal)
        work = FanOutWork(
            request, self._admitted.servers, self._send_to, forwarder.clock, named=named, record=forwarder.record_act
        )
        work.start()

    def _send_to(self, server: Server) -> Deferred[UpstreamResponse]:
        request, forwarder, held = self._request, self._forwarder, self._admitted.body
        body = held.rope() if isinstance(held, HeldBody) else held or b""
        context = request.context
        headers = forwarder.headers(
            context,
            server,
            framing_of(body, context.head.first),
            expects_continue=False,
            trace=None if forwarder.tracer is None else forwarder.tracer.act(context),
        )
        return forwarder.client.request(
            request.method,
            server.url + self._admitted.path,
            # what a server says goes into a document
            headers=RawHeaders.from_pairs(pair for pair in headers if pair[0].lower() != b"accept-encoding"),
            data=body if isinstance(body, bytes) else HeldBodyProducer(body, forwarder.cooperate),
            server=server,
            on_sent=context.on_sent,
        )


class _Asked:
    """One server that was asked."""

    def __init__(self, pending: Deferred[Any]) -> None:
        self.pending = pending
        self.died = False

    def server_died(self, reason: str) -> None:
        """Do not wait for it: it was found dead."""
        self.died = True
        self.pending.cancel()


class FanOutWork:
    """The requests of one act to its servers. It is its request's `Work`.

    The time is bounded by the servers' timeouts, the memory by `MAX_ANSWER` for each server.
    """

    _log = Logger()

    def __init__(
        self,
        request: GatewayRequest,
        servers: Sequence[ServerState],
        send: Send,
        clock: IReactorTime,
        *,
        named: bool,
        record: Callable[[RequestContext, Sequence[ActedOn]], None] = lambda context, acted: None,
    ) -> None:
        """Prepare it.

        Args:
            request: the request.
            servers: the servers, two or more.
            send: sends it to one server.
            clock: the reactor's clock.
            named: whether the client may see the names of servers; else they are numbered.
            record: writes to the audit log what became of it at each server.
        """
        self._request = request
        self._servers = tuple(servers)
        self._send = send
        self._clock = clock
        self._named = named
        self._record = record
        self._asked: dict[int, _Asked] = {}
        self._answers: dict[int, ServerAnswer] = {}
        self._cancelled = False

    def start(self) -> None:
        """Send it to all servers."""
        self._request.work = self
        for index, state in enumerate(self._servers):
            if self._cancelled:
                return
            pending: Deferred[Any] = self._send(state.server)
            asked = self._asked[index] = _Asked(pending)
            state.awaiting.add(asked)
            pending.addCallback(self._read, index)
            if not state.breaker.closed:
                pending.addTimeout(UNWELL_TIMEOUT, self._clock)
            pending.addErrback(self._failed, index, asked).addCallback(self._keep, index, asked)

    def cancel(self) -> None:
        """The client has disconnected: close the connections to the servers that have not answered."""
        self._cancelled = True
        self._request.context.outcome = self._request.context.outcome or "client_disconnected"
        for asked in tuple(self._asked.values()):
            asked.pending.cancel()
        self._tell()

    def _read(self, response: UpstreamResponse, index: int) -> Deferred[ServerAnswer]:
        return read_at_most(response, MAX_ANSWER).addCallback(partial(answered, self._name(index), response.code))

    def _failed(self, failure: Failure, index: int, asked: _Asked) -> ServerAnswer:
        if isinstance(failure.value, GatewayError):
            error = failure.value
        elif failure.check(ResponseFailed):
            error = cause_of_cut(failure)
        elif asked.died:
            error = UpstreamUnreachable("The vLLM server does not answer any more.")
        elif failure.check(DeferredTimeout):
            error = UpstreamTimeout("The vLLM server did not answer in time.")
        elif failure.check(CancelledError):
            error = UpstreamUnreachable("The request was given up.")
        else:
            self._log.failure("An act could not be sent to {server}", failure, server=self._servers[index].name)
            error = GatewayError("The gateway failed to ask this server; its log says why.")
        return unanswered(self._name(index), error)

    def _name(self, index: int) -> str:
        return self._servers[index].name if self._named else f"server {index + 1}"

    def _keep(self, answer: ServerAnswer, index: int, asked: _Asked) -> None:
        state = self._servers[index]
        state.awaiting.discard(asked)
        self._asked.pop(index, None)
        if self._cancelled:
            return
        self._answers[index] = answer
        context = self._request.context
        if answer.status is None or answer.status >= 300:
            self._log.warn(
                "{server} did not do {route} of {request_id}: {reason}",
                server=state.name,
                route="" if context.authorization is None else context.authorization.route.name,
                request_id=context.request_id.decode("ascii"),
                reason=f"it answered {answer.status}" if answer.error is None else answer.error["message"],
                once_a_second=state.name,
            )
        if len(self._answers) == len(self._servers):
            self._answer()

    def _tell(self) -> None:
        """Have the act recorded. A server that has not answered may have done it all the same."""
        acted = []
        for index, state in enumerate(self._servers):
            answer = self._answers.get(index)
            if answer is None:
                acted.append(ActedOn(state.name, None, "client_disconnected"))
            else:
                error = "" if answer.error is None else answer.error["code"]
                acted.append(ActedOn(state.name, answer.status, error))
        self._record(self._request.context, acted)

    def _answer(self) -> None:
        request, context = self._request, self._request.context
        status, body, error = joined([self._answers[index] for index in range(len(self._servers))])
        if error is None:
            context.outcome = "completed"
            headers = [(b"content-type", b"application/json"), *PRIVATE_RESPONSE]
        else:
            context.outcome, context.error_code = "upstream_failed", error.code
            headers = error.headers()
        if context.reservation is not None:
            request.added = context.reservation.lines
        request.work = None
        self._tell()
        request.respond(status, headers, body)
