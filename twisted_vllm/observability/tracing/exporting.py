"""Exports spans by OpenTelemetry's official exporters, in a thread of its own.

It imports the OpenTelemetry SDK, so it is imported only where traces are configured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from twisted.logger import Logger
from zope.interface import implementer

from twisted_vllm.config.tracing_destinations import GRPC, TraceDestination
from twisted_vllm.observability.delivery.interfaces import DeliveryFailed, IBlockingDestination
from twisted_vllm.observability.otlp_session import OwnSession, keep_messages
from twisted_vllm.observability.tracing.spans import SpanMaker
from twisted_vllm.observability.tracing.traced_request import TracedRequest

#: answers after which the same export may be taken later (OTLP specification, "Failures")
_RETRYABLE = frozenset((0, 408, 429, 500, 502, 503, 504))
_RETRYABLE_CODES = frozenset(
    ("CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")
)
_TOO_LARGE = 413


@implementer(IBlockingDestination)
class SpanDestination:
    """Makes spans of requests and exports them."""

    _log = Logger()

    def __init__(self, destination: TraceDestination, resource: Mapping[str, str]) -> None:
        """Make the exporter.

        Args:
            destination: where they go; the names of its files are absolute.
            resource: attributes of the gateway.
        """
        self._messages = keep_messages()
        self._maker = SpanMaker({**resource, **destination.resource}, destination.conventions)
        self._session: OwnSession | None = None
        self._name = destination.name
        revealed = {name: value.reveal() for name, value in destination.headers.items()}
        if destination.protocol == GRPC:
            self._exporter: SpanExporter = _grpc_exporter(destination, revealed)
        else:
            self._session = OwnSession(
                revealed,
                ca_file=destination.ca_file,
                certificate_file=destination.certificate_file,
                key_file=destination.key_file,
            )
            self._exporter = _http_exporter(destination, self._session)

    def deliver(self, batch: Sequence[TracedRequest]) -> None:
        """Export the spans of requests.

        Raises:
            DeliveryFailed: the receiver did not take them.
        """
        spans = [span for traced in batch for span in self._maker.spans(traced)]
        self._messages.take()
        result = self._exporter.export(spans)
        _, arguments = self._messages.take()
        if result is not SpanExportResult.SUCCESS:
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
                return DeliveryFailed("it cannot be reached, or does not answer in time", retryable=True)
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
        """Warn if the receiver took only some of the spans, which the exporter does not look at."""
        if self._session is None or not self._session.answer:
            return
        try:
            said = ExportTraceServiceResponse.FromString(self._session.answer).partial_success
        except DecodeError:
            # JSON, or whatever else it thinks is an answer; the status counts
            return
        if said.rejected_spans > 0:
            self._log.warn(
                "{name} rejected {count} spans: {reason}",
                name=self._name,
                count=said.rejected_spans,
                reason="".join(each if each.isprintable() else " " for each in said.error_message[:200]),
                once_a_second=self._name,
            )


def _http_exporter(destination: TraceDestination, session: OwnSession) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(
        endpoint=destination.endpoint,
        headers={},
        timeout=destination.timeout,
        compression=Compression.Gzip if destination.compression == "gzip" else Compression.NoCompression,
        session=session,
    )


def _grpc_exporter(destination: TraceDestination, headers: Mapping[str, str]) -> SpanExporter:
    import grpc
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    secure = destination.endpoint.startswith("https://")

    def content(name: str | None) -> bytes | None:
        return None if name is None else Path(name).read_bytes()

    credentials = None
    if secure:
        certificate = content(destination.certificate_file)
        key = content(destination.key_file) or certificate
        credentials = grpc.ssl_channel_credentials(content(destination.ca_file), key, certificate)
    return OTLPSpanExporter(
        endpoint=destination.endpoint,
        insecure=not secure,
        credentials=credentials,
        # without any, it would take those of the environment
        headers=tuple(headers.items()) or (("x-sent-by", "vllm-passthrough"),),
        timeout=destination.timeout,
        compression=grpc.Compression.Gzip if destination.compression == "gzip" else grpc.Compression.NoCompression,
    )
