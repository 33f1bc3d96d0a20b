"""Logs each request when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable

from twisted.logger import ILogObserver, LogLevel

from twisted_vllm.context import RequestContext
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.logging.lines import REQUEST_NAMESPACE, iso_time
from twisted_vllm.observability.logging.observer import REQUEST_KEY, LineObserver
from twisted_vllm.observability.logging.sampling import RequestSampling
from twisted_vllm.observability.logging.unsent_lines import UnsentLines
from twisted_vllm.observability.request_record import RequestRecord

#: how an observer that does not know request records shows one
REQUEST_FORMAT = (
    "{request_record.status} {request_record.method} {request_record.route} {request_record.outcome} "
    "{request_record.total_ms}ms rid={request_record.request_id}"
)


def record_emitter(observer: ILogObserver, now: Callable[[], float] = time.time) -> Callable[[RequestRecord], None]:
    """Return a function that hands a record to one log observer.

    The gateway's own observer takes the record as it is: building a full event, and the global publisher's fan-out,
    would cost more than the line itself. Any other observer gets an event of ``twisted.logger``.

    Args:
        observer: gets the records, in events under ``request_record`` unless it is the gateway's own.
        now: the time in Unix seconds.
    """
    if isinstance(observer, LineObserver):
        return observer.request

    def emit(record: RequestRecord) -> None:
        observer(
            {
                "log_format": REQUEST_FORMAT,
                "log_level": LogLevel.info,
                "log_namespace": REQUEST_NAMESPACE,
                "log_time": now(),
                REQUEST_KEY: record,
            }
        )

    return emit


class RequestLog(RequestObserver):
    """Makes a record of each finished request and hands it to one log observer."""

    def __init__(
        self,
        observer: ILogObserver,
        text: ClientText,
        client_of: Callable[[RequestContext], str],
        unsent: UnsentLines | None = None,
        now: Callable[[], float] = time.time,
        sampling: RequestSampling | None = None,
    ) -> None:
        """Make a request log.

        Args:
            observer: gets the records; see `record_emitter`.
            text: removes secrets from client-supplied text.
            client_of: returns the address of a request's client.
            unsent: decides which requests that reached no server have a line; None gives all one.
            now: the time in Unix seconds.
            sampling: decides which completed requests have a line; None gives all one.
        """
        self._text = text
        self._client_of = client_of
        self._unsent = UnsentLines(None, client_of) if unsent is None else unsent
        self._sampling = RequestSampling() if sampling is None else sampling
        self._now = now
        self._emit = record_emitter(observer, now)

    def finished(self, context: RequestContext) -> None:
        """Log a request."""
        if not context.sent and not self._unsent.has_line(context, self._now()):
            return
        sampling = self._sampling
        if sampling.share < 1.0 and not sampling.has_line(context):
            return
        self._emit(self.record(context))

    def record(self, context: RequestContext) -> RequestRecord:
        """Return the record of a request that is over."""
        text = self._text
        principal = context.principal
        duration = context.duration
        first_byte = context.first_byte
        queued = context.queued
        # in the order of its fields: by their names it costs twice as much
        return RequestRecord(
            iso_time(self._now() - duration),
            text.request_id(context),
            self._client_of(context),
            "" if principal is None else principal.name,
            "" if principal is None else principal.hash_prefix,
            context.head.method.decode("latin-1"),
            text.route(context),
            text.model(context),
            "" if context.server is None else context.server.name,
            context.status,
            context.outcome,
            context.error_code,
            context.bytes_in,
            context.bytes_out,
            None if first_byte is None else round((first_byte - context.started) * 1000, 3),
            round(duration * 1000, 3),
            None if queued is None else round(queued * 1000, 3),
            context.repeated_as,
            context.failed_attempts if context.attempts else "",
            context.fallback,
            "" if context.trace is None else context.trace.trace_id,
        )
