"""Connections to PostgreSQL on which no thread waits without end.

A server that is frozen, and a network that swallows packets, answer nothing: neither a statement nor its cancellation,
and no timeout of the server's own ends. So the client counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

from twisted_vllm.storage.deadline import Deadline

RV = TypeVar("RV")

#: seconds that a thread waits for an answer between two pieces of work, as to the ping of an idle connection
IDLE_SECONDS = 2.0
#: seconds after its deadline that the server has for its own error, which says more
GRACE_SECONDS = 1.0
#: the longest wait for a server to take a cancellation, in seconds
CANCEL_SECONDS = 1.0
#: seconds between two looks at the deadline
_INTERVAL = 0.1


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that closes itself when an answer does not come in time.

    Attributes:
        deadline: of the work that uses it; None between two pieces of work.
    """

    deadline: Deadline | None = None

    def wait(self, gen: PQGen[RV], interval: float = _INTERVAL, timeout: float | None = None) -> RV:
        """Wait for an answer, as psycopg does, until the deadline.

        Raises:
            OperationalError: it did not come. The connection is closed, so the server ends the transaction.
        """
        return super().wait(self._until_deadline(gen), interval, timeout)

    def _until_deadline(self, gen: PQGen[RV]) -> Generator[Any, Any, RV]:
        """Pass on what psycopg's generator and its loop exchange; the loop sends nothing when an interval is over."""
        deadline = self.deadline
        last = Deadline(IDLE_SECONDS if deadline is None else min(deadline.remaining, deadline.answer) + GRACE_SECONDS)
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and (last.is_over or (deadline is not None and deadline.cancelled)):
                    self._give_up(deadline)
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # StopIteration's value has no type

    def _give_up(self, deadline: Deadline | None) -> None:
        if deadline is not None and deadline.cancelled:
            # The server is told, or its statement would go on to its own timeout.
            with contextlib.suppress(psycopg.Error):
                self.cancel_safe(timeout=CANCEL_SECONDS)
        self.pgconn.finish()
        seconds = IDLE_SECONDS if deadline is None else deadline.answer
        raise psycopg.OperationalError(f"no answer within {seconds:g} s")
