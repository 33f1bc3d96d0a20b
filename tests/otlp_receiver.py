"""A receiver of OTLP over HTTP and over gRPC for all three signals, which decodes the official protobuf."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import attrs
import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

_REQUESTS: dict[str, tuple[Any, Any]] = {
    "traces": (trace_service_pb2.ExportTraceServiceRequest, trace_service_pb2.ExportTraceServiceResponse),
    "metrics": (metrics_service_pb2.ExportMetricsServiceRequest, metrics_service_pb2.ExportMetricsServiceResponse),
    "logs": (logs_service_pb2.ExportLogsServiceRequest, logs_service_pb2.ExportLogsServiceResponse),
}


def _set_event() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@attrs.define
class Export:
    """One export.

    Attributes:
        signal: ``traces``, ``metrics`` or ``logs``.
        path: the path; empty over gRPC.
        headers: the headers by lower-case name.
        data: the decoded request.
    """

    signal: str
    path: str
    headers: dict[str, str]
    data: Any


@attrs.define
class OtlpReceiver:
    """What came, and what is answered.

    Attributes:
        url: its base.
        exports: what came.
        status: the status that is answered over HTTP.
        code: what is answered over gRPC; None takes the export.
        answer: the body that is answered over HTTP; None is the usual.
        arrived: set when an export came.
        released: cleared, no answer is given over HTTP until it is set again.
    """

    url: str = ""
    exports: list[Export] = attrs.field(factory=list)
    status: int = 200
    code: Any = None
    answer: bytes | None = None
    arrived: threading.Event = attrs.field(factory=threading.Event)
    released: threading.Event = attrs.field(factory=_set_event)

    def metrics(self, number: int = -1) -> dict[str, Any]:
        """The metrics of an export, by name."""
        return {
            metric.name: metric
            for resource in self.exports[number].data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def spans(self) -> list[Any]:
        """All spans, in the order in which they came."""
        return [
            span
            for export in self.exports
            if export.signal == "traces"
            for resource in export.data.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def records(self) -> list[Any]:
        """All log records, in the order in which they came."""
        return [
            record
            for export in self.exports
            if export.signal == "logs"
            for resource in export.data.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    def take(self, signal: str, path: str, headers: dict[str, str], body: Any) -> None:
        """Keep an export."""
        self.exports.append(Export(signal, path, headers, body))
        self.arrived.set()


def plain(holder: Any) -> dict[str, Any]:
    """The attributes of a span, a record, a data point or a resource as plain values."""
    return {each.key: _plain(each.value) for each in holder.attributes}


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_plain(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)


@contextmanager
def http_receiver(port: int = 0) -> Iterator[OtlpReceiver]:
    """Run a receiver over HTTP, at a free port unless one is given; the signal is the end of the path."""
    received = OtlpReceiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            signal = self.path.rpartition("/")[2]
            request, response = _REQUESTS[signal]
            headers = {name.lower(): value for name, value in self.headers.items()}
            received.take(signal, self.path, headers, request.FromString(body))
            received.released.wait()
            answer = response().SerializeToString() if received.answer is None else received.answer
            self.send_response(received.status)
            if 300 <= received.status < 400:
                self.send_header("location", "http://127.0.0.1:9/elsewhere")
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    received.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def grpc_receiver() -> Iterator[OtlpReceiver]:
    """Run a receiver over gRPC."""
    received = OtlpReceiver()

    def servicer(signal: str) -> Any:
        class Servicer:
            def Export(self, request: Any, context: Any) -> Any:
                headers = {each.key: each.value for each in context.invocation_metadata()}
                received.take(signal, "", headers, request)
                if received.code is not None:
                    context.abort(received.code, "no")
                return _REQUESTS[signal][1]()

        return Servicer()

    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer("traces"), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(servicer("metrics"), server)
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(servicer("logs"), server)
    received.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield received
    finally:
        server.stop(0).wait()
