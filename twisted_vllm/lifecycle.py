"""The events in the life of a request, and their observers.

Logs, the ledger and the limits observe requests through one interface; `twisted_vllm.app.wiring` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.logger import Logger

from twisted_vllm.context import RequestContext

Observe = Callable[[RequestContext], None]


class RequestObserver:
    """Observes requests. A subclass overrides the events that it needs; events that nobody overrides cost nothing.

    Admin API requests and refused requests have only the event `finished`.
    """

    def admitted(self, context: RequestContext) -> None:
        """The request is admitted: its limits are reserved and a server is chosen."""

    def sent(self, context: RequestContext) -> None:
        """The request is passed to the HTTP client, which sends it to its server."""

    def first_byte(self, context: RequestContext) -> None:
        """The response has begun."""

    def finished(self, context: RequestContext) -> None:
        """The request is over, however it ended; called once, before the last byte of its response is sent."""


class Lifecycle:
    """Notifies the observers, in order.

    Attributes:
        admitted: the observers' methods for the event `admitted`; likewise `sent` and `first_byte`.
    """

    _log = Logger()

    def __init__(self, observers: Iterable[RequestObserver] = ()) -> None:
        """Notify these observers."""
        self.reconfigure(observers)

    def reconfigure(self, observers: Iterable[RequestObserver]) -> None:
        """Notify these observers from now on, in this order.

        It binds the methods that they override; those inherited from `RequestObserver` do nothing.
        """
        observers = tuple(observers)
        self.admitted = _own(observers, "admitted")
        self.sent = _own(observers, "sent")
        self.first_byte = _own(observers, "first_byte")
        self._finished = _own(observers, "finished")

    def finished(self, context: RequestContext) -> None:
        """Notify that a request is over. The failure of an observer is logged and does not affect the others."""
        for observe in self._finished:
            try:
                observe(context)
            except Exception:
                self._log.failure("An observer of finished requests failed")


def _own(observers: tuple[RequestObserver, ...], event: str) -> tuple[Observe, ...]:
    return tuple(
        getattr(observer, event)
        for observer in observers
        if getattr(type(observer), event) is not getattr(RequestObserver, event)
    )
