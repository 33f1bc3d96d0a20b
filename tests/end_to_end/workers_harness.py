"""A gateway with two workers in real processes, in front of a small server."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.end_to_end.process_harness import MeasuredGateway
from tests.end_to_end.twistd_harness import MASTER_KEY, ask, wait_until

ANSWER = b'{"id":"1","object":"chat.completion","choices":[],"usage":{"prompt_tokens":2,"completion_tokens":3}}'


class Workers(MeasuredGateway):
    """``twistd -n vllm-passthrough --workers N``; the log is in ``gateway.log``."""

    def __init__(self, directory: Path, server: int, *arguments: str, workers: int = 2, **options: Any) -> None:
        self.directory = directory
        super().__init__(directory, server, f"--workers={workers}", *arguments, **options)

    def wait_until_serving(self) -> None:
        """Wait until all processes are ready."""
        wait_until(lambda: self.messages("Serving with "))

    def lines(self) -> list[dict[str, Any]]:
        """The lines of the log."""
        try:
            text = (self.directory / "gateway.log").read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def messages(self, part: str) -> list[str]:
        """The messages of the log that contain a text."""
        return [line["message"] for line in self.lines() if part in line.get("message", "")]

    def processes(self) -> dict[int, int]:
        """The slots of the processes that run, by their process ids; 0 is the housekeeper."""
        found: dict[int, int] = {}
        for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            try:
                arguments = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                found[int(child)] = json.loads(arguments[-2])["slot"]
            except (OSError, IndexError, ValueError, KeyError, TypeError):
                # it is not its program yet, or no more
                continue
        return found

    def pid_of(self, slot: int) -> int:
        """The process id of a slot."""
        return next(pid for pid, found in self.processes().items() if found == slot)

    def kill(self, slot: int) -> int:
        """Kill the process of a slot; return its process id."""
        pid = self.pid_of(slot)
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_until_replaced(self, pid: int) -> None:
        """Wait until a process has ended and another has its slot."""
        wait_until(lambda: pid not in self.processes() and len(self.processes()) == len({*self.processes().values()}))
        wait_until(lambda: {*self.processes().values()} == {0, 1, 2})

    def statuses(self, count: int, path: str, key: str = MASTER_KEY) -> Counter[int]:
        """Send requests, each on a connection of its own, so that all workers get some; return their statuses."""
        return Counter(ask(self.port, path, key)[0] for _ in range(count))


@contextmanager
def started(gateway: Workers) -> Iterator[Workers]:
    """Start a gateway, and wait until all of its processes are ready."""
    with gateway:
        gateway.wait_until_serving()
        yield gateway
