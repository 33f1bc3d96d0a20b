"""Threads that do one kind of work in the database, in order, so that one kind does not wait for another."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.storage.errors import RETRY_SECONDS

T = TypeVar("T")

#: pieces of work that may wait for a thread of a lane; more are refused
MAX_WAITING = 1_000
#: seconds that the end of the process waits for what still runs
STOP_SECONDS = 2.0


class _DaemonThread(Thread):
    """A thread that does not keep the process alive: it may be stuck in the database's driver."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named, daemon=True)


class _DaemonPool(ThreadPool):
    # a class and not a partial, which Python 3.14 would bind to the pool
    threadFactory = _DaemonThread


class Lane:
    """A few threads and a bounded queue in front of them. All methods belong to the reactor's thread.

    Attributes:
        unfinished: how many pieces of work run or wait.
    """

    def __init__(self, reactor: IReactorFromThreads, name: str, threads: int) -> None:
        """Make a lane; its threads start with its first work.

        Args:
            reactor: Deferreds fire in its thread.
            name: of the threads.
            threads: how many pieces of work may run at a time.
        """
        self.unfinished = 0
        self._reactor = reactor
        self._threads = threads
        self._pool = _DaemonPool(0, threads, name=name)
        self._pool.start()
        self._idle: Deferred[None] | None = None

    def run(self, work: Callable[[], T]) -> Deferred[T]:
        """Do work in a thread, after earlier work.

        Raises:
            StoreUnavailable: too much waits already.
        """
        if self.unfinished >= self._threads + MAX_WAITING:
            return fail(
                StoreUnavailable(
                    "Too many administrative requests wait for the database. Try again.", retry_after=RETRY_SECONDS
                )
            )
        self.unfinished += 1
        # A thread of the pool holds its last task until the next one comes: let it hold nothing.
        held = [work]
        done: Deferred[T] = deferToThreadPool(self._reactor, self._pool, lambda: held.pop()())
        return done.addBoth(self._finished)

    def stop(self, clock: IReactorTime) -> Deferred[None]:
        """Wait until the work is done, for `STOP_SECONDS` at most, and end the threads that are idle then.

        Work that is stuck is abandoned: the end of the process closes its connection, and the database rolls it back.
        """
        stopped: Deferred[None] = Deferred()
        if not self.unfinished:
            self._end()
            stopped.callback(None)
            return stopped
        self._idle = Deferred()
        self._idle.addTimeout(STOP_SECONDS, clock, onTimeoutCancel=lambda _cancelled, _seconds: None)
        return self._idle.addCallback(lambda _: self._end())

    def _end(self) -> None:
        if not self.unfinished:
            # This joins the threads, which are idle.
            self._pool.stop()

    def _finished(self, result: T) -> T:
        self.unfinished -= 1
        idle = self._idle
        if self.unfinished == 0 and idle is not None and not idle.called:
            # In the next turn: what waits for this result comes first.
            self._reactor.callFromThread(lambda: None if idle.called else idle.callback(None))
        return result
