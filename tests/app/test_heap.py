"""Large blocks go back to the system when they are freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.end_to_end.twistd_harness import environment
from twisted_vllm.app.heap import forget_generated_sources


def test_sources_that_attrs_generated_are_forgotten_and_its_classes_work_on() -> None:
    import linecache

    import attrs

    @attrs.frozen
    class Made:
        number: int

    assert any(name.startswith("<attrs generated") for name in linecache.cache)
    forget_generated_sources()
    assert linecache.cache == {}
    assert Made(7) == Made(7)
    with pytest.raises(TypeError, match="missing 1 required"):
        Made()  # type: ignore[call-arg]  # on purpose


#: bodies of 1 MiB, each with small objects behind it that live on, as requests leave some; then bodies of 8 MiB
HOLD_AND_FREE = """
from pathlib import Path
from twisted_vllm.app.heap import map_large_blocks
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
map_large_blocks()
before, kept = resident(), []
for size in (1, 8, 1):
    bodies = []
    for _ in range(40 // size * 4):
        bodies.append(bytes(size << 20))
        kept.append([object() for _ in range(100)])
    bodies.clear()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the thresholds are glibc's")
def test_bodies_that_were_held_leave_less_than_10_mb_behind() -> None:
    command = [sys.executable, "-c", HOLD_AND_FREE]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    assert int(ran.stdout) < 10_000_000
