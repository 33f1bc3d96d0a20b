"""One process against several workers: whose CPU is read, what the report says, and the command with tiny loads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks.workers.parts import HOUSEKEEPER, SINGLE, SUPERVISOR, WORKER, Part, cpu_seconds, find_parts, spent
from benchmarks.workers.report import DATABASE, Cost, Figures, Line, markdown
from twisted_vllm.workers.orders import Log, Order

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 180.0

needs_programs = pytest.mark.skipif(
    shutil.which("wrk") is None
    or shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None
    or not sys.platform.startswith("linux"),
    reason="needs wrk, nginx and /proc",
)


def order(slot: int) -> bytes:
    """The command line of a process that the supervisor started."""
    made = Order(
        number=slot + 7,
        slot=slot,
        workers=2,
        control=3,
        sockets=(),
        file=None,
        listen=(),
        asked_workers=None,
        directory="/",
        reactor="default",
        log=Log(False, None, None),
    )
    return b"\0".join([b"python", b"-m", b"twisted_vllm.app.processes.worker", msgspec.json.encode(made), b""])


def process(proc: Path, pid: int, parent: int, ticks: int, command_line: bytes) -> None:
    place = proc / str(pid)
    place.mkdir(parents=True)
    fields = ["S", str(parent), *["0"] * 9, str(ticks), "0", "0", "0", *["0"] * 10]
    (place / "stat").write_text(f"{pid} (python) {' '.join(fields)}\n")
    (place / "cmdline").write_bytes(command_line)


def test_each_process_of_a_gateway_is_told_by_its_order(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, 5, b"python\0twistd\0")
    process(tmp_path, 11, 10, 6, order(2))
    process(tmp_path, 12, 10, 7, order(0))
    process(tmp_path, 13, 10, 8, order(1))
    process(tmp_path, 14, 10, 9, b"logger\0")
    process(tmp_path, 15, 1, 9, order(3))
    parts = find_parts(10, tmp_path)
    assert parts == [Part(10, SUPERVISOR), Part(12, HOUSEKEEPER), Part(13, WORKER, 1), Part(11, WORKER, 2)]
    hertz = os.sysconf("SC_CLK_TCK")
    before = cpu_seconds(parts, tmp_path)
    assert [round(seconds * hertz) for seconds in before.values()] == [5, 7, 8, 6]
    assert set(spent(before, before).values()) == {0}


def test_a_gateway_without_workers_is_one_process(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, 5, b"python\0twistd\0")
    assert find_parts(10, tmp_path) == [Part(10, SINGLE)]


def figures() -> Figures:
    """What a run might find: the second round was slow for everybody."""
    one = [Cost(10_000, 3.0, 6.0, {SINGLE: 50.0}), Cost(5_000, 6.0, 9.0, {SINGLE: 80.0})]
    two = [
        Cost(18_000, 2.0, 5.0, {WORKER: 49.0, HOUSEKEEPER: 2.0, SUPERVISOR: 1.0}, 0.9, {DATABASE: 11.0}),
        Cost(9_500, 4.0, 8.0, {WORKER: 77.0, HOUSEKEEPER: 2.0, SUPERVISOR: 1.0}, 0.8, {DATABASE: 13.0}),
    ]
    memory = {"1 worker, ledger on": {SINGLE: 100 << 20}}
    return Figures(
        "SQLite",
        [Line("requests", True, 1, one), Line("requests", True, 2, two)],
        memory,
        streams=100,
        notes=["Something was noted."],
    )


def test_ratios_are_those_of_the_same_round() -> None:
    text = markdown(figures())
    assert "### Ledger on, in SQLite" in text
    assert "| requests | 1 | 7,500 | 1 | 4.50 | 7.50 | 65.0 | 1 | 65.0 | - | - | - | - | - |" in text
    assert "| requests | 2 | 13,750 | 1.85x | 3.00 | 6.50 | 66.0 | 1.02x | 63.0 | 2.0 | 1.0 | 0.85 | 12.0 | - |" in text
    assert "| 1 worker, ledger on | 100 | - | - | - |" in text
    assert text.endswith("- Something was noted.")


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.workers", *arguments],
        cwd=REPOSITORY,
        env=kept | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@needs_programs
def test_the_command_measures_every_load_on_each_gateway(tmp_path: Path) -> None:
    small = ["--workers=1,2", "--rounds=1", "--seconds=1", "--connections=8", "--streams=10", "--ledger=on"]
    done = run(tmp_path, *small, f"--json={tmp_path}/workers.json")
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout
    found = json.loads((tmp_path / "workers.json").read_text())
    for line in found["lines"]:
        assert len(line["rounds"]) == 1
        assert set(line["rounds"][0]["cpu_us"]) == (
            {SINGLE} if line["workers"] == 1 else {WORKER, HOUSEKEEPER, SUPERVISOR}
        )
    loads = {line["load"] for line in found["lines"]}
    assert loads >= {"requests", "limited requests", "one at a time"}
    assert [path.name for path in tmp_path.iterdir()] == ["workers.json"]


def test_an_unknown_load_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "--loads=everything")
    assert done.returncode == 2
    assert "limited requests" in done.stderr
