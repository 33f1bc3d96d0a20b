"""A process that may open no more files closes whom it cannot serve, goes on, and serves again when there is room."""

from __future__ import annotations

import os
import resource
import time
from contextlib import ExitStack
from pathlib import Path

from tests.end_to_end.process_harness import OK, Connection, MeasuredGateway, connected, request_head, served
from tests.end_to_end.twistd_harness import wait_until


def answers(connection: Connection) -> None:
    while connection.read_head():
        connection.send(OK)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_it_serves_those_that_it_has_and_others_when_there_is_room(tmp_path: Path) -> None:
    with served(answers) as server, MeasuredGateway(tmp_path, server.port) as gateway:
        with connected(gateway.port) as first:
            first.send(request_head("GET", "/vllm/v1/models"))
            assert first.read_until(b"ok").startswith(b"HTTP/1.1 200 OK\r\n")
            before = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
            opened = len(list(Path(f"/proc/{gateway.pid}/fd").iterdir()))
            resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (opened + 5, before[1]))
            with ExitStack() as stack:
                crowd = [stack.enter_context(connected(gateway.port)) for _ in range(40)]
                # those that there was no room for are closed, not left waiting
                closed = [client for client in crowd[-5:] if client.read_to_end() == b""]
                assert len(closed) == 5
                began = cpu_seconds(gateway.pid)
                time_passes = time.monotonic() + 0.5
                wait_until(lambda: time.monotonic() > time_passes)
                assert cpu_seconds(gateway.pid) - began < 0.25, "it turns in circles"
                # whoever is there is served on
                first.send(request_head("GET", "/health/liveliness"))
                assert first.read_head().startswith(b"HTTP/1.1 200 OK\r\n")
                # a server that cannot be connected to for want of a descriptor is one that cannot be reached
                crowd[0].send(request_head("GET", "/vllm/v1/models"))
                first.read_until(b"alive")
                status = crowd[0].read_head().split(b" ")[1]
                assert status in (b"200", b"502")
            resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, before)
        with connected(gateway.port) as again:
            again.send(request_head("GET", "/vllm/v1/models"))
            assert again.read_until(b"ok").startswith(b"HTTP/1.1 200 OK\r\n")
