"""What open streams cost: the figures of steps, the simulation, and real streams in small numbers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.streams.clients import address_of
from benchmarks.streams.real import most_streams, simulated
from benchmarks.streams.report import Step, markdown
from benchmarks.workers.upstream import find_echo

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 180.0

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None or find_echo() is None,
    reason="needs nginx with its echo module",
)


def test_streams_are_what_is_added_to_the_first_step() -> None:
    steps = [
        Step(0, 0, 100 << 20, 60 << 20, 0.01, 0.0),
        Step(1, 0, 101 << 20, 60 << 20, 0.01, 0.001),
        Step(1024, 2, 116 << 20, 70 << 20, 0.02, 0.000250, idle=0.015),
    ]
    text = markdown("Streams", steps)
    assert "| 0 | 0 | 100 | 60 | - | 1.0 | - | - | - |" in text
    assert "| 1 | 0 | 101 | 60 | - | 1.0 | - | - | - |" in text
    assert "| 1,024 | 2 | 116 | 70 | 16.0 | 2.0 | 1.5 | 9.8 | 250 |" in text


def test_streams_come_from_many_addresses() -> None:
    addresses = {address_of(number) for number in range(0, 300_000, 500)}
    assert len(addresses) >= 290
    assert all(re.fullmatch(r"127\.1\.\d+\.\d+", address) for address in addresses)


def test_each_stream_takes_two_descriptors() -> None:
    assert 9_000 < most_streams(20_000, 1) < 10_000
    assert most_streams(20_000, 1) < most_streams(20_000, 2) < 2 * most_streams(20_000, 1)


@linux
def test_simulated_streams_are_answered_and_take_memory() -> None:
    steps = simulated([200, 2_000], 1.0, 0.3)
    assert [(step.streams, step.failed) for step in steps] == [(0, 0), (200, 0), (2_000, 0)]
    each = (steps[2].resident - steps[0].resident) / 2_000
    assert 5_000 < each < 40_000


@linux
@needs_nginx
def test_the_command_holds_real_streams_with_one_process_and_with_workers(tmp_path: Path) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.streams", "--workers=1,2", "--most-real=150", "--most=100", "--seconds=0.3"],
        cwd=REPOSITORY,
        env=kept | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "### Real streams, 1 process, " in done.stdout
    assert "### Real streams, 2 workers, " in done.stdout
    assert done.stdout.count("| 150 | 0 | ") == 2
    assert done.stdout.count("| 100 | 0 | ") == 1
    assert list(tmp_path.iterdir()) == []
