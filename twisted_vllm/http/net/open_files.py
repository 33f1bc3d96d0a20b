"""The limit on open files, and how many client connections it allows."""

from __future__ import annotations

import resource

#: descriptors for everything but connections: listening ports, the database, the log, the reactor
RESERVED_DESCRIPTORS = 64


def open_file_limit() -> int | None:
    """Return how many files and sockets the process may have open; None is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def connections_within(wanted: int | None, open_files: int | None) -> int | None:
    """Return the cap on client connections: `wanted`, or less where the limit on open files does not allow that.

    A client's connection costs two descriptors: its own, and one for the connection to a server.

    Args:
        wanted: the configured cap; None is none, whatever the limit.
        open_files: the limit on open files; None is none.
    """
    if wanted is None or open_files is None:
        return wanted
    return min(wanted, max(1, (open_files - RESERVED_DESCRIPTORS) // 2))
