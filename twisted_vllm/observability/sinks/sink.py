"""A sink: queues the finished requests and log lines that it gets."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import LogEvent

from twisted_vllm.context import RequestContext
from twisted_vllm.observability.delivery.queue import DeliveryQueue
from twisted_vllm.observability.logging.observer import EventObserver
from twisted_vllm.observability.request_event import RequestEvent
from twisted_vllm.observability.sinks.encoders import Encoder


class Sink(EventObserver):
    """An observer of the log, and a consumer of request events; both never raise and never wait.

    Attributes:
        queue: what it puts them into.
    """

    def __init__(
        self,
        queue: DeliveryQueue[bytes],
        encoder: Encoder,
        wants: Callable[[RequestContext], bool] | None,
        level: str,
    ) -> None:
        """Set up.

        Args:
            queue: what it puts items into; its owner starts and stops it.
            encoder: makes the items.
            wants: tells whether it wants a request that is over; None wants none.
            level: the lowest level of log lines.
        """
        super().__init__(level)
        self.queue = queue
        self.use(encoder, wants)

    def use(self, encoder: Encoder, wants: Callable[[RequestContext], bool] | None) -> None:
        """Make other items, of other requests, from now on; the arguments are the constructor's."""
        self._encoder = encoder
        self._wants = wants

    @property
    def wants_requests(self) -> bool:
        """Return whether it wants any requests."""
        return self._wants is not None

    def wants(self, context: RequestContext) -> bool:
        """Return whether it wants a request that is over."""
        return self._wants is not None and self._wants(context)

    def consume(self, event: RequestEvent, context: RequestContext) -> None:
        """Take a finished request."""
        item = self._encoder.request(event, context)
        if item:
            self.queue.put(item, len(item))

    def event(self, event: LogEvent) -> None:
        """Take a log line."""
        item = self._encoder.line(event)
        self.queue.put(item, len(item))
