"""Sends an act to several servers at once, and answers with what each of them said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed

from twisted_vllm.config.settings import Server
from twisted_vllm.errors import PRIVATE_RESPONSE, GatewayError
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.proxy.fan_out import MAX_ANSWER, ServerAnswer, answered, joined, unanswered
from twisted_vllm.proxy.relay import cause_of_cut
from twisted_vllm.upstreams.own_requests import read_at_most

#: sends the request to one server
Send = Callable[[Server], Deferred[UpstreamResponse]]


class FanOutWork:
    """One act on several servers. It is its request's `Work`.

    The time is bounded by the servers' timeouts, the memory by `MAX_ANSWER` for each server.
    """

    _log = Logger()

    def __init__(self, request: GatewayRequest, servers: Sequence[Server], send: Send, *, named: bool) -> None:
        """Prepare it.

        Args:
            request: the request.
            servers: the servers, two or more.
            send: sends it to one server.
            named: whether the client may see the names of servers; else they are numbered.
        """
        self._request = request
        self._servers = tuple(servers)
        self._send = send
        self._named = named
        self._pending: dict[int, Deferred[Any]] = {}
        self._answers: dict[int, ServerAnswer] = {}
        self._cancelled = False

    def start(self) -> None:
        """Send it to all servers."""
        self._request.work = self
        for index, server in enumerate(self._servers):
            if self._cancelled:
                return
            pending: Deferred[Any] = self._send(server)
            self._pending[index] = pending
            pending.addCallback(self._read, index).addErrback(self._failed, index).addCallback(self._keep, index)

    def cancel(self) -> None:
        """The client has disconnected: close the connections to the servers that have not answered."""
        self._cancelled = True
        self._request.context.outcome = self._request.context.outcome or "client_disconnected"
        pending, self._pending = self._pending, {}
        for each in pending.values():
            each.cancel()

    def _read(self, response: UpstreamResponse, index: int) -> Deferred[ServerAnswer]:
        name, status = self._name(index), response.code
        return read_at_most(response, MAX_ANSWER).addCallback(lambda body: answered(name, status, body))

    def _failed(self, failure: Failure, index: int) -> ServerAnswer:
        if self._cancelled:
            return unanswered(self._name(index), GatewayError("The request was given up."))
        if isinstance(failure.value, GatewayError):
            error = failure.value
        elif failure.check(ResponseFailed):
            error = cause_of_cut(failure)
        else:
            self._log.failure("An act could not be sent to {server}", failure, server=self._servers[index].name)
            error = GatewayError("The gateway failed to ask this server; its log says why.")
        return unanswered(self._name(index), error)

    def _name(self, index: int) -> str:
        return self._servers[index].name if self._named else f"server {index + 1}"

    def _keep(self, answer: ServerAnswer, index: int) -> None:
        self._pending.pop(index, None)
        if self._cancelled:
            return
        self._answers[index] = answer
        context = self._request.context
        if answer.status is None or answer.status >= 300:
            self._log.warn(
                "{server} did not do {route} of {request_id}: {reason}",
                server=self._servers[index].name,
                route="" if context.authorization is None else context.authorization.route.name,
                request_id=context.request_id.decode("ascii"),
                reason=f"it answered {answer.status}" if answer.error is None else answer.error["message"],
                once_a_second=self._servers[index].name,
            )
        if len(self._answers) == len(self._servers):
            self._answer()

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
        request.respond(status, headers, body)
