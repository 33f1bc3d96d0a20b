"""The processes of a gateway with workers: how they start, end and are replaced, and what clients see of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.process_harness import Connection, served
from tests.end_to_end.twistd_harness import MASTER_KEY, ask, run, wait_until
from tests.end_to_end.workers_harness import Workers, started

MODELS = "/vllm/v1/models"
LIST = b'{"object":"list","data":[]}'
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(LIST), LIST)


def serve_lists(connection: Connection) -> None:
    """Answer each request for a path with a list of models."""
    while connection.read_head():
        connection.send(OK)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with (
        served(serve_lists) as server,
        started(
            Workers(
                tmp_path_factory.mktemp("workers"),
                server.port,
                passthrough="drain_timeout: 5, limits: {max_failed_authentications: 10000}",
            )
        ) as gateway,
    ):
        yield gateway


class Steady:
    """Sends requests one after the other from a thread, each on its own connection, and keeps what failed."""

    def __init__(self, port: int) -> None:
        self.sent = 0
        self.failed: list[str] = []
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.sent += 1
            try:
                status, text = ask(self._port, MODELS, MASTER_KEY)
                if status != 200:
                    self.failed.append(f"{status} {text}")
            except OSError as error:
                self.failed.append(repr(error))
            time.sleep(0.002)

    def __enter__(self) -> Steady:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_two_workers_and_a_housekeeper_run(gateway: Workers) -> None:
    assert sorted(gateway.processes().values()) == [0, 1, 2]
    assert gateway.statuses(40, MODELS) == {200: 40}
    wait_until(lambda: sum(line.get("route") == "/v1/models" for line in gateway.lines()) == 40)


def test_no_request_is_lost_while_a_worker_is_killed_and_replaced(gateway: Workers) -> None:
    with Steady(gateway.port) as steady:
        wait_until(lambda: steady.sent > 20)
        former = gateway.kill(1)
        gateway.wait_until_replaced(former)
        wait_until(lambda: len(gateway.messages("The worker-1 has ended by SIGKILL")) == 1)
    # what the killed worker had accepted is gone: of one client at most one request
    assert len(steady.failed) <= 1, steady.failed


def test_clients_of_a_slot_without_a_worker_are_served_by_another(gateway: Workers) -> None:
    former = gateway.kill(2)
    began = time.monotonic()
    assert gateway.statuses(30, MODELS) == {200: 30}
    took = time.monotonic() - began
    gateway.wait_until_replaced(former)
    # a process takes longer than this to start
    assert took < 1.0 or len(gateway.processes()) == 3


def test_processes_are_replaced_one_by_one_and_nobody_is_refused(gateway: Workers) -> None:
    before = gateway.processes()
    with Steady(gateway.port) as steady:
        gateway.signal(signal.SIGUSR2)
        wait_until(lambda: gateway.messages("All processes were replaced"))
    assert steady.failed == []
    after = gateway.processes()
    assert sorted(after.values()) == [0, 1, 2]
    assert not before.keys() & after.keys()


def test_a_signal_reopens_the_logs_of_all_processes(gateway: Workers) -> None:
    log = gateway.directory / "gateway.log"
    log.rename(gateway.directory / "moved.log")
    gateway.signal(signal.SIGUSR1)
    # it is opened with the next line
    wait_until(lambda: gateway.statuses(4, MODELS) and log.exists())
    wait_until(lambda: gateway.statuses(20, MODELS) and len(gateway.lines()) >= 20)
    (gateway.directory / "moved.log").unlink()


def test_the_housekeeper_is_replaced_and_clients_do_not_notice(gateway: Workers) -> None:
    with Steady(gateway.port) as steady:
        former = gateway.kill(0)
        gateway.wait_until_replaced(former)
    assert steady.failed == []


def test_a_key_and_its_blocking_are_known_to_all_workers_at_once(gateway: Workers) -> None:
    for _ in range(15):
        status, text = ask(gateway.port, "/key/generate", MASTER_KEY, "POST", "{}")
        assert status == 200
        key = json.loads(text)["key"]
        assert gateway.statuses(6, MODELS, key) == {200: 6}
        assert ask(gateway.port, "/key/block", MASTER_KEY, "POST", f'{{"key": "{key}"}}')[0] == 200
        assert gateway.statuses(6, MODELS, key) == {401: 6}


def test_a_reload_is_in_effect_in_all_processes_or_in_none(gateway: Workers) -> None:
    file = gateway.directory / "gateway.yaml"
    before = file.read_text()
    file.write_text(before.replace("drain_timeout: 5", "drain_timeout: 5, tenant_routes: [/metrics, nonsense"))
    assert ask(gateway.port, "/config/reload", MASTER_KEY, "POST", "{}")[0] == 400
    file.write_text(before.replace("drain_timeout: 5", "drain_timeout: 5, root_routes: false"))
    assert gateway.statuses(12, "/v1/models") == {200: 12}
    status, text = ask(gateway.port, "/config/reload", MASTER_KEY, "POST", "{}")
    assert (status, "passthrough.root_routes" in text) == (200, True), text
    assert gateway.statuses(12, "/v1/chat/completions") == {404: 12}
    file.write_text(before)
    gateway.signal(signal.SIGHUP)
    wait_until(lambda: 404 not in gateway.statuses(12, "/v1/chat/completions"))
    # whichever process answers
    told = [json.loads(ask(gateway.port, "/config?search=root_routes", MASTER_KEY)[1]) for _ in range(6)]
    assert {each["last_reload"]["by"] for each in told} == {"SIGHUP"}
    assert {tuple(each["last_reload"]["changed"]) for each in told} == {("passthrough.root_routes",)}
    assert len({each["read_at"] for each in told}) == 1


def test_a_gateway_that_cannot_start_says_why_and_ends_with_a_status(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = ("-n", "--pidfile=", "vllm-passthrough", "--workers", "2")
        variables = {"LITELLM_MASTER_KEY": MASTER_KEY, "HOSTED_VLLM_API_BASE": "http://127.0.0.1:9"}
        found = run(tmp_path, *options, "--listen", f"tcp:{port}:interface=127.0.0.1", **variables)
        assert found.returncode == 1
        assert "a running program has it" in found.stderr
    found = run(
        tmp_path,
        *options,
        "--listen",
        "tcp:0:interface=127.0.0.1",
        DATABASE_URL="sqlite:////nowhere/at/all.sqlite3",
        **variables,
    )
    assert found.returncode == 1, found.stdout
    assert "The gateway gives up" in found.stdout


def test_without_a_supervisor_all_processes_end(tmp_path: Path) -> None:
    with served(serve_lists) as server, started(Workers(tmp_path, server.port)) as gateway:
        processes = gateway.processes()
        assert gateway.statuses(4, MODELS) == {200: 4}
        gateway.signal(signal.SIGKILL)
        gateway.wait()
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in processes))


def test_the_end_is_clean_when_every_process_gets_the_signal(tmp_path: Path) -> None:
    """As systemd sends it, and a terminal."""
    with served(serve_lists) as server, started(Workers(tmp_path, server.port)) as gateway:
        for pid in gateway.processes():
            os.kill(pid, signal.SIGTERM)
        assert gateway.terminate() == 0
        assert gateway.messages("All processes have ended")
        assert not gateway.messages("again")
