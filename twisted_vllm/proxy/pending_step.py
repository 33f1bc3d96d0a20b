"""A request that waits for something: a reservation in Redis, a server's answer about its models, a place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_vllm.errors import GatewayError
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.proxy.relay import RequestBody


class PendingStep:
    """Waits for a step of one request. It is the request's `Work` meanwhile.

    Attributes:
        awaited: fires with the step's result.
    """

    def __init__(
        self,
        request: GatewayRequest,
        body: object,
        step: Deferred[Any],
        otherwise: Callable[[GatewayError], bool] | None = None,
    ) -> None:
        """Start to wait.

        Args:
            request: the request.
            body: its body, which is paused while the request waits if it streams.
            step: fires with the step's result; it is cancelled if the client disconnects.
            otherwise: called with the error if the step fails; returns whether it took care of the request.
        """
        self._request = request
        self._body = body
        self.awaited = step
        self._otherwise = otherwise
        self._cancelled = False
        request.work = self
        if isinstance(body, RequestBody):
            body.hold()

    def then(self, proceed: Callable[[Any], None]) -> None:
        """Call `proceed` with the result; respond with the error if the step fails."""
        self.awaited.addCallback(self._done, proceed).addErrback(self._failed)

    def cancel(self) -> None:
        """The client has disconnected."""
        self._cancelled = True
        self._drop_body()
        self.awaited.cancel()

    def _done(self, result: Any, proceed: Callable[[Any], None]) -> None:
        self._request.work = None
        proceed(result)

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
        error = failure.value
        if isinstance(error, GatewayError) and self._otherwise is not None and self._otherwise(error):
            return
        self._drop_body()
        if isinstance(error, GatewayError):
            request.answer(error)
        else:
            request.processingFailed(failure)
