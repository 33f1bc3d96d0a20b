"""The sink of type ``database``: prompts and answers go to the gateway's own database, by the rows of requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy.exc import SQLAlchemyError
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import LogEvent, Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_vllm.config.secret import Secret
from twisted_vllm.context import RequestContext
from twisted_vllm.observability.delivery.interfaces import DeliveryFailed, IBlockingDestination, IDestination
from twisted_vllm.observability.request_event import RequestEvent
from twisted_vllm.storage.deadline import Deadline, WorkStopped
from twisted_vllm.storage.engine import begin, make_engine, parse_url, reason_of
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.request_contents import KeptContents, trim_contents, write_contents
from twisted_vllm.storage.sqlite_file import check_file, watch_file

#: seconds that a transaction may take on PostgreSQL
_SECONDS = 8.0
#: seconds between two looks for what is too old or too much
TRIM_SECONDS = 60.0

_encode = msgspec.json.Encoder().encode


class _Item(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What waits for the database: `KeptContents`, whose body is not read again."""

    id: str
    time: int
    body: msgspec.Raw


_item = msgspec.json.Decoder(_Item).decode


class ContentsEncoder:
    """Items with the id of a request's row in the ledger, and what was kept of it."""

    def request(self, event: RequestEvent, context: RequestContext) -> bytes:
        """Return the item of a request; an empty one if nothing was kept, or the ledger has no row of it."""
        if event.contents is None or not context.row_id:
            return b""
        # the row's time
        return _encode(_Item(context.row_id, int(context.started * 1e6), event.contents))

    def line(self, event: LogEvent) -> bytes:
        """Return nothing: log lines are not kept."""
        return b""


@implementer(IBlockingDestination)
class ContentsDestination:
    """Writes batches to the database. One without items deletes what is too old or too much."""

    def __init__(self, url: Secret, keep_for: float, max_bytes: int, now: Callable[[], float]) -> None:
        """Set up; it connects with the first batch.

        Args:
            url: of the gateway's database.
            keep_for: how long prompts and answers are kept, in seconds.
            max_bytes: the most bytes of all.
            now: Unix seconds.

        Raises:
            DeliveryFailed: the database cannot be used.
        """
        self._url = url
        self._keep_for = keep_for
        self._max_bytes = max_bytes
        self._now = now
        try:
            self._engine = make_engine(parse_url(url), connections=1, must_exist=True)
        except StoreError as error:
            raise DeliveryFailed(str(error), retryable=True) from None
        watch_file(self._engine)
        self._is_sqlite = self._engine.dialect.name == "sqlite"

    def deliver(self, batch: Sequence[bytes]) -> None:
        """Write a batch in one transaction."""
        items = [_item(each) for each in batch]
        try:
            if not items:
                trim_contents(self._engine, int((self._now() - self._keep_for) * 1e6), self._max_bytes, _SECONDS)
                return
            deadline = None if self._is_sqlite else Deadline(_SECONDS)
            with begin(self._engine, deadline, writes=True) as connection:
                write_contents(connection, [KeptContents(each.id, each.time, bytes(each.body)) for each in items])
            check_file(self._engine)
        except WorkStopped:
            problem = f"a batch took longer than {_SECONDS:g} s"
        except SQLAlchemyError as error:
            problem = reason_of(error, self._url)
        else:
            return
        # Outside the except blocks: the driver's error may show secrets.
        raise DeliveryFailed(problem, retryable=True)

    def close(self) -> None:
        """Close the connection."""
        self._engine.dispose()


@implementer(IDestination)
class TrimmedDestination:
    """A destination in a thread that is given a batch without items now and then."""

    _log = Logger()

    def __init__(self, inner: IDestination, reactor: Any) -> None:
        """Begin to count the time.

        Args:
            inner: the `ContentsDestination` in its thread.
            reactor: a provider of ``IReactorTime``.
        """
        self._inner = inner
        self._trimmed: Deferred[None] | None = None
        self._deliveries = 0
        self._is_due = False
        self._trimming = LoopingCall(self._trim)
        self._trimming.clock = reactor
        self._trimming.start(TRIM_SECONDS, now=False)

    def deliver(self, batch: Sequence[bytes]) -> Deferred[None]:
        """Deliver a batch, after one without items that is on its way."""
        waiting, self._trimmed = self._trimmed, None
        self._deliveries += 1
        delivered: Deferred[None] = self._inner.deliver(batch) if waiting is None else waiting
        if waiting is not None:
            delivered.addCallback(lambda _: self._inner.deliver(batch))
        return delivered.addBoth(self._delivered)

    def close(self) -> None:
        """Close the inner one. Idempotent."""
        if self._trimming.running:
            self._trimming.stop()
        self._inner.close()

    def _delivered(self, result: Failure | None) -> Failure | None:
        self._deliveries -= 1
        if self._is_due and self._trimming.running:
            self._trim()
        return result

    def _trim(self) -> None:
        self._is_due = self._deliveries > 0
        if not self._is_due and self._trimmed is None:
            trimmed = self._trimmed = self._inner.deliver(())
            trimmed.addErrback(self._failed).addCallback(self._end, trimmed)

    def _end(self, _result: None, trimmed: Deferred[None]) -> None:
        if self._trimmed is trimmed:
            self._trimmed = None

    def _failed(self, failure: Failure) -> None:
        # the next round does what this one could not
        error = failure.value
        reason = error.message if isinstance(error, DeliveryFailed) else type(error).__name__
        self._log.debug("Old prompts and answers are not deleted yet: {reason}", reason=reason)
