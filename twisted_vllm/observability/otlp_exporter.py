"""Exports by OpenTelemetry's official exporters: traces, metrics and logs, over HTTP and gRPC.

It imports the OpenTelemetry SDK, so it is imported only where OTLP is configured.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
from google.protobuf.message import DecodeError
from twisted.logger import Logger

from twisted_vllm.config.tracing_destinations import GRPC, TraceDestination
from twisted_vllm.observability.delivery.interfaces import DeliveryFailed
from twisted_vllm.observability.otlp_session import OwnSession, keep_messages

#: answers after which the same export may be taken later (OTLP specification, "Failures")
_RETRYABLE = frozenset((0, 408, 429, 500, 502, 503, 504))
_RETRYABLE_CODES = frozenset(
    ("CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")
)
_TOO_LARGE = 413
#: characters of a receiver's own words in the log
_MOST_SAID = 200


@attrs.frozen
class Signal:
    """One kind of telemetry, as the official packages name it.

    Attributes:
        items: what it consists of, in words.
        module: the name of the exporters' modules, for either protocol.
        exporter: the name of the exporters' classes.
        answer: the module and the class of the receiver's answer.
        rejected: the member of the answer that counts what was rejected.
    """

    items: str
    module: str
    exporter: str
    answer: tuple[str, str]
    rejected: str


_COLLECTOR = "opentelemetry.proto.collector"
TRACES = Signal(
    "spans",
    "trace_exporter",
    "OTLPSpanExporter",
    (f"{_COLLECTOR}.trace.v1.trace_service_pb2", "ExportTraceServiceResponse"),
    "rejected_spans",
)
METRICS = Signal(
    "data points",
    "metric_exporter",
    "OTLPMetricExporter",
    (f"{_COLLECTOR}.metrics.v1.metrics_service_pb2", "ExportMetricsServiceResponse"),
    "rejected_data_points",
)
LOGS = Signal(
    "log records",
    "_log_exporter",
    "OTLPLogExporter",
    (f"{_COLLECTOR}.logs.v1.logs_service_pb2", "ExportLogsServiceResponse"),
    "rejected_log_records",
)


class OtlpExporter:
    """An official exporter that sends what one destination needs, and tells why an export failed.

    One thread at a time may use it.
    """

    _log = Logger()

    def __init__(self, destination: TraceDestination, signal: Signal) -> None:
        """Make the exporter.

        Args:
            destination: where to export to; the names of its files are absolute.
            signal: what is exported.
        """
        self._messages = keep_messages()
        self._name = destination.name
        self._signal = signal
        module, name = signal.answer
        self._answer: Any = getattr(import_module(module), name)
        self._session: OwnSession | None = None
        if destination.protocol == GRPC:
            self._exporter: Any = _grpc_exporter(destination, signal)
        else:
            self._session = OwnSession(
                revealed(destination),
                ca_file=destination.ca_file,
                certificate_file=destination.certificate_file,
                key_file=destination.key_file,
            )
            self._exporter = _http_exporter(destination, self._session, signal)

    def export(self, data: Any) -> None:
        """Export, and wait for the answer.

        Raises:
            DeliveryFailed: the receiver did not take it.
        """
        self._messages.take()
        result = self._exporter.export(data)
        _, arguments = self._messages.take()
        if result.name != "SUCCESS":
            raise self._failure(arguments)
        self._tell_of_rejected()

    def close(self) -> None:
        """Close the connections."""
        self._exporter.shutdown()
        self._messages.take()

    def _failure(self, arguments: tuple[Any, ...]) -> DeliveryFailed:
        session = self._session
        if session is not None:
            status = session.status
            if not status:
                return DeliveryFailed(session.problem or "it cannot be reached", retryable=True)
            retry_after = float(session.retry_after) if session.retry_after.isdecimal() else None
            return DeliveryFailed(
                f"it redirects elsewhere ({status})" if 300 <= status < 400 else f"it answered {status}",
                retryable=status in _RETRYABLE,
                retry_after=retry_after,
                too_large=status == _TOO_LARGE,
            )
        code = next((each.name for each in arguments if type(each).__name__ == "StatusCode"), "UNAVAILABLE")
        return DeliveryFailed(f"it answered {code}", retryable=code in _RETRYABLE_CODES)

    def _tell_of_rejected(self) -> None:
        """Warn if the receiver took only a part, which the exporters do not look at."""
        if self._session is None or not self._session.answer:
            return
        try:
            said = self._answer.FromString(self._session.answer).partial_success
        except DecodeError:
            # not protobuf: only the status counts
            return
        count = getattr(said, self._signal.rejected)
        if count > 0:
            self._log.warn(
                "{name} rejected {count} {items}: {reason}",
                name=self._name,
                count=count,
                items=self._signal.items,
                reason="".join(each if each.isprintable() else " " for each in said.error_message[:_MOST_SAID]),
                once_a_second=self._name,
            )


def revealed(destination: TraceDestination) -> dict[str, str]:
    """Return the headers of a destination as they are sent."""
    return {name: value.reveal() for name, value in destination.headers.items()}


def _http_exporter(destination: TraceDestination, session: OwnSession, signal: Signal) -> Any:
    package = "opentelemetry.exporter.otlp.proto.http"
    compression = import_module(package).Compression
    return getattr(import_module(f"{package}.{signal.module}"), signal.exporter)(
        endpoint=destination.endpoint,
        headers={},
        timeout=destination.timeout,
        compression=compression.Gzip if destination.compression == "gzip" else compression.NoCompression,
        session=session,
    )


def _grpc_exporter(destination: TraceDestination, signal: Signal) -> Any:
    import grpc

    def content(name: str | None) -> bytes | None:
        return None if name is None else Path(name).read_bytes()

    credentials = None
    secure = destination.endpoint.startswith("https://")
    if secure:
        certificate = content(destination.certificate_file)
        key = content(destination.key_file) or certificate
        credentials = grpc.ssl_channel_credentials(content(destination.ca_file), key, certificate)
    module = import_module(f"opentelemetry.exporter.otlp.proto.grpc.{signal.module}")
    return getattr(module, signal.exporter)(
        endpoint=destination.endpoint,
        insecure=not secure,
        credentials=credentials,
        # without any, it would take those of the environment
        headers=tuple(revealed(destination).items()) or (("x-sent-by", "vllm-passthrough"),),
        timeout=destination.timeout,
        compression=grpc.Compression.Gzip if destination.compression == "gzip" else grpc.Compression.NoCompression,
    )
