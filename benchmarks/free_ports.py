"""Ports for servers in other processes, which cannot report the port that the kernel gave them."""

from __future__ import annotations

import socket
import sys


def free_port() -> int:
    """Return a loopback port that stays reserved for its server until this process ends.

    On Linux the port stays bound here, so that no other socket gets it before the server has started. A server that
    binds it by number gets it all the same: both set ``SO_REUSEADDR``, and this socket does not listen. Until then,
    connections to it are refused. On other systems the port is only free at the moment.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    port: int = holder.getsockname()[1]
    if sys.platform == "linux":
        # keep the descriptor open until the process ends
        holder.detach()
    else:
        holder.close()
    return port
