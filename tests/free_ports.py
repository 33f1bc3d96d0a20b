"""Ports for servers in processes of their own, which cannot tell which port the kernel gave them."""

from __future__ import annotations

import socket
import sys


def free_port() -> int:
    """Return a port of the loopback that nobody else gets until the tests end.

    A port that was only looked for may be given to another socket of this machine before its server has started. So it
    stays bound here. Linux lets a server that asks for it by number have it all the same, as both set ``SO_REUSEADDR``
    and this one does not listen; it gives it to none that asks for any port, and whoever connects to it is refused.
    Elsewhere only its finder may have it, and it is let go.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    port: int = holder.getsockname()[1]
    if sys.platform == "linux":
        # the descriptor alone keeps it: one for each port of the whole run
        holder.detach()
    else:
        holder.close()
    return port
