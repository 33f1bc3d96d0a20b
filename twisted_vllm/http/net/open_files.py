"""The limit on open files, and how it is shared out.

A connection needs a descriptor, and so does a form that waits in a file. Each user has a share, so that an admitted
request can connect to its server whatever clients do.
"""

from __future__ import annotations

import errno
import os
import resource

import attrs

#: descriptors that are not shared out: listening ports, the database, the ledger's spool, the log, Redis, the reactor,
#: name resolution, and sockets that the kernel has not closed yet
RESERVED_DESCRIPTORS = 64

#: the most that refused connections and files of forms may take
MAX_REFUSED = 128
MAX_FORM_FILES = 256

#: what a system call fails with when the process or the machine has no descriptor, port or memory left for a socket
SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM))


@attrs.frozen
class DescriptorShares:
    """How many descriptors each user may take.

    Attributes:
        clients: client connections; None means no limit.
        refused: connections that are refused with an answer; half as many more may be closing to make room.
        upstreams: connections to servers, idle ones included; None means no limit.
        form_files: files of large forms.
    """

    clients: int | None
    refused: int
    upstreams: int | None
    form_files: int


def share_out(max_connections: int | None, open_files: int | None) -> DescriptorShares:
    """Share out the descriptors; each client connection gets a second one for its connection to a server.

    Args:
        max_connections: the most client connections; None means as many as `open_files` allows.
        open_files: the limit on open files; None means no limit.
    """
    if open_files is None:
        return DescriptorShares(max_connections, MAX_REFUSED, None, MAX_FORM_FILES)
    room = open_files - RESERVED_DESCRIPTORS
    refused = min(MAX_REFUSED, max(2, room // 8))
    form_files = min(MAX_FORM_FILES, max(1, room // 16))
    room -= refused + refused // 2 + form_files
    clients = max(1, room // 2)
    if max_connections is not None:
        clients = min(max_connections, clients)
    return DescriptorShares(clients, refused, max(1, room - clients), form_files)


def open_file_limit() -> int | None:
    """Return how many files and sockets the process may have open; None means no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


class SpareDescriptor:
    """A descriptor that is held open, and freed for a moment when there is no other."""

    def __init__(self) -> None:
        """Take none yet."""
        self._descriptor = -1

    def take(self) -> bool:
        """Open it, unless it is open; return whether it is."""
        if self._descriptor < 0:
            try:
                self._descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return False
        return True

    def free(self) -> None:
        """Close it. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_exhausted() -> bool:
    """Return whether no descriptor can be opened at present."""
    probe = SpareDescriptor()
    if not probe.take():
        return True
    probe.free()
    return False
