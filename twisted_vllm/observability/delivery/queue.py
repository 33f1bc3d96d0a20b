"""A bounded queue in front of a destination: batches, retries with back-off, and what is dropped is counted."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.observability.delivery.interfaces import Bounds, DeliveryFailed, IDestination, Spool, SpoolFull
from twisted_vllm.observability.delivery.reports import DeliveryReports

T = TypeVar("T")
R = TypeVar("R")

#: how often the spool looks for what other processes left, in seconds
TAKE_OVER_SECONDS = 60.0
#: failures in a row after which a queue that stops gives up
STOP_FAILURES = 2
#: a wait is this much longer or shorter by chance, so that many gateways do not come back at once
JITTER = 0.25


class _Queued(msgspec.Struct, Generic[T], frozen=True, eq=False, gc=False):
    item: T
    size: int
    time: float
    place: Any = None


def at_once(work: Callable[[], R]) -> Deferred[R]:
    """Run work in the calling thread."""
    return maybeDeferred(work)


class DeliveryQueue(Generic[T]):
    """Collects items from any thread and delivers them in batches, one batch at a time, in the reactor's thread.

    A batch that fails is tried again, with back-off; one that is refused for good is dropped. What does not fit into
    the queue is dropped; what came first stays. With a spool, items outlive the process and a destination that is away
    for long; they may then be delivered twice.

    Attributes:
        name: its name, for the log and the metrics.
        delivered: how many items were delivered.
        dropped: how many were dropped.
        failures: how many deliveries failed.
    """

    _log = Logger()

    def __init__(
        self,
        name: str,
        destination: IDestination,
        reactor: Any,
        bounds: Bounds,
        random: Callable[[], float],
        *,
        spool: Spool[T] | None = None,
        in_thread: Callable[[Callable[[], Any]], Deferred[Any]] = at_once,
    ) -> None:
        """Set up; nothing is delivered before `start`, but items may be put.

        Args:
            name: its name.
            destination: what it delivers to.
            reactor: a provider of ``IReactorTime`` and ``IReactorFromThreads``.
            bounds: its bounds.
            random: returns numbers of at least 0, below 1.
            spool: keeps items on disk; the queue opens and closes it.
            in_thread: runs work on the disk in another thread.
        """
        self.name = name
        self.delivered = 0
        self.dropped = 0
        self.failures = 0
        self._destination = destination
        self._reactor = reactor
        self._bounds = bounds
        self._random = random
        self._spool = spool
        self._in_thread = in_thread
        # reentrant: the garbage collector may log during a put, and the log may feed this queue
        self._lock = threading.RLock()
        self._waiting: deque[_Queued[T]] = deque()
        #: bytes in memory, those of the batch included
        self._bytes = 0
        self._batch: list[_Queued[T]] = []
        #: how many items of the batch to deliver; fewer than all once a destination said that it is too large
        self._most = 0
        self._is_started = False
        self._is_stopped = False
        #: whether `_turn` will be called: by a timer, after a delivery, or after work on the disk
        self._is_planned = False
        #: whether it will be called as soon as possible
        self._is_soon = False
        self._timer: Any = None
        self._running: Deferred[Any] | None = None
        #: whether it is work on the disk that is running
        self._is_reading = False
        self._stopping: Deferred[None] | None = None
        self._failed_in_a_row = 0
        self._reports = DeliveryReports(name)
        self._next_take_over = 0.0

    def __repr__(self) -> str:
        """Show the state."""
        return f"<DeliveryQueue {self.name}: {self.queued} queued, {self.dropped} dropped>"

    @property
    def queued(self) -> int:
        """Return how many items wait, those of a running delivery included."""
        return len(self._waiting) + len(self._batch) + (0 if self._spool is None else self._spool.unread)

    @property
    def spool_bytes(self) -> int:
        """Return the size of the spool in bytes; 0 without one."""
        return 0 if self._spool is None else self._spool.size

    def oldest_seconds(self) -> float:
        """Return the age of the oldest item that waits, in seconds; 0 without one."""
        with self._lock:
            first = self._batch or self._waiting
            return max(self._reactor.seconds() - first[0].time, 0.0) if first else 0.0

    def put(self, item: T, size: int) -> bool:
        """Queue an item. Any thread may call it; it never blocks and never raises.

        Args:
            item: the item.
            size: about how many bytes it takes in memory.

        Returns:
            Whether it was taken; else it is dropped and counted.
        """
        now = self._reactor.seconds()
        with self._lock:
            bounds = self._bounds
            place = None
            has_room = len(self._waiting) < bounds.max_items and self._bytes + size <= bounds.max_bytes
            if self._is_stopped:
                self.dropped += 1
                return False
            if self._spool is not None and self._is_started:
                try:
                    place, _, is_kept = self._spool.append(item, now, has_room=has_room)
                except SpoolFull:
                    # what the disk does not take is in memory alone
                    is_kept = has_room
                except Exception as error:
                    self._drop(1, f"an item cannot be written to the spool: {type(error).__name__}")
                    return False
                if not is_kept and place is None:
                    self._drop(1, "")
                    return False
            elif has_room:
                is_kept = True
            else:
                self._drop(1, "")
                return False
            if is_kept:
                self._waiting.append(_Queued(item, size, now, place))
                self._bytes += size
            if not self._is_started or self._is_soon:
                return True
            is_full = self._is_full()
            if self._is_planned and not is_full:
                return True
            self._is_planned = True
            self._is_soon = is_full
        self._reactor.callFromThread(self._wake, 0.0 if is_full else self._bounds.linger)
        return True

    # the reactor's thread

    def start(self) -> None:
        """Start to deliver. Idempotent."""
        if self._is_started:
            return
        spool = self._spool
        if spool is not None:
            self._next_take_over = self._reactor.seconds() + TAKE_OVER_SECONDS
            try:
                spool.open()
            except OSError as error:
                self._log.error(
                    "The spool of {name} at {directory} cannot be used: {reason}; items are in memory alone",
                    name=self.name,
                    directory=str(spool.directory),
                    reason=error.strerror,
                )
                spool = self._spool = None
        with self._lock:
            self._is_started = True
            if spool is not None:
                self._waiting = deque(self._spooled(spool, each) for each in self._waiting)
            if not self._waiting and spool is None:
                return
            self._is_planned = self._is_soon = True
        self._turn()

    def reconfigure(self, destination: IDestination, bounds: Bounds, spool_bytes: int | None = None) -> None:
        """Deliver elsewhere, or with other bounds, from now on; what waits goes there too.

        Args:
            destination: the next destination; the former one is closed after its delivery.
            bounds: the bounds.
            spool_bytes: the size of the spool; None leaves it.
        """
        former, self._destination = self._destination, destination
        self._bounds = bounds
        if self._spool is not None and spool_bytes is not None:
            self._spool.reconfigure(spool_bytes)
        if former is destination:
            return
        self._failed_in_a_row = 0
        if self._running is not None and not self._is_reading:
            self._running.addBoth(lambda result: former.close())
        else:
            former.close()
        if self._timer is not None and self._timer.active():
            # the wait was for the former one
            self._plan(0.0)

    def flush(self) -> None:
        """Deliver what waits now, without lingering or waiting for the end of a back-off."""
        if self._is_started and self._running is None:
            with self._lock:
                self._is_planned = self._is_soon = True
            self._plan(0.0)

    def stop(self, timeout: float) -> Deferred[None]:
        """Deliver what waits, and close the destination; then nothing more is taken.

        What is not delivered in time is dropped, or stays in the spool.

        Args:
            timeout: how long to try, in seconds.

        Returns:
            A Deferred that fires when it has stopped; it does not fail.
        """
        if self._stopping is not None or self._is_stopped:
            return self._stopping or succeed(None)
        done: Deferred[None] = Deferred()
        self._stopping = done
        self._failed_in_a_row = min(self._failed_in_a_row, STOP_FAILURES - 1)
        if not self._is_started:
            self._end()
            return done
        deadline = self._reactor.callLater(timeout, self._end)
        done.addBoth(lambda _: deadline.cancel() if deadline.active() else None)
        if self._running is None:
            with self._lock:
                self._is_planned = self._is_soon = True
            self._turn()
        return done

    def _is_full(self) -> bool:
        """Return whether a whole batch waits. Call it with the lock held."""
        return len(self._waiting) >= self._bounds.batch_items or self._bytes >= self._bounds.batch_bytes

    def _spooled(self, spool: Spool[T], queued: _Queued[T]) -> _Queued[T]:
        try:
            return msgspec.structs.replace(queued, place=spool.append(queued.item, queued.time, has_room=True)[0])
        except Exception:
            return queued

    def _wake(self, seconds: float) -> None:
        """Take a turn because of an item that was put, unless the destination is away."""
        if not self._failed_in_a_row:
            self._plan(seconds)

    def _plan(self, seconds: float) -> None:
        """Take a turn in some seconds, unless one is under way or stands for an earlier time."""
        if self._running is not None or self._is_stopped:
            return
        if self._timer is not None and self._timer.active():
            if seconds and self._timer.getTime() <= self._reactor.seconds() + seconds:
                return
            self._timer.cancel()
        if seconds:
            self._timer = self._reactor.callLater(seconds, self._turn)
        else:
            self._turn()

    def _turn(self) -> None:
        """Deliver the next batch, or read from the spool, or wait."""
        if self._running is not None or self._is_stopped:
            return
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if self._spool is not None:
            self._reports.disk(self._spool)
        with self._lock:
            self._is_soon = True
            self._drop_old()
            if not self._batch:
                self._take()
        if self._batch:
            self._deliver()
        elif self._spool is not None and not self._waiting and (not self._spool.is_read or self._is_take_over_due()):
            self._read(self._spool)
        elif self._stopping is not None and not self._waiting:
            self._end()
        else:
            with self._lock:
                if self._waiting:
                    # it was put meanwhile
                    self._is_planned, self._is_soon = True, False
                else:
                    self._is_planned = self._is_soon = False
            if self._is_planned:
                self._plan(self._bounds.linger)
            elif self._spool is not None:
                self._timer = self._reactor.callLater(TAKE_OVER_SECONDS, self._turn)

    def _take(self) -> None:
        """Take a batch. Call it with the lock held."""
        bounds, waiting, size = self._bounds, self._waiting, 0
        while waiting and len(self._batch) < bounds.batch_items:
            queued = waiting[0]
            if self._batch and size + queued.size > bounds.batch_bytes:
                break
            size += queued.size
            self._batch.append(waiting.popleft())
        self._most = len(self._batch)

    def _deliver(self) -> None:
        batch = self._batch[: self._most]
        delivering: Deferred[Any] = maybeDeferred(self._destination.deliver, [queued.item for queued in batch])
        self._running = delivering
        delivering.addTimeout(self._bounds.timeout, self._reactor)
        delivering.addCallbacks(self._was_delivered, self._has_failed, (len(batch),), errbackArgs=(len(batch),))
        delivering.addErrback(self._is_broken)
        delivering.addCallback(self._go_on)

    def _was_delivered(self, result: object, count: int) -> float:
        self._failed_in_a_row = 0
        self.delivered += count
        self._done_with(count)
        now = self._reactor.seconds()
        self._reports.delivered(now, self.queued)
        self._reports.tell_dropped(now)
        return self._linger()

    def _has_failed(self, failure: Failure, count: int) -> float:
        if self._is_stopped:
            return 0.0
        self.failures += 1
        error = failure.value
        if isinstance(error, (CancelledError, TimeoutError)):
            error = DeliveryFailed(f"it took longer than {self._bounds.timeout:g} s", retryable=True)
        if not isinstance(error, DeliveryFailed):
            self._log.failure("The delivery to {name} failed by a mistake", failure, name=self.name, once_a_second=True)
            # of many items one may be to blame: the others are delivered without it
            error = DeliveryFailed(f"a mistake ({type(error).__name__})", retryable=False, too_large=True)
        if error.too_large and count > 1:
            self._most = count // 2
            return 0.0
        if not error.retryable:
            # the destination is there, and refuses
            self._failed_in_a_row = 0
            with self._lock:
                self._drop(count, error.message)
            self._done_with(count)
            self._reports.tell_dropped(self._reactor.seconds())
            return self._linger()
        self._failed_in_a_row += 1
        self._reports.away(error.message, self._reactor.seconds(), self.queued, self.dropped)
        return self._backoff(error.retry_after)

    def _is_broken(self, failure: Failure) -> float:
        self._log.failure("The queue of {name} failed", failure, name=self.name)
        self.dropped += len(self._batch)
        self._done_with(len(self._batch))
        return self._bounds.first_backoff

    def _go_on(self, seconds: float) -> None:
        """Take the next turn in some seconds, after a delivery."""
        self._running = None
        if self._is_stopped:
            return
        if self._stopping is not None and self._failed_in_a_row >= STOP_FAILURES:
            self._end()
        elif self._spool is not None and (self._is_take_over_due() or self._spool.has_finished):
            self._read(self._spool, seconds)
        else:
            self._wait(seconds)

    def _wait(self, seconds: float) -> None:
        if self._stopping is not None and not self._failed_in_a_row:
            seconds = 0.0
        with self._lock:
            # an item that makes a batch full ends the lingering, and not a back-off
            self._is_planned, self._is_soon = True, not seconds or bool(self._failed_in_a_row)
        # also without a wait: a destination that answers at once must not fill the stack
        self._timer = self._reactor.callLater(seconds, self._turn)

    def _done_with(self, count: int) -> None:
        """Forget the first items of the batch."""
        with self._lock:
            done, self._batch = self._batch[:count], self._batch[count:]
            self._most = len(self._batch)
            self._forget(done)

    def _forget(self, done: Sequence[_Queued[T]]) -> None:
        """Count items as no longer in memory. Call it with the lock held."""
        self._bytes -= sum(queued.size for queued in done)
        if self._spool is not None:
            self._spool.delivered(queued.place for queued in done if queued.place is not None)

    def _drop_old(self) -> None:
        """Drop what is too old. Call it with the lock held."""
        if self._bounds.max_age is None:
            return
        oldest = self._reactor.seconds() - self._bounds.max_age
        old = [queued for queued in self._batch if queued.time < oldest]
        if old:
            self._batch = [queued for queued in self._batch if queued.time >= oldest]
            self._most = min(self._most, len(self._batch))
        while self._waiting and self._waiting[0].time < oldest:
            old.append(self._waiting.popleft())
        if old:
            self._forget(old)
            self._drop(len(old), "they waited for too long")

    def _linger(self) -> float:
        """Return how long to collect items for the next batch, in seconds."""
        with self._lock:
            is_full = bool(self._batch) or self._is_full() or (self._spool is not None and not self._spool.is_read)
        return 0.0 if is_full else self._bounds.linger

    def _backoff(self, retry_after: float | None) -> float:
        bounds = self._bounds
        seconds = bounds.first_backoff * 2.0 ** min(self._failed_in_a_row - 1, 30)
        seconds = min(seconds, bounds.max_backoff) * (1 - JITTER + 2 * JITTER * self._random())
        return min(max(seconds, retry_after or 0.0), bounds.max_backoff)

    def _is_take_over_due(self) -> bool:
        return self._stopping is None and bool(self._reactor.seconds() >= self._next_take_over)

    def _read(self, spool: Spool[T], seconds: float = 0.0) -> None:
        """Read from the spool in another thread, and take the next turn in some seconds."""
        is_due = self._is_take_over_due()
        if is_due:
            self._next_take_over = self._reactor.seconds() + TAKE_OVER_SECONDS
        with self._lock:
            has_room = len(self._waiting) < self._bounds.batch_items

        def work() -> None:
            if is_due:
                spool.take_over()
            spool.clear()
            if not has_room:
                return
            found = spool.read()
            with self._lock:
                self._waiting.extend(_Queued(each.item, each.size, each.time, each.place) for each in found)
                self._bytes += sum(each.size for each in found)

        self._is_reading = True
        self._running = reading = self._in_thread(work)
        reading.addErrback(self._cannot_read)
        reading.addCallback(lambda _: self._has_read(seconds))

    def _cannot_read(self, failure: Failure) -> None:
        reason = failure.value.strerror if isinstance(failure.value, OSError) else failure.value
        self._log.error("The spool of {name} cannot be read: {reason}", name=self.name, reason=str(reason))

    def _has_read(self, seconds: float) -> None:
        self._running, self._is_reading = None, False
        if not self._is_stopped:
            self._wait(seconds)

    def _drop(self, count: int, reason: str) -> None:
        """Count items that are dropped. Call it with the lock held."""
        self.dropped += count
        self._reports.count_dropped(count, reason)

    def _end(self) -> None:
        """Stop now."""
        if self._is_stopped:
            return
        with self._lock:
            self._is_stopped = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        running = self._running
        if running is not None and not self._is_reading:
            running.cancel()
        self._close()

    def _close(self) -> None:
        self._destination.close()
        with self._lock:
            left = [*self._batch, *self._waiting]
            lost = sum(queued.place is None for queued in left)
            kept = self.queued - lost
            self.dropped += lost
            self._batch, self._most = [], 0
            self._waiting.clear()
            self._bytes = 0
        if self._spool is not None:
            self._spool.close()
        self._reports.ended(lost, kept)
        stopping, self._stopping = self._stopping, None
        if stopping is not None:
            stopping.callback(None)
