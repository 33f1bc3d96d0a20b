"""A request that waits for its reservation, which another process makes."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_vllm.errors import GatewayError
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.proxy.relay import RequestBody
from twisted_vllm.ratelimit.reservation import Reservation


class PendingReservation:
    """Waits for the reservation of one request, and is its `Work` meanwhile."""

    def __init__(
        self,
        request: GatewayRequest,
        body: bytes | RequestBody,
        reserved: Deferred[Reservation],
    ) -> None:
        """Begin to wait.

        Args:
            request: the request.
            body: its body, which is not read while the request waits.
            reserved: the reservation to come; where it is cancelled, the limiter gives it back.
        """
        self._request = request
        self._body = body
        self._reserved = reserved
        self._given_up = False
        request.work = self
        if isinstance(body, RequestBody):
            body.hold()

    def then(self, go_on: Callable[[], None]) -> None:
        """Call `go_on` once the reservation is made; answer the request if it is refused."""
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
