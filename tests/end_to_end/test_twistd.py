"""The gateway as an operator starts it: real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

from benchmarks.free_ports import free_port
from tests.end_to_end.twistd_harness import MASTER_KEY, Foreground, answers, ask, run, wait_until

NOWHERE = "http://127.0.0.1:9"
VARIABLES = {"LITELLM_MASTER_KEY": MASTER_KEY, "HOSTED_VLLM_API_BASE": NOWHERE}
#: a database whose directory does not exist
NO_DATABASE = "sqlite:///missing/keys.sqlite3"


def test_it_serves_in_the_foreground_and_ends_well_on_sigterm(tmp_path: Path) -> None:
    with Foreground(tmp_path, free_port(), "--quickstart") as gateway:
        key = (tmp_path / ".run" / "master-key").read_text().strip()
        status, body = ask(gateway.port, "/vllm/v1/models", key)
        assert (status, json.loads(body)["data"][0]["id"]) == (200, "simulated-model")
        assert ask(gateway.port, "/vllm/v1/models")[0] == 401
        assert gateway.terminate() == 0
    assert gateway.stderr == ""
    welcome, _, log = gateway.stdout.partition('{"time"')
    assert f"curl http://127.0.0.1:{gateway.port}/vllm/v1/chat/completions" in welcome
    assert key not in log
    messages = [json.loads(line).get("message", "") for line in ('{"time"' + log).splitlines()]
    assert f"Listening on 127.0.0.1:{gateway.port}" in messages
    assert any(message.startswith("Drained in ") for message in messages)
    assert (tmp_path / ".run" / "master-key").stat().st_mode & 0o777 == 0o600


def test_it_serves_as_a_daemon(tmp_path: Path) -> None:
    port = free_port()
    pid_file = tmp_path / "gateway.pid"
    listen = f"--listen=tcp:{port}:interface=127.0.0.1"
    done = run(tmp_path, "--pidfile=gateway.pid", "vllm-passthrough", listen, **VARIABLES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    process_id = int(pid_file.read_text())
    try:
        wait_until(lambda: answers(port))
        assert ask(port, "/vllm/v1/models", MASTER_KEY)[0] == 502
        status, body = ask(port, "/key/generate", MASTER_KEY, "POST", "{}")
        assert (status, ask(port, "/vllm/health", json.loads(body)["key"])[0]) == (200, 502)
    finally:
        os.kill(process_id, signal.SIGTERM)
        wait_until(lambda: not pid_file.exists())
    log = (tmp_path / "twistd.log").read_text()
    wait_until(lambda: "Server Shut Down" in (tmp_path / "twistd.log").read_text())
    assert '"route":"/v1/models"' in log
    assert (tmp_path / "twisted_vllm.sqlite3").stat().st_mode & 0o777 == 0o600


def test_a_port_in_use_ends_the_start_with_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(tmp_path, "-n", "vllm-passthrough", f"--listen=tcp:{port}:interface=127.0.0.1", **VARIABLES)
    assert done.returncode == 1
    assert done.stderr.startswith(f"vllm-passthrough cannot start: Couldn't listen on 127.0.0.1:{port}: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["level"] == "critical"
    assert list(tmp_path.glob("*.pid")) == []


def test_a_database_that_cannot_be_used_ends_the_start_with_one_clear_line(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "-n",
        "vllm-passthrough",
        f"--listen=tcp:{free_port()}:interface=127.0.0.1",
        **VARIABLES,
        DATABASE_URL=NO_DATABASE,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "vllm-passthrough cannot start: The directory of the database, missing, does not exist: make it, or name "
        "another file.\n"
    )
    assert "Traceback" not in done.stdout


def test_a_daemon_that_cannot_start_says_so_on_the_terminal(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "vllm-passthrough",
        f"--listen=tcp:{free_port()}:interface=127.0.0.1",
        **VARIABLES,
        DATABASE_URL=NO_DATABASE,
    )
    assert done.returncode == 1
    assert "The directory of the database, missing, does not exist" in done.stderr
    # the daemon outlives the process that told of its end
    wait_until(lambda: "make it, or name another file" in (tmp_path / "twistd.log").read_text())
    assert "Traceback" not in (tmp_path / "twistd.log").read_text()
    assert list(tmp_path.glob("*.pid")) == []


def test_a_log_file_that_cannot_be_opened_is_said_in_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "-n", "--logfile=missing/gateway.log", "vllm-passthrough", HOSTED_VLLM_API_BASE=NOWHERE)
    assert done.returncode == 1
    assert done.stderr.startswith("The log file cannot be opened: ")
    assert "missing/gateway.log" in done.stderr
    assert done.stderr.count("\n") == 1
