"""Tells whether a socket has something to read, its end included, without reading it.

``recv`` with ``MSG_PEEK`` tells the same, but where there is nothing it raises an exception, which takes several times
as long as asking ``poll``.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

from twisted_vllm.http.net.write_coalescing import underlying_transport

#: returns something true if there is something to read; the argument is the time to wait in milliseconds
Look = Callable[[int], object]

HAS_POLL = hasattr(select, "poll")


def look_into(transport: Any) -> Look:
    """Return the function that looks into the socket of a transport, also below its TLS.

    A TLS connection that has ended has unread bytes too: the alert that announces it, or the end of the socket.
    """
    owner = underlying_transport(transport)
    if owner is None or not HAS_POLL:
        return _nothing
    poll = select.poll()
    poll.register(owner.fileno(), select.POLLIN)
    return poll.poll


def _nothing(_: int) -> object:
    """Tell that there is nothing, where there is no socket."""
    return None
