"""The events in the life of a request, and who observes them.

Logs, the ledger and the limits observe requests through one interface; `twisted_vllm.app.wiring` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.logger import Logger

from twisted_vllm.context import RequestContext

Observe = Callable[[RequestContext], None]


class RequestObserver:
    """Observes requests; a subclass overrides the events that it needs. Events that nobody overrides cost nothing.

    Requests of the admin API, and those that were refused, are only `finished`.
    """

    def admitted(self, context: RequestContext) -> None:
        """The request may go on, its limits are reserved and a server is chosen."""

    def sent(self, context: RequestContext) -> None:
        """The request is given to the client that sends it to its server."""

    def first_byte(self, context: RequestContext) -> None:
        """The response has begun."""

    def finished(self, context: RequestContext) -> None:
        """The request is over, however it ended; called once, before the last byte of its response is sent."""


class Lifecycle:
    """Tells the observers, in their order.

    Attributes:
        admitted: the methods that observe that a request was admitted; likewise `sent` and `first_byte`.
    """

    _log = Logger()

    def __init__(self, observers: Iterable[RequestObserver] = ()) -> None:
        """Bind the observers' own methods; those inherited from `RequestObserver` do nothing and are left out."""
        observers = tuple(observers)
        self.admitted = _own(observers, "admitted")
        self.sent = _own(observers, "sent")
        self.first_byte = _own(observers, "first_byte")
        self._finished = _own(observers, "finished")

    def finished(self, context: RequestContext) -> None:
        """Tell that a request is over. An observer that fails is logged, and keeps the others from nothing."""
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
