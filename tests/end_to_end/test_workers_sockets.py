"""The sockets of a gateway with workers, and what twistd's own options mean for it: real processes."""

from __future__ import annotations

import http.client
import json
import os
import selectors
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.free_ports import free_port
from tests.end_to_end.twistd_harness import MASTER_KEY, PATIENCE, answers, command, environment, run, wait_until
from tests.self_signed import self_signed_pem

NOWHERE = "http://127.0.0.1:9"
VARIABLES = {"LITELLM_MASTER_KEY": MASTER_KEY, "HOSTED_VLLM_API_BASE": NOWHERE}
REQUEST = b"GET /health/liveliness HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"
#: systemd's first descriptor (sd_listen_fds(3)), and a shell that says that it is for what it becomes
FIRST_DESCRIPTOR = 3
AS_SYSTEMD = ["sh", "-c", 'export LISTEN_FDS=1 LISTEN_FDNAMES=http LISTEN_PID=$$; exec "$@"', "sh"]


class EveryKind:
    """A gateway with two workers that listens on every kind of endpoint.

    Attributes:
        directory: where it runs.
        ports: its TCP ports by kind.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = {kind: free_port() for kind in ("tcp", "ssl", "haproxy", "tcp6")}
        (directory / "server.pem").write_bytes(self_signed_pem())
        self.inherited = socket.create_server(("127.0.0.1", 0))
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        ports = self.ports
        endpoints = [
            f"tcp:{ports['tcp']}:interface=127.0.0.1",
            f"ssl:{ports['ssl']}:interface=127.0.0.1",
            f"haproxy:tcp:{ports['haproxy']}:interface=127.0.0.1",
            rf"tcp:{ports['tcp6']}:interface=\:\:1",
            "unix:gateway.sock:mode=600",
            "systemd:domain=INET:index=0",
        ]
        own = command("-n", "--pidfile=gateway.pid", "--logfile=gateway.log", "vllm-passthrough", "--workers=2")
        self._process = subprocess.Popen(
            [*AS_SYSTEMD, *own, *(f"--listen={each}" for each in endpoints)],
            cwd=self.directory,
            env=environment(**VARIABLES),
            pass_fds=(FIRST_DESCRIPTOR,),
            preexec_fn=partial(os.dup2, self.inherited.fileno(), FIRST_DESCRIPTOR),
            text=True,
        )
        wait_until(lambda: answers(ports["tcp"]) or self.process.poll() is not None)
        wait_until(lambda: "Serving with 2 workers" in self.log)
        assert self.process.poll() is None

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        return (self.directory / "gateway.log").read_text()

    def certificate(self) -> str:
        return ssl.get_server_certificate(("127.0.0.1", self.ports["ssl"]))

    def connect(self, kind: str) -> socket.socket:
        if kind == "unix":
            connected = socket.socket(socket.AF_UNIX)
            connected.settimeout(PATIENCE)
            connected.connect(os.path.relpath(self.directory / "gateway.sock"))
            return connected
        port = self.inherited.getsockname()[1] if kind == "systemd" else self.ports[kind]
        connected = socket.create_connection(("::1" if kind == "tcp6" else "127.0.0.1", port), PATIENCE)
        if kind == "haproxy":
            connected.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 5001 80\r\n")
        if kind == "ssl":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            return context.wrap_socket(connected)
        return connected

    def status(self, kind: str) -> int:
        with self.connect(kind) as connected:
            connected.sendall(REQUEST)
            response = http.client.HTTPResponse(connected)
            response.begin()
            response.read()
            return response.status

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self.inherited.close()


@pytest.fixture
def every_kind(tmp_path: Path) -> Iterator[EveryKind]:
    found = EveryKind(tmp_path)
    yield found
    found.close()


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_every_kind_of_endpoint_is_shared_and_is_gone_at_the_end(every_kind: EveryKind) -> None:
    every_kind.start()
    for kind in ("tcp", "ssl", "haproxy", "tcp6", "unix", "systemd"):
        assert [every_kind.status(kind) for _ in range(8)] == [200] * 8, kind
    file = every_kind.directory / "gateway.sock"
    assert file.stat().st_mode & 0o777 == 0o600
    # a worker ends: the sockets and their files stay
    os.kill(int(children_of(every_kind.process.pid)[1]), signal.SIGKILL)
    for kind in ("tcp", "unix", "systemd"):
        assert [every_kind.status(kind) for _ in range(8)] == [200] * 8, kind
    # another certificate, in every worker
    wait_until(lambda: len(children_of(every_kind.process.pid)) == 3)
    former = every_kind.certificate()
    (every_kind.directory / "server.pem").write_bytes(self_signed_pem())
    every_kind.process.send_signal(signal.SIGHUP)
    wait_until(lambda: former not in {every_kind.certificate() for _ in range(12)})
    assert int((every_kind.directory / "gateway.pid").read_text()) == every_kind.process.pid
    every_kind.process.send_signal(signal.SIGTERM)
    assert every_kind.process.wait(PATIENCE) == 0
    assert not file.exists()
    assert not (every_kind.directory / "gateway.pid").exists()


def test_what_a_killed_supervisor_leaves_does_not_hinder_the_next(every_kind: EveryKind) -> None:
    every_kind.start()
    left = children_of(every_kind.process.pid)
    every_kind.process.kill()
    every_kind.process.wait()
    assert (every_kind.directory / "gateway.sock").exists()
    wait_until(lambda: not any(Path(f"/proc/{each}").exists() for each in left))
    (every_kind.directory / "gateway.log").unlink()
    every_kind.start()
    assert [every_kind.status(kind) for kind in ("tcp", "unix", "systemd")] == [200] * 3
    every_kind.process.send_signal(signal.SIGTERM)
    assert every_kind.process.wait(PATIENCE) == 0


def test_it_serves_as_a_daemon_with_one_pid_file_and_one_log(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    port = free_port()
    options = ("--pidfile=gateway.pid", "--logfile=gateway.log", "--rundir=run", "--umask=027")
    listen = f"--listen=tcp:{port}:interface=127.0.0.1"
    done = run(tmp_path, *options, "vllm-passthrough", "--workers=2", listen, **VARIABLES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pid_file = tmp_path / "gateway.pid"
    supervisor = int(pid_file.read_text())
    log = tmp_path / "gateway.log"
    try:
        wait_until(lambda: "Serving with 2 workers" in log.read_text())
        children = children_of(supervisor)
        assert len(children) == 3
        for child in children:
            assert {os.readlink(f"/proc/{child}/fd/{each}") for each in range(3)} == {"/dev/null"}
            assert "Umask:\t0027" in Path(f"/proc/{child}/status").read_text()
        assert answers(port)
    finally:
        os.kill(supervisor, signal.SIGTERM)
    wait_until(lambda: not pid_file.exists())
    wait_until(lambda: "Server Shut Down" in log.read_text())
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum(line.get("message", "").startswith("Drained in ") for line in lines) == 3
    assert [line for line in lines if line["level"] in ("error", "critical")] == []
    assert list(tmp_path.glob("run/*.log")) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root may change to another user")
def test_a_file_that_the_user_of_the_processes_cannot_read_is_named_at_the_start(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("general_settings: {master_key: not-like-a-key-4711}\n")
    settings.chmod(0o600)
    listen = f"--listen=tcp:{free_port()}:interface=127.0.0.1"
    options = ("-n", "--pidfile=", "--uid=65534", "vllm-passthrough", "--workers=2", "--config=settings.yaml", listen)
    done = run(tmp_path, *options, HOSTED_VLLM_API_BASE=NOWHERE)
    assert done.returncode == 1
    assert done.stderr.startswith("vllm-passthrough cannot start: settings.yaml: cannot be read: Permission denied")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--debug", "--debug runs a debugger in one process: use --workers 1 with it."),
        ("--profile=file", "--profile looks at one process: use --workers 1 with it."),
        ("--logger=here.observer", "--logger names an observer that cannot be handed to other processes"),
    ],
)
def test_what_is_for_one_process_is_refused(tmp_path: Path, option: str, said: str) -> None:
    done = run(tmp_path, "-n", option, "vllm-passthrough", "--workers=2", **VARIABLES)
    assert done.returncode == 1
    assert done.stderr.startswith(said)


def test_check_says_which_processes_and_sockets_there_would_be(tmp_path: Path) -> None:
    listen = ("--listen=tcp:4000:interface=127.0.0.1", "--listen=unix:gateway.sock")
    done = run(tmp_path, "vllm-passthrough", "--workers=3", "--check", *listen, **VARIABLES)
    assert done.returncode == 0
    said = done.stdout.splitlines()
    assert "processes:      a supervisor, a housekeeper and 3 workers" in said
    assert "sockets:        tcp:4000:interface=127.0.0.1: one for each worker" in said
    assert "sockets:        unix:gateway.sock: one for all workers" in said
    assert not (tmp_path / "gateway.sock").exists()


@pytest.mark.parametrize("endpoint", ["stdio:", "haproxy:stdio:"])
def test_an_endpoint_that_cannot_be_shared_is_refused(tmp_path: Path, endpoint: str) -> None:
    done: Any = run(tmp_path, "vllm-passthrough", "--workers=2", "--check", f"--listen={endpoint}", **VARIABLES)
    assert done.returncode == 1
    assert f"'{endpoint}' cannot be shared by several workers (use tcp:, ssl:, unix: or systemd:" in done.stderr


def test_a_burst_of_connections_is_served_up_to_the_limit_of_all_workers_exactly(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "gateway.yaml").write_text("passthrough: {limits: {max_connections: 100}}\n")
    options = ("-n", "--pidfile=", "--logfile=gateway.log", "vllm-passthrough", "--workers=2", "--config=gateway.yaml")
    own = command(*options, f"--listen=tcp:{port}:interface=127.0.0.1")
    request = b"GET /vllm/v1/models HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer %b\r\n\r\n" % MASTER_KEY.encode()
    # a server that takes requests and answers none
    with socket.create_server(("127.0.0.1", 0), backlog=1_000) as silent, ExitStack() as stack:
        variables = VARIABLES | {"HOSTED_VLLM_API_BASE": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        process = subprocess.Popen(own, cwd=tmp_path, env=environment(**variables))
        stack.callback(process.wait, PATIENCE)
        stack.callback(process.kill)
        wait_until(lambda: answers(port))
        wait_until(lambda: "Serving with 2 workers" in (tmp_path / "gateway.log").read_text())
        waiting = stack.enter_context(selectors.DefaultSelector())
        for _ in range(2_000):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            with suppress(OSError):
                one.sendall(request)
            waiting.register(one, selectors.EVENT_READ)
        while found := waiting.select(2.0):
            for key, _ in found:
                # refused, with an answer or without one
                waiting.unregister(key.fileobj)
        assert len(waiting.get_map()) == 100
