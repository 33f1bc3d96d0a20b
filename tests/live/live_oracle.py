"""Asks vLLM's own readers of bodies: `vllm_oracle` in a process of vLLM's Python."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

#: seconds for one batch, or for the start
PATIENCE = 300


@attrs.frozen
class Job:
    """A body for a route; `server` is one of `vllm_oracle.SERVERS`."""

    route: str
    content_type: str
    body: bytes
    server: str = "generate"


class Oracle:
    """The process.

    Attributes:
        routes: the paths that this vLLM has.
    """

    def __init__(self, python: str) -> None:
        """Start it, with vLLM's Python."""
        program = Path(__file__).with_name("vllm_oracle.py")
        self._process = subprocess.Popen(
            [python, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
        )
        self.routes: list[str] = self._answer()

    def ask(self, jobs: Sequence[Job]) -> list[dict[str, Any] | None]:
        """Return vLLM's readings, None for what it refuses; ``crash`` is in those on which it fails."""
        if not jobs:
            return []
        written = [
            (job.route, job.content_type, base64.b64encode(job.body).decode("ascii"), job.server) for job in jobs
        ]
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(written) + "\n")
        self._process.stdin.flush()
        answers: list[dict[str, Any] | None] = self._answer()
        return answers

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        timer = threading.Timer(PATIENCE, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        assert line, f"vLLM's readers ended, or took longer than {PATIENCE} seconds"
        return json.loads(line)
