"""Several processes start on one database at the same moment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import twisted_vllm

SCRIPT = Path(__file__).with_name("start_database.py")
ROOT = Path(twisted_vllm.__file__).parent.parent


def start_together(url: str, processes: int) -> list[str]:
    """Return the last line of each process, or its traceback."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
        )
        for _ in range(processes)
    ]
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.stdout.read()
        for process in running:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        return [process.communicate(timeout=60)[0].strip() for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
