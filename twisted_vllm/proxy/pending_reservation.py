"""A request that waits for a reservation in Redis."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_vllm.errors import GatewayError
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.proxy.relay import RequestBody
from twisted_vllm.ratelimit.reservation import Reservation


class PendingReservation:
    """Waits for the reservation of one request. It is the request's `Work` meanwhile."""

    def __init__(
        self,
        request: GatewayRequest,
        body: bytes | RequestBody,
        reserved: Deferred[Reservation],
    ) -> None:
        """Start to wait.

        Args:
            request: the request.
            body: its body, which is paused while the request waits.
            reserved: fires with the reservation; if it is cancelled, the limiter releases the reservation.
        """
        self._request = request
        self._body = body
        self._reserved = reserved
        self._cancelled = False
        request.work = self
        if isinstance(body, RequestBody):
            body.hold()

    def then(self, proceed: Callable[[], None]) -> None:
        """Call `proceed` once the reservation is made; respond with the error if it is refused."""
        self._reserved.addCallback(self._made, proceed).addErrback(self._failed)

    def cancel(self) -> None:
        """The client has disconnected."""
        self._cancelled = True
        self._drop_body()
        self._reserved.cancel()

    def _made(self, reservation: Reservation, proceed: Callable[[], None]) -> None:
        self._request.work = None
        self._request.context.reservation = reservation
        proceed()

    def _drop_body(self) -> None:
        # a large form holds an open file
        if isinstance(self._body, RequestBody):
            self._body.stopProducing()

    def _failed(self, failure: Failure) -> None:
        if self._cancelled:
            return
        request = self._request
        if request.work is self:
            request.work = None
        self._drop_body()
        if isinstance(failure.value, GatewayError):
            request.answer(failure.value)
        else:
            request.processingFailed(failure)
