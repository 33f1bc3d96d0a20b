"""Workers in real processes know the same of servers, and keep the limits of servers together."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.process_harness import Connection, many_descriptors, served
from tests.end_to_end.twistd_harness import MASTER_KEY, ask, wait_until
from tests.end_to_end.workers_harness import ANSWER, Workers, started

PATH = "/vllm/v1/chat/completions"
#: seconds between two health checks
INTERVAL = 0.5
#: seconds in which what one worker sees must be known to all
SHARED = 0.1


class StandIn:
    """A server that counts what comes, and can fail it.

    Attributes:
        fails: whether it answers requests with 503.
        delay: the seconds that an answer takes.
        times: when each request came.
        most: the most requests at a time.
        checks: how many health checks came.
    """

    def __init__(self) -> None:
        self.fails = False
        self.delay = 0.0
        self.times: list[float] = []
        self.most = 0
        self.checks = 0
        self._now = 0
        self._lock = threading.Lock()

    def handle(self, connection: Connection) -> None:
        while head := connection.read_head():
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if length:
                connection.read(int(length[0].split(b":")[1]))
            if not head.startswith(b"POST"):
                self.checks += head.startswith(b"GET /health")
                body = b'{"version": "0.11.0"}' if head.startswith(b"GET /version") else b""
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                continue
            with self._lock:
                self.times.append(time.monotonic())
                self._now += 1
                self.most = max(self.most, self._now)
            if self.delay:
                time.sleep(self.delay)
            with self._lock:
                self._now -= 1
            status = b"503 No" if self.fails else b"200 OK"
            connection.send(
                b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (status, len(ANSWER), ANSWER)
            )


def entry(port: int, **params: Any) -> dict[str, Any]:
    base = f"http://127.0.0.1:{port}"
    return {"model_name": "m", "litellm_params": {"model": "hosted_vllm/m", "api_base": base, **params}}


def config(*entries: dict[str, Any], **router: Any) -> str:
    """Return the lines of a model list."""
    return f"model_list: {json.dumps(entries)}\nrouter_settings: {json.dumps(router)}\n"


BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]})


def post(port: int) -> int:
    return ask(port, PATH, MASTER_KEY, "POST", BODY)[0]


class Load:
    """Threads that send requests, each on a connection of its own, so that both workers get some."""

    def __init__(self, port: int, threads: int = 4) -> None:
        self.statuses: Counter[int] = Counter()
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._stop.is_set():
            self.statuses[post(self._port)] += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workers, list[StandIn]]]:
    """Two workers before three servers."""
    servers = [StandIn() for _ in range(3)]
    with ExitStack() as stack:
        ports = [stack.enter_context(served(each.handle)).port for each in servers]
        gateway = Workers(
            tmp_path_factory.mktemp("servers"),
            ports[0],
            settings=config(
                *map(entry, ports), routing_strategy="least-busy", allowed_fails=0, cooldown_time=60, num_retries=2
            ),
            passthrough=f"health: {{interval: {INTERVAL}, rise: 2, fall: 2}}",
        )
        yield stack.enter_context(started(gateway)), servers


def reports(gateway: Workers) -> list[Any]:
    """Ask for the health so often that both workers answer; return the answers, without what changes by itself."""
    found = []
    for _ in range(16):
        status, text = ask(gateway.port, "/health", MASTER_KEY)
        assert status == 200
        found.append(json.loads(text))
    return found


def test_checks_come_from_one_process_alone(three: tuple[Workers, list[StandIn]]) -> None:
    _, servers = three
    before = [each.checks for each in servers]
    time.sleep(4 * INTERVAL)
    made = [each.checks - count for each, count in zip(servers, before, strict=True)]
    assert all(3 <= count <= 5 for count in made), made


def test_all_workers_stop_to_send_to_a_server_within_100_ms_after_one_saw_it_fail(
    three: tuple[Workers, list[StandIn]],
) -> None:
    gateway, servers = three
    with Load(gateway.port) as load:
        wait_until(lambda: all(len(each.times) > 20 for each in servers))
        failing = servers[1]
        failing.fails = True
        began = time.monotonic()
        wait_until(lambda: gateway.messages("gets no requests"))
        time.sleep(0.5)
        sent = [when for when in failing.times if when >= began]
    assert sent
    assert max(sent) - min(sent) < SHARED, [when - sent[0] for when in sent]
    assert {*load.statuses} == {200}, "what failed was sent to another server"
    # one line for the whole gateway, and one state in every worker's answer
    assert len(gateway.messages("gets no requests")) == 1
    time.sleep(SHARED)
    states = {json.dumps(report, sort_keys=True) for report in reports(gateway)}
    assert len(states) == 1, states
    failing.fails = False


def test_a_server_that_is_gone_is_found_dead_by_the_housekeeper_for_all(tmp_path: Path) -> None:
    server, other = StandIn(), StandIn()
    with served(other.handle) as stays, ExitStack() as stack:
        goes = stack.enter_context(served(server.handle))
        gateway = Workers(
            tmp_path,
            stays.port,
            settings=config(entry(stays.port), entry(goes.port)),
            passthrough=f"health: {{interval: {INTERVAL}}}",
        )
        with started(gateway):
            wait_until(lambda: server.checks > 1)
            stack.close()
            wait_until(lambda: gateway.messages("gets no requests"))
            time.sleep(SHARED)
            assert Counter(post(gateway.port) for _ in range(20)) == {200: 20}
            assert {report["unhealthy_count"] for report in reports(gateway)} == {1}
            # a worker that comes later knows it too, and so does one without a housekeeper
            pid = gateway.kill(1)
            gateway.wait_until_replaced(pid)
            gateway.kill(0)
            assert Counter(post(gateway.port) for _ in range(20)) == {200: 20}


def test_a_drain_is_known_in_all_workers_at_once_and_in_those_that_come_later(tmp_path: Path) -> None:
    one, two = StandIn(), StandIn()
    with served(one.handle) as first, served(two.handle) as second:
        gateway = Workers(tmp_path, first.port, settings=config(entry(first.port), entry(second.port)))
        with started(gateway):
            name = f"127.0.0.1:{first.port}"
            with Load(gateway.port) as load:
                wait_until(lambda: len(one.times) > 20)
                body = json.dumps({"server": name, "reason": "new driver"})
                status, text = ask(gateway.port, "/server/drain", MASTER_KEY, "POST", body)
                assert (status, json.loads(text)["server"]["state"]) == (200, "drained")
                # what was sent before has arrived
                time.sleep(SHARED)
                before = len(one.times)
                wait_until(lambda: len(two.times) > before + 50)
                assert len(one.times) == before
            assert {*load.statuses} == {200}, "no request failed"
            states = {report["unhealthy_endpoints"][0]["state"] for report in reports(gateway)}
            assert states == {"drained"}
            gateway.wait_until_replaced(gateway.kill(1))
            assert Counter(post(gateway.port) for _ in range(20)) == {200: 20}
            assert len(one.times) == before

            def rows_of_all() -> list[Any]:
                return [json.loads(ask(gateway.port, "/server/list", MASTER_KEY)[1])["servers"] for _ in range(8)]

            # the housekeeper asks for it
            wait_until(lambda: {row[0]["version"] for row in rows_of_all()} == {"0.11.0"})
            rows = rows_of_all()
            assert {row[0]["drained"]["reason"] for row in rows} == {"new driver"}
            assert {row[1]["latency_seconds"] is not None for row in rows} == {True}
            assert len(gateway.messages("is drained by master: new driver")) == 1
            ask(gateway.port, "/server/undrain", MASTER_KEY, "POST", json.dumps({"server": name}))
            assert Counter(post(gateway.port) for _ in range(40)) == {200: 40}
            assert len(one.times) > before


@pytest.mark.parametrize("strategy", ["simple-shuffle", "least-busy"])
def test_a_burst_gets_a_server_no_more_at_once_and_no_more_a_minute_than_its_limits(
    tmp_path: Path, strategy: str
) -> None:
    server = StandIn()
    server.delay = 0.02
    with served(server.handle) as listening, many_descriptors(6_000):
        gateway = Workers(
            tmp_path,
            listening.port,
            settings=config(
                entry(listening.port, rpm=50, max_parallel_requests=8), routing_strategy=strategy, num_retries=0
            ),
            passthrough="limits: {max_connections: 3000, max_queued_requests: 2000}, timeouts: {queue: 20}",
        )
        with started(gateway):
            statuses = burst_of(gateway.port, 2_000)
    assert statuses == {200: 50, 503: 1_950}
    assert len(server.times) == 50
    assert server.most == 8


def burst_of(port: int, count: int) -> Counter[int]:
    """Send requests at once, each on its own connection; return the statuses of their answers."""
    length = len(BODY)
    request = (
        f"POST {PATH} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {MASTER_KEY}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{BODY}"
    ).encode()
    found: Counter[int] = Counter()
    connections = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(count)]
    for each in connections:
        each.sendall(request)
    for each in connections:
        head = b""
        with suppress(ConnectionResetError):
            while b"\r\n" not in head and (piece := each.recv(4_096)):
                head += piece
        found[int(head.split(b" ")[1]) if head else 0] += 1
        each.close()
    return found
