"""Publishes what a request leaves in the log."""

from __future__ import annotations

import time
from collections.abc import Callable

from twisted.logger import ILogObserver, LogLevel

from twisted_vllm.observe.lines import REQUEST_NAMESPACE
from twisted_vllm.observe.observers import REQUEST_KEY
from twisted_vllm.observe.record import RequestRecord

#: how an observer that does not know request records shows one
REQUEST_FORMAT = (
    "{request_record.status} {request_record.method} {request_record.route} {request_record.outcome} "
    "{request_record.total_ms}ms rid={request_record.request_id}"
)

#: looked up once: an attribute of LogLevel costs as much as a whole event
_INFO = LogLevel.info


class RequestLog:
    """Hands each record to one observer, as an event of ``twisted.logger``.

    The observer is called directly and not through the global publisher: its fan-out and the building of a full event
    would cost more than the line itself.
    """

    def __init__(self, observer: ILogObserver, seconds: Callable[[], float] = time.time) -> None:
        """Make a request log.

        Args:
            observer: sees events with the record under ``request_record``.
            seconds: the clock, in seconds since 1970.
        """
        self._observer = observer
        self._seconds = seconds

    def emit(self, record: RequestRecord) -> None:
        """Log one finished request; call it once, at the request's end."""
        self._observer(
            {
                "log_format": REQUEST_FORMAT,
                "log_level": _INFO,
                "log_namespace": REQUEST_NAMESPACE,
                "log_time": self._seconds(),
                REQUEST_KEY: record,
            }
        )
