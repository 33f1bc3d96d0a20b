"""A restart behind systemd's socket, and logrotate, under load: nothing is refused, no line is lost."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from benchmarks.free_ports import free_port
from tests.end_to_end.test_workers_sockets import AS_SYSTEMD, FIRST_DESCRIPTOR
from tests.end_to_end.twistd_harness import (
    MASTER_KEY,
    PATIENCE,
    REPOSITORY,
    Foreground,
    ask,
    command,
    environment,
    wait_until,
)

VARIABLES = {"LITELLM_MASTER_KEY": MASTER_KEY, "HOSTED_VLLM_API_BASE": "http://127.0.0.1:9"}


class Asking:
    """Sends one request after another, each on a connection of its own, until told to stop.

    Attributes:
        statuses: what was answered; 0 for a connection that was refused or broke.
    """

    def __init__(self, port: int) -> None:
        self.statuses: list[int] = []
        self._port = port
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.statuses.append(ask(self._port, "/vllm/v1/models", MASTER_KEY)[0])
            except (OSError, http.client.HTTPException):
                self.statuses.append(0)

    def wait_for_more(self) -> None:
        """Wait for 20 more answers."""
        enough = len(self.statuses) + 20
        wait_until(lambda: len(self.statuses) >= enough)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_restart_behind_systemd_s_socket_refuses_no_connection(tmp_path: Path, workers: str) -> None:
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    port = listening.getsockname()[1]

    server = free_port()
    simulator = subprocess.Popen(
        command("-n", "--pidfile=", "vllm-simulator", f"--listen=tcp:{server}:interface=127.0.0.1"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
    )

    def start() -> subprocess.Popen[bytes]:
        run = [sys.executable, "-m", "twisted_vllm", "run", "--workers", workers]
        return subprocess.Popen(
            [*AS_SYSTEMD, *run, "--listen", "systemd:domain=INET:index=0"],
            cwd=tmp_path,
            env=environment(LITELLM_MASTER_KEY=MASTER_KEY, HOSTED_VLLM_API_BASE=f"http://127.0.0.1:{server}"),
            pass_fds=(FIRST_DESCRIPTOR,),
            preexec_fn=partial(os.dup2, listening.fileno(), FIRST_DESCRIPTOR),
            stdout=subprocess.DEVNULL,
        )

    gateway = start()
    wait_until(lambda: ask(port, "/vllm/v1/models", MASTER_KEY)[0] == 200)
    asking = Asking(port)
    try:
        for _ in range(2):
            asking.wait_for_more()
            gateway.send_signal(signal.SIGTERM)
            assert gateway.wait(PATIENCE) == 0
            gateway = start()
            asking.wait_for_more()
    finally:
        asking.stop()
        for process in (gateway, simulator):
            process.kill()
            process.wait()
        listening.close()
    assert len(asking.statuses) > 80
    assert set(asking.statuses) == {200}


def logrotate() -> str:
    found = shutil.which("logrotate", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip("logrotate is not installed")
    return found


def test_logrotate_loses_no_line_and_tears_none(tmp_path: Path) -> None:
    program = logrotate()
    log = tmp_path / "gateway.log"
    settings = f"passthrough:\n  log:\n    file: {log}\n    format: json\n"
    (tmp_path / "gateway.yaml").write_text(settings)
    with Foreground(tmp_path, free_port(), "--config=gateway.yaml", **VARIABLES) as gateway:
        rules = (REPOSITORY / "config" / "logrotate.conf").read_text("utf-8")
        rules = rules.replace("/var/log/vllm-passthrough/*.log", str(log)).replace("    daily\n", "")
        rules, replaced = re.subn(r"systemctl kill .*", f"kill -USR1 {gateway.pid}", rules)
        assert replaced == 1
        # what is owned by root may have to be owned by somebody else elsewhere
        conf, state = tmp_path / "rotate.conf", tmp_path / "state"
        conf.write_text(rules)
        conf.chmod(0o644)
        asked = 0
        for _ in range(5):
            for _ in range(40):
                # there is no server
                assert ask(gateway.port, "/vllm/v1/models", MASTER_KEY)[0] in (502, 503)
                asked += 1
            done = subprocess.run(
                [program, "--force", "--state", str(state), str(conf)],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        assert gateway.terminate() == 0
    files = sorted(tmp_path.glob("gateway.log*"))
    assert len(files) > 3
    lines = []
    for file in files:
        text = subprocess.run(["zcat", "-f", str(file)], capture_output=True, check=True).stdout
        lines += [json.loads(line) for line in text.splitlines()]
    requests = [line["request_id"] for line in lines if line.get("route") == "/v1/models"]
    assert len(requests) == len(set(requests)) == asked
