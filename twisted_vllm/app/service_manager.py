"""Tells systemd what the process does, so that it knows when it serves and when a reload is over (sd_notify(3))."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from twisted.logger import Logger


class ServiceManager:
    """Sends states to the socket that systemd names in ``NOTIFY_SOCKET``; without one, nothing."""

    _log = Logger()

    def __init__(self, address: str | None, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """Set up.

        Args:
            address: the path of the socket, or ``@`` and its name in the abstract namespace (unix(7)).
            monotonic_ns: the time since the machine started, in nanoseconds.
        """
        self._address = None if not address else "\0" + address[1:] if address.startswith("@") else address
        self._monotonic_ns = monotonic_ns

    def ready(self) -> None:
        """The process serves; a reload is over."""
        self._send("READY=1")

    def reloading(self) -> None:
        """The process begins to reload."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={self._monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The process begins to stop."""
        self._send("STOPPING=1")

    def _send(self, state: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(state.encode("ascii"), self._address)
        except OSError as error:
            self._log.warn("systemd was not told {state}: {reason}", state=state.split("\n")[0], reason=str(error))


#: nobody is told
NO_MANAGER = ServiceManager(None)
