"""Thousands of streams at once: the memory of each, and that stalled ones do not slow others."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.end_to_end.messages import EVENT_STREAM, OK
from tests.end_to_end.process_harness import (
    BLOCK,
    BLOCKED,
    FULL,
    Connection,
    MeasuredGateway,
    connect,
    connected,
    many_descriptors,
    request_head,
    served,
    settled,
)
from tests.end_to_end.twistd_harness import wait_until

IDLE = 5_000 if FULL else 1_000
STALLED = 1_000
#: bytes that one idle stream may take in the process
EACH = 40_000
EVENT = b"6\r\nevent\n\r\n"
ASK = request_head("GET", "/vllm/health")
STREAM = request_head("GET", "/vllm/v1/stream")
STALL = request_head("GET", "/vllm/v1/stall")


class Upstream:
    """Answers ``/health``, begins a stream, or sends until the connection is full.

    Attributes:
        stuck: how many of its connections are full.
    """

    def __init__(self) -> None:
        self.stuck = 0
        self._lock = threading.Lock()

    def serve(self, connection: Connection) -> bool:
        while head := connection.read_head():
            if b" /v1/stream " in head:
                connection.send(EVENT_STREAM + EVENT)
                return True
            if b" /v1/stall " in head:
                self._pour(connection)
                return True
            connection.send(OK)
        return False

    def _pour(self, connection: Connection) -> None:
        connection.send(EVENT_STREAM)
        connection.socket.settimeout(BLOCKED)
        try:
            while True:
                connection.send(b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK))
        except TimeoutError:
            with self._lock:
                self.stuck += 1


@contextmanager
def opened(
    gateway: MeasuredGateway, count: int, request: bytes, receive_buffer: int = 0, segment: int = 0
) -> Iterator[list[Connection]]:
    """Open so many streams, each on a connection of its own."""
    with ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = connect(gateway.port, receive_buffer, segment)
            stack.callback(client.close)
            client.send(request)
            clients.append(client)
        for client in clients:
            assert client.read_head().startswith(b"HTTP/1.1 200 OK\r\n")
        yield clients


def seconds_to_complete(gateway: MeasuredGateway) -> float:
    """Return what a request on a fresh connection takes: the median of many."""
    took = []
    for _ in range(50):
        begun = time.perf_counter()
        with connected(gateway.port) as client:
            client.send(ASK)
            assert client.read_until(b"ok").startswith(b"HTTP/1.1 200 OK\r\n")
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


def test_an_idle_stream_takes_little_memory_and_all_of_it_comes_back(tmp_path: Path) -> None:
    upstream = Upstream()
    with (
        many_descriptors(2 * IDLE + 500),
        served(upstream.serve) as server,
        MeasuredGateway(tmp_path, server.port) as gateway,
    ):
        with opened(gateway, 50, STREAM):
            pass
        sockets = settled(lambda: gateway.sockets, 5)
        before = gateway.memory
        with opened(gateway, IDLE, STREAM) as clients:
            for client in clients:
                assert client.read_until(b"event\n")
            each = (gateway.memory - before) / IDLE
            print(f"{IDLE} idle streams: {each:,.0f} bytes each, +{(gateway.memory - before) >> 20} MiB in all")
            assert each <= EACH
            assert gateway.sockets >= 2 * IDLE
        assert settled(lambda: gateway.sockets, sockets) <= sockets


def test_a_thousand_stalled_streams_do_not_slow_another(tmp_path: Path) -> None:
    upstream = Upstream()
    with (
        many_descriptors(2 * STALLED + 500),
        served(upstream.serve, buffer=65_536) as server,
        MeasuredGateway(tmp_path, server.port) as gateway,
    ):
        seconds_to_complete(gateway)
        alone = seconds_to_complete(gateway)
        before = gateway.memory
        with opened(gateway, STALLED, STALL, receive_buffer=4_096, segment=1_000):
            wait_until(lambda: upstream.stuck == STALLED)
            among = seconds_to_complete(gateway)
            print(
                f"a request alone: {alone * 1000:.2f} ms, among {STALLED} stalled streams: {among * 1000:.2f} ms; "
                f"{(gateway.memory - before) / STALLED:,.0f} bytes for each of them"
            )
        assert among < 5 * alone + 0.005
