"""Delivers to what blocks, such as boto3 or an exporter, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_vllm.observability.delivery.interfaces import DeliveryFailed, IBlockingDestination, IDestination

#: what ends the thread
_END = None
#: threads at once, of all destinations: more than the settings may name, so some hang for ever since a reload
MOST_THREADS = 128

#: those that run
_running: set[threading.Thread] = set()


@implementer(IDestination)
class ThreadedDestination:
    """Calls a blocking destination in a thread, which starts with the first batch.

    A call that hangs harms nobody else: further deliveries fail until it returns, and the thread does not keep the
    process alive. Reloads while calls hang leave threads behind, but no more than `MOST_THREADS`.
    """

    _log = Logger()

    def __init__(self, name: str, make: Callable[[], IBlockingDestination], reactor: Any) -> None:
        """Set up.

        Args:
            name: the name of the thread.
            make: makes the destination, in its thread; it may import and connect. It may raise `DeliveryFailed`.
            reactor: a provider of ``IReactorFromThreads``.
        """
        self._name = name
        self._make = make
        self._reactor = reactor
        self._work: SimpleQueue[tuple[Sequence[Any], Deferred[None]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_busy = False
        self._is_closed = False

    def deliver(self, batch: Sequence[Any]) -> Deferred[None]:
        """Deliver a batch in the thread."""
        if self._is_closed:
            return fail(DeliveryFailed("it is closed", retryable=False))
        if self._is_busy:
            return fail(DeliveryFailed("an earlier delivery still hangs", retryable=True))
        if self._thread is None:
            if len(_running) >= MOST_THREADS:
                return fail(DeliveryFailed("too many earlier deliveries hang: restart the gateway", retryable=True))
            self._thread = threading.Thread(target=self._run_counted, name=self._name, daemon=True)
            _running.add(self._thread)
            self._thread.start()
        self._is_busy = True
        done: Deferred[None] = Deferred()
        self._work.put((batch, done))
        return done

    def close(self) -> None:
        """End the thread, after the running delivery; do not wait for it."""
        if not self._is_closed:
            self._is_closed = True
            self._work.put(_END)

    def _run_counted(self) -> None:
        try:
            self._run()
        finally:
            _running.discard(threading.current_thread())

    def _run(self) -> None:
        destination: IBlockingDestination | None = None
        while (work := self._work.get()) is not _END:
            batch, done = work
            result: Failure | None = None
            try:
                if destination is None:
                    destination = self._make()
                destination.deliver(batch)
            except BaseException:
                # also SystemExit of an operator's code: without its thread, nothing would be delivered any more
                result = Failure()
            del batch
            self._reactor.callFromThread(self._finished, done, result)
        if destination is not None:
            try:
                destination.close()
            except BaseException as error:
                self._log.warn("Closing {name} failed: {reason}", name=self._name, reason=type(error).__name__)

    def _finished(self, done: Deferred[None], result: Failure | None) -> None:
        self._is_busy = False
        # one that was cancelled ignores it
        done.callback(None) if result is None else done.errback(result)
