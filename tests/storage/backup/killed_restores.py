"""Kills restores with ``kill -9`` before each call of the kernel that changes a file's name, one after the other.

``BACKUP DIRECTORY``: there, ``KIND-NUMBER`` gets a restore that was killed at the call of this number, into an empty
place or, with force, into one with other files. The last one of a kind was not killed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.storage.backup.making import Files, fill

#: functions of `os` before which a restore is killed
CALLS = ("rename", "unlink", "rmdir", "mkdir", "fsync", "link", "replace")


def kill_at(number: int) -> None:
    """Have this process killed at one of its next calls."""
    left = number

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return original(*arguments, **named)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def restore(backup: Path, directory: Path, number: int, *, force: bool) -> bool:
    """Restore in a process of its own, which may be killed; return whether it was not."""
    child = os.fork()
    if child == 0:
        kill_at(number)
        try:
            Files(directory).restore(backup, force=force)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def main(backup: Path, place: Path) -> None:
    """Kill restores of both kinds at every call."""
    for kind in ("empty", "full"):
        number = 0
        while True:
            directory = place / f"{kind}-{number}"
            directory.mkdir(parents=True)
            if kind == "full":
                fill(directory, stored=6, waiting=2)
            if restore(backup, directory, number, force=kind == "full"):
                break
            number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
