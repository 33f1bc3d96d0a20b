"""How many connections the process may have: each client's costs two descriptors, its own and the server's."""

from __future__ import annotations

import resource

#: descriptors for everything else: listening ports, the database, the log, the reactor
RESERVED = 64


def open_files() -> int | None:
    """Return how many files and sockets the process may have open; None where there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def cap_within(cap: int | None, files: int | None) -> int | None:
    """Return a cap on client connections that a limit on open files allows: `cap` where it does, else less.

    Args:
        cap: the cap that is wished for; None is none, whatever the limit.
        files: the limit on open files; None is none.
    """
    if cap is None or files is None:
        return cap
    return min(cap, max(1, (files - RESERVED) // 2))
