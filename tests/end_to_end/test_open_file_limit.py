"""A process at its limit of open files: admitted requests reach their server, the rest are refused, all is told."""

from __future__ import annotations

import json
import re
import resource
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from tests.end_to_end.end_to_end_harness import HOST
from tests.end_to_end.ledger_harness import rows_in
from tests.end_to_end.messages import OK
from tests.end_to_end.process_harness import Connection, MeasuredGateway, connected, request_head, served
from tests.end_to_end.twistd_harness import PATIENCE, Configured, ask, wait_until

#: the limit of the process, the clients, and for how long they ask, in seconds
OPEN_FILES = 256
CLIENTS = 200
SECONDS = 4.0

CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"


def answers(connection: Connection) -> None:
    while connection.read_head():
        connection.send(OK)


def closes_each_time(connection: Connection) -> None:
    if connection.read_head():
        time.sleep(0.05)
        connection.send(CLOSING)


def ask_until(end: float, port: int, found: Counter[str]) -> None:
    """Ask again and again, on a new connection after each answer that is no 200."""
    connection: socket.socket | None = None
    while time.monotonic() < end:
        try:
            if connection is None:
                connection = socket.create_connection((HOST, port), timeout=PATIENCE)
            connection.sendall(request_head("GET", "/vllm/v1/models"))
            status = connection.recv(65_536)[9:12].decode() or "closed"
        except OSError:
            status = "closed"
        found[status] += 1
        if status != "200" and connection is not None:
            connection.close()
            connection = None
            time.sleep(0.02)
    if connection is not None:
        connection.close()


def lines_of(directory: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (directory / "gateway.log").read_text().splitlines()]


def test_with_256_files_and_200_clients_every_admitted_request_reaches_its_server(tmp_path: Path) -> None:
    """It was 62 times a 502, and 18,000 lines of the log."""
    found: Counter[str] = Counter()
    with served(closes_each_time) as server:
        gateway = MeasuredGateway(tmp_path, server.port)
        # while it loads its modules: it reads the limit after that
        _, hard = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (OPEN_FILES, hard))
        with gateway:
            end = time.monotonic() + SECONDS
            clients = [threading.Thread(target=ask_until, args=(end, gateway.port, found)) for _ in range(CLIENTS)]
            for client in clients:
                client.start()
            most = 0
            while any(client.is_alive() for client in clients):
                most = max(most, len(gateway.open_files))
                time.sleep(0.05)
            metrics = ask(gateway.port, "/metrics")[1]
    assert found["200"] > 100
    assert found["503"] > 0
    assert set(found) <= {"200", "503", "closed"}, found
    assert most < OPEN_FILES - 16
    assert re.findall(r"socket_shortages_total\{.*\} (?!0\.0).*", metrics) == []
    told = Counter(line["message"] for line in lines_of(tmp_path) if "message" in line)
    assert max(told.values()) <= SECONDS + 2, told
    assert any("At most 72 client connections at once, and 18 of one address" in message for message in told)
    assert not any("EMFILE" in message or "Too many open files" in message for message in told)


def test_silent_connections_of_one_host_lock_no_other_host_out(tmp_path: Path) -> None:
    with (
        served(answers) as server,
        MeasuredGateway(tmp_path, server.port, passthrough="limits: {max_connections: 40}") as gateway,
    ):
        with ExitStack() as stack:
            # on this machine one address may have all connections, but keeps only its share, a quarter, against others
            for _ in range(100):
                stack.enter_context(connected(gateway.port))
            for number in range(30):
                other = stack.enter_context(
                    socket.create_connection((HOST, gateway.port), PATIENCE, source_address=("127.0.0.2", 0))
                )
                other.sendall(request_head("GET", "/vllm/v1/models"))
                assert other.recv(65_536).startswith(b"HTTP/1.1 200 OK"), number
        metrics = ask(gateway.port, "/metrics")[1]
    assert 'vllm_passthrough_dropped_connections_total{idle="silent"}' in metrics
    told = Counter(line["message"][:30] for line in lines_of(tmp_path) if "message" in line)
    assert max(told.values()) <= 5, told


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
                # a request that finds no descriptor waits for one, and is told so
                clients[0].send(request_head("GET", "/vllm/v1/models"))
                first.read_until(b"alive")
                head = clients[0].read_head().lower()
                assert head.startswith(b"http/1.1 200 ") or (
                    head.startswith(b"http/1.1 503 ")
                    and b"\r\nx-vllm-passthrough-error: out_of_sockets\r\n" in head
                    and b"\r\nretry-after: 1\r\n" in head
                )
                metrics = first_metrics(first)
                assert b'vllm_passthrough_socket_shortages_total{error="EMFILE",operation="accept"}' in metrics
            resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, before)
        with connected(gateway.port) as again:
            again.send(request_head("GET", "/vllm/v1/models"))
            assert again.read_until(b"ok").startswith(b"HTTP/1.1 200 OK\r\n")
    told = [line for line in lines_of(tmp_path) if "Out of sockets" in line.get("message", "")]
    assert 1 <= len(told) <= 12


def test_rows_and_lines_of_a_time_without_open_files_are_all_there_afterwards(tmp_path: Path) -> None:
    """The spool, the log (which is to be rotated) and the database open no file, and lose nothing."""
    body = b'{"model":"m","messages":[]}'
    head = request_head(
        "POST", "/vllm/v1/chat/completions", "Content-Type: application/json", f"Content-Length: {len(body)}"
    )
    settings = "passthrough: {log: {file: gateway.log, format: json, rotate_bytes: 4000, keep_files: 100}}\n"
    with served(answers_posts) as server, Configured(tmp_path, server.port, settings) as gateway:
        with connected(gateway.port) as client:

            def ask_once() -> None:
                client.send(head + body)
                assert client.read_until(b"ok").startswith(b"HTTP/1.1 200 OK\r\n")

            ask_once()
            before = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (3, before[1]))
            end = time.monotonic() + 4.0
            count = 1
            while time.monotonic() < end:
                ask_once()
                count += 1
                time.sleep(0.02)
            resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, before)
            ask_once()
        assert gateway.terminate() == 0
    assert sum(map(len, rows_in(tmp_path / "twisted_vllm.sqlite3").values())) == count + 1
    lines = [json.loads(line) for log in tmp_path.glob("gateway.log*") for line in log.read_text().splitlines()]
    assert sum("request_id" in line and line["route"].endswith("completions") for line in lines) == count + 1
    told = Counter(line["message"][:30] for line in lines if "message" in line)
    assert max(told.values()) <= 8, told


def answers_posts(connection: Connection) -> None:
    while connection.read_head():
        connection.read(27)
        connection.send(OK)


def first_metrics(connection: Connection) -> bytes:
    """Return the metrics, by a connection that is open already."""
    connection.send(request_head("GET", "/metrics"))
    return connection.read_until(b"vllm_passthrough_form_spool_bytes ")
