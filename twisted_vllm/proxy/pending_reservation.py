"""A request whose reservation is made elsewhere: it waits for the answer, and can be given up meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_vllm.errors import GatewayError
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.proxy.relay import RequestBody
from twisted_vllm.ratelimit.reservation import Reservation


class PendingReservation:
    """Waits for a reservation; it is the request's `Work` meanwhile."""

    def __init__(
        self,
        request: GatewayRequest,
        body: bytes | RequestBody,
        reserved: Deferred[Reservation],
    ) -> None:
        """Begin to wait.

        Args:
            request: the request.
            body: its body, of which nothing more is read until it goes on.
            reserved: the reservation to come; what it would have got is given back where it is cancelled.
        """
        self._request = request
        self._body = body
        self._reserved = reserved
        self._given_up = False
        request.work = self
        if isinstance(body, RequestBody):
            body.hold()

    def then(self, go_on: Callable[[], None]) -> None:
        """Call `go_on` once the reservation is made, if the request still is; answer for a refusal."""
        self._reserved.addCallback(self._made, go_on).addErrback(self._failed)

    def cancel(self) -> None:
        """The client has gone."""
        self._given_up = True
        self._drop_body()
        self._reserved.cancel()

    def _made(self, reservation: Reservation, go_on: Callable[[], None]) -> None:
        self._request.work = None
        self._request.context.reservation = reservation
        go_on()

    def _drop_body(self) -> None:
        # a large form holds a file
        if isinstance(self._body, RequestBody):
            self._body.stopProducing()

    def _failed(self, failure: Failure) -> None:
        if self._given_up:
            return
        request = self._request
        if request.work is self:
            request.work = None
        self._drop_body()
        if isinstance(failure.value, GatewayError):
            request.answer(failure.value)
        else:
            request.processingFailed(failure)
