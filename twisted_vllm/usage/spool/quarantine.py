"""Lines that cannot be read, and rows that no database takes: they are kept for a person to look at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

SUFFIX = ".damaged"


def quarantine(directory: Path, name: str, lines: Sequence[bytes]) -> Path:
    """Append lines to the file for them and return its path.

    Raises:
        OSError: they cannot be kept.
    """
    path = directory / f"{name}{SUFFIX}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
    return path
