"""Publishes what a request leaves in the log."""

from __future__ import annotations

import time
from collections.abc import Callable

from twisted.logger import ILogObserver, LogLevel

from twisted_vllm.observability.logging.lines import REQUEST_NAMESPACE
from twisted_vllm.observability.logging.observer import REQUEST_KEY, LineObserver
from twisted_vllm.observability.request_record import RequestRecord

#: how an observer that does not know request records shows one
REQUEST_FORMAT = (
    "{request_record.status} {request_record.method} {request_record.route} {request_record.outcome} "
    "{request_record.total_ms}ms rid={request_record.request_id}"
)


class RequestLog:
    """Hands each record to one observer.

    The gateway's own observer takes the record as it is: the building of a full event, and the global publisher's
    fan-out, would cost more than the line itself. Any other observer gets an event of ``twisted.logger``.
    """

    def __init__(self, observer: ILogObserver, seconds: Callable[[], float] = time.time) -> None:
        """Make a request log.

        Args:
            observer: sees the records, in events under ``request_record`` unless it is the gateway's own.
            seconds: the clock, in seconds since 1970.
        """
        self._observer = observer
        self._seconds = seconds
        self.emit: Callable[[RequestRecord], None] = (
            observer.request if isinstance(observer, LineObserver) else self._publish
        )

    def _publish(self, record: RequestRecord) -> None:
        self._observer(
            {
                "log_format": REQUEST_FORMAT,
                "log_level": LogLevel.info,
                "log_namespace": REQUEST_NAMESPACE,
                "log_time": self._seconds(),
                REQUEST_KEY: record,
            }
        )
