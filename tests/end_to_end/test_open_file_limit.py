"""A process at its limit of open files closes connections that it cannot serve, goes on, and recovers."""

from __future__ import annotations

import resource
import time
from contextlib import ExitStack
from pathlib import Path

from tests.end_to_end.messages import OK
from tests.end_to_end.process_harness import Connection, MeasuredGateway, connected, request_head, served
from tests.end_to_end.twistd_harness import wait_until


def answers(connection: Connection) -> None:
    while connection.read_head():
        connection.send(OK)


def test_it_serves_open_connections_and_new_ones_when_there_is_room(tmp_path: Path) -> None:
    with served(answers) as server, MeasuredGateway(tmp_path, server.port) as gateway:
        with connected(gateway.port) as first:
            first.send(request_head("GET", "/vllm/v1/models"))
            assert first.read_until(b"ok").startswith(b"HTTP/1.1 200 OK\r\n")
            before = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
            opened = len(list(Path(f"/proc/{gateway.pid}/fd").iterdir()))
            resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (opened + 5, before[1]))
            with ExitStack() as stack:
                clients = [stack.enter_context(connected(gateway.port)) for _ in range(40)]
                # connections over the limit are closed and not left waiting
                closed = [client for client in clients[-5:] if client.read_to_end() == b""]
                assert len(closed) == 5
                began = gateway.cpu_seconds
                time_passes = time.monotonic() + 0.5
                wait_until(lambda: time.monotonic() > time_passes)
                assert gateway.cpu_seconds - began < 0.25, "it is busy while it waits"
                # open connections are still served
                first.send(request_head("GET", "/health/liveliness"))
                assert first.read_head().startswith(b"HTTP/1.1 200 OK\r\n")
                # without a descriptor for it, the server counts as unreachable
                clients[0].send(request_head("GET", "/vllm/v1/models"))
                first.read_until(b"alive")
                status = clients[0].read_head().split(b" ")[1]
                assert status in (b"200", b"502")
            resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, before)
        with connected(gateway.port) as again:
            again.send(request_head("GET", "/vllm/v1/models"))
            assert again.read_until(b"ok").startswith(b"HTTP/1.1 200 OK\r\n")
