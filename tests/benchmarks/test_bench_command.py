"""The whole command, as a user starts it, with tiny loads."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 90.0
TINY = ("--seconds=0.3", "--connections=4", "--streams=5", "--events=5", "--open-streams=20", "--transfer-mib=4")

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command with nothing installed, its temporary files in a directory that can be looked at."""
    (directory / "empty").mkdir(exist_ok=True)
    nothing = [f"--nginx={directory}/empty", f"--router={directory}/empty"]
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *TINY, *nothing, *arguments],
        cwd=REPOSITORY,
        env=kept | {"TMPDIR": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.communicate()
    return process.returncode, out, err


def rows(table: str) -> dict[str, list[str]]:
    lines = [line.split() for line in table.splitlines()]
    return {words[0]: words[1:] for words in lines if words and words[0] in ("direct", "gateway", "nginx")}


def left_running(directory: Path) -> list[str]:
    """The processes that have the directory in their command line or as their working directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
            place = str((process / "cwd").readlink())
        except OSError:
            continue
        if str(directory) in command or place.startswith(str(directory)):
            found.append(command)
    return found


def test_the_tables_hold_what_was_measured_and_notes_name_the_rest(tmp_path: Path) -> None:
    status, out, err = finish(start(tmp_path))
    assert status == 0, err
    speed, memory, *notes = out.split("\n\n")
    assert list(rows(speed)) == ["direct", "gateway"]
    direct, gateway = rows(speed)["direct"], rows(speed)["gateway"]
    assert "-" not in gateway, speed
    # of the server itself, neither CPU nor memory is measured
    assert [index for index, figure in enumerate(direct) if figure == "-"] == [5, 7, 8]
    assert list(rows(memory)) == ["gateway"]
    assert rows(memory)["gateway"][1] == "20"
    assert "-" not in rows(memory)["gateway"], memory
    text = "\n".join(notes)
    assert "Upstream: the stand-in" in text
    assert "nginx was not measured: there is none in" in text
    assert "vllm-router was not measured: there is none in" in text
    assert "failed" not in text, text
    assert "Traceback" not in err
    assert left_running(tmp_path) == []


def test_a_server_of_the_user_s_is_not_asked_for_what_would_load_it(tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    command = [sys.executable, "-m", "benchmarks.upstream", str(port_file)]
    with subprocess.Popen(command, cwd=REPOSITORY) as upstream:
        try:
            process = start(tmp_path, "--model=mine", f"--url=http://127.0.0.1:{_port(port_file, upstream)}")
            status, out, err = finish(process)
        finally:
            upstream.terminate()
    assert status == 0, err
    assert list(rows(out.partition("\n\n")[0])) == ["direct", "gateway"]
    assert "model mine." in out
    assert "Memory of open streams and large bodies was not measured" in out


def test_a_server_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        status, out, err = finish(start(tmp_path, f"--url=http://127.0.0.1:{closed.getsockname()[1]}"))
    assert (status, out) == (1, "")
    assert err.startswith("benchmarks: http://127.0.0.1:")
    assert "does not list its models" in err
    assert "Traceback" not in err


def test_nothing_is_left_when_it_is_terminated(tmp_path: Path) -> None:
    process = start(tmp_path, "--seconds=1")
    assert process.stderr is not None
    # the gateway runs from this line on
    assert any(line.startswith("gateway: ") for line in process.stderr)
    process.terminate()
    status, out, err = finish(process)
    assert (status, out) == (128 + signal.SIGTERM, ""), err
    assert left_running(tmp_path) == []
    assert list(tmp_path.glob("benchmarks-*")) == []


def _port(port_file: Path, process: subprocess.Popen[bytes]) -> str:
    """Wait for another process: it has no clock that a test could turn."""
    end = time.monotonic() + PATIENCE
    while not port_file.exists():
        assert process.poll() is None
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return port_file.read_text()
