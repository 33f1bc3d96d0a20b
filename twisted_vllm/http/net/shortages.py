"""What happens when the process or the machine has no descriptor, port or memory left for a socket."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from errno import errorcode
from typing import Literal

from twisted.logger import Logger

from twisted_vllm.config.alert_types import SOCKETS_ALERT

Operation = Literal["accept", "connect"]

_FAILED = {
    "accept": "a client's connection could not be accepted",
    "connect": "no connection to a server could be made",
}


class Shortages:
    """Counts what failed for want of a descriptor, tells the log, and has idle connections closed.

    Attributes:
        counts: how often each operation failed, by operation and name of the error, such as ``EMFILE``.
    """

    _log = Logger()

    def __init__(self) -> None:
        """Start at zero."""
        self.counts: Counter[tuple[Operation, str]] = Counter()
        self._reclaimers: list[Callable[[], int]] = []

    def add_reclaimer(self, make_room: Callable[[], int]) -> None:
        """Add a function that closes idle connections and returns how many; the first that closes some is enough."""
        self._reclaimers.append(make_room)

    def note(self, operation: Operation, number: int) -> int:
        """Note that an operation failed.

        Args:
            operation: what failed.
            number: the error number, one of `SHORTAGES`.

        Returns:
            How many connections are being closed to make room.
        """
        self.counts[operation, errorcode.get(number, str(number))] += 1
        freed = next((freed for make_room in self._reclaimers if (freed := make_room())), 0)
        self._log.error(
            "Out of sockets or files: {failed} ({reason}). Raise the limit on open files (ulimit -n, LimitNOFILE) or "
            "lower passthrough.limits.max_connections; {freed} idle connections are closed to make room.",
            failed=_FAILED[operation],
            reason=os.strerror(number),
            freed=freed,
            once_a_second=operation,
            **SOCKETS_ALERT,
        )
        return freed
