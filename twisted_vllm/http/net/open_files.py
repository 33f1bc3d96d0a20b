"""The limit on open files, and how many client connections it allows."""

from __future__ import annotations

import resource

#: descriptors reserved for listening ports, the database, the log and the reactor
RESERVED_DESCRIPTORS = 64


def open_file_limit() -> int | None:
    """Return how many files and sockets the process may have open; None means no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def connections_within(configured: int | None, open_files: int | None) -> int | None:
    """Return the limit on client connections: `configured`, or less if the limit on open files requires it.

    A client's connection needs two descriptors: its own, and one for the connection to a server.

    Args:
        configured: the configured limit; None means no limit, whatever `open_files` is.
        open_files: the limit on open files; None means no limit.
    """
    if configured is None or open_files is None:
        return configured
    return min(configured, max(1, (open_files - RESERVED_DESCRIPTORS) // 2))
