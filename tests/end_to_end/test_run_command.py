"""``vllm-passthrough run``: the same gateway as twistd's, and one clear line where it does not start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.free_ports import free_port
from benchmarks.measure import parse_stat
from tests.end_to_end.twistd_harness import (
    MASTER_KEY,
    PATIENCE,
    REPOSITORY,
    Foreground,
    answers,
    ask,
    environment,
    wait_until,
)

VARIABLES = {"LITELLM_MASTER_KEY": MASTER_KEY, "HOSTED_VLLM_API_BASE": "http://127.0.0.1:9"}
#: who may do nothing: a user that root can become
NOBODY = 65534


class Run(Foreground):
    """The command, serving."""

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "twisted_vllm", "run", *self.twistd_options, *arguments]


def run(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "twisted_vllm", *arguments],
        cwd=directory,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def resident(pid: int) -> int:
    """Bytes of memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_serves_in_the_foreground_and_drains_on_sigterm(tmp_path: Path, workers: str) -> None:
    with Run(tmp_path, free_port(), "--quickstart", "--workers", workers) as gateway:
        key = (tmp_path / ".run" / "master-key").read_text().strip()
        status, body = ask(gateway.port, "/vllm/v1/models", key)
        assert (status, json.loads(body)["data"][0]["id"]) == (200, "simulated-model")
        assert gateway.terminate() == 0
    assert gateway.stderr == ""
    assert "Drained in " in gateway.stdout


def test_it_takes_no_more_memory_than_twistd(tmp_path: Path) -> None:
    taken = {}
    for kind in (Foreground, Run):
        directory = tmp_path / kind.__name__
        directory.mkdir()
        with kind(directory, free_port(), **VARIABLES) as gateway:
            ask(gateway.port, "/vllm/v1/models", MASTER_KEY)
            taken[kind] = resident(gateway.pid)
            assert parse_stat(Path(f"/proc/{gateway.pid}/stat").read_text())
    assert taken[Run] < taken[Foreground] + 1_500_000


def test_it_goes_into_the_background_with_a_pid_file_and_a_log_file(tmp_path: Path) -> None:
    port = free_port()
    listen = f"--listen=tcp:{port}:interface=127.0.0.1"
    done = run(tmp_path, "run", "--daemon", "--pidfile", "g.pid", "--logfile", "g.log", listen, **VARIABLES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pid_file = tmp_path / "g.pid"
    try:
        wait_until(lambda: answers(port))
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
        wait_until(lambda: not pid_file.exists())
    assert "Listening on" in (tmp_path / "g.log").read_text()


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (["--config", "missing.yaml"], {}, "missing.yaml: cannot be read: No such file or directory"),
        (["--config", "."], {}, ".: cannot be read: Is a directory"),
        (["--config", "broken.yaml"], {}, "broken.yaml: line 2, column 1: "),
        (["--logfile", "/nowhere/log"], {}, "The log file cannot be opened: No such file or directory: /nowhere/log"),
        (
            [],
            {"DATABASE_URL": "sqlite:////nowhere/a.sqlite3"},
            "The directory of the database, /nowhere, does not exist",
        ),
        (["--listen", "tcp:PORT"], {}, "Couldn't listen on any:PORT"),
    ],
)
def test_what_keeps_it_from_starting_is_one_line(
    tmp_path: Path, workers: str, arguments: list[str], variables: dict[str, str], said: str
) -> None:
    (tmp_path / "broken.yaml").write_text("a: [\n")
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        given = [each.replace("PORT", port) for each in arguments]
        if "--listen" not in given:
            given.append(f"--listen=tcp:{free_port()}:interface=127.0.0.1")
        done = run(tmp_path, "run", "--workers", workers, *given, **{**VARIABLES, **variables})
    assert done.returncode == 1
    [line] = [each for each in done.stderr.splitlines() if each != "The configuration cannot be used:"]
    assert said.replace("PORT", port) in line
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may write nowhere")
def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    listen = f"--listen=tcp:{free_port()}:interface=127.0.0.1"
    done = run(tmp_path, "run", "--uid", str(NOBODY), "--gid", str(NOBODY), listen, **VARIABLES)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("vllm-passthrough cannot start: ")
    assert str(tmp_path) in line
    assert "Traceback" not in done.stdout + done.stderr


def test_an_option_of_the_gateway_that_is_misspelt_in_a_value_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "run", "--listen", "tpc:4000", **VARIABLES)
    assert done.returncode == 1
    assert "'tpc:4000' is not an endpoint that can be used" in done.stderr


@pytest.mark.parametrize("name", ["python2.7", "python3.6", "python3.8", "python3.10"])
def test_an_old_python_says_that_it_is_too_old(name: str, tmp_path: Path) -> None:
    found = shutil.which(name)
    old = None if found is None else subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    if found is None or old is None or old.returncode:
        pytest.skip(f"{name} is not installed")
    program = "from twisted_vllm.cli.entry import main; main()"
    done = subprocess.run(
        [found, "-B", "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("vllm-passthrough needs Python 3.11 to 3.14, and this is Python ")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    script = f"{sys.executable} -m twisted_vllm config example | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script],
        cwd=tmp_path,
        env=environment(LC_ALL="C"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("arguments", [["--help"], ["version"], ["config", "example"]])
def test_a_full_disk_behind_the_output_is_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "twisted_vllm", *arguments],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "vllm-passthrough: the output cannot be written: No space left on device\n"
