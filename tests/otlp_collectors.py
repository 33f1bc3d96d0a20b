"""Real receivers of OTLP: over HTTP and over gRPC, with the official protobuf."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)


class Collected:
    """What came to a collector.

    Attributes:
        spans: all spans, in the order in which they came.
        resources: the attributes of the resource of each.
        headers: the headers of each export, by lower-case name.
        paths: the path of each export.
        status: what is answered over HTTP.
        body: what is answered over HTTP in place of the usual.
        delay: how long an answer takes, in seconds.
        code: what is answered over gRPC; None takes the spans.
    """

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.status = 200
        self.body: bytes | None = None
        self.delay = 0.0
        self.code: grpc.StatusCode | None = None
        self.port = 0

    def take(self, request: Any, headers: dict[str, str], path: str) -> None:
        self.headers.append(headers)
        self.paths.append(path)
        if self.delay:
            time.sleep(self.delay)
        if self.status != 200 or self.code is not None:
            return
        for resource in request.resource_spans:
            attributes = attributes_of(resource.resource)
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(span)
                    self.resources.append(attributes)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def attributes_of(holder: Any) -> dict[str, Any]:
    """The attributes of a span, an event or a resource as plain values."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in holder.attributes}


class HttpCollector(Collected):
    """A collector over HTTP; it can stop and come back at the same port."""

    def __init__(self) -> None:
        super().__init__()
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        collected = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                headers = {name.lower(): value for name, value in self.headers.items()}
                collected.take(ExportTraceServiceRequest.FromString(body), headers, self.path)
                answer = collected.body
                if answer is None:
                    answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(collected.status)
                if 300 <= collected.status < 400:
                    self.send_header("location", "http://127.0.0.1:9/elsewhere")
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                # the client went away
                pass

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class GrpcCollector(Collected):
    """A collector over gRPC."""

    def __init__(self) -> None:
        super().__init__()
        self._server: Any = None

    def start(self) -> None:
        collected = self

        class Servicer(TraceServiceServicer):  # type: ignore[misc]  # gRPC is not annotated
            def Export(self, request: Any, context: Any) -> Any:
                headers = {each.key: each.value for each in context.invocation_metadata()}
                collected.take(request, headers, "")
                if collected.code is not None:
                    context.abort(collected.code, "no")
                return ExportTraceServiceResponse()

        self._server = grpc.server(ThreadPoolExecutor(2))
        add_TraceServiceServicer_to_server(Servicer(), self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None


@contextmanager
def running(make: Callable[[], Any]) -> Iterator[Any]:
    """Run a collector."""
    collector = make()
    collector.start()
    try:
        yield collector
    finally:
        collector.stop()
