"""Request ids, shared by client, server, log and ledger."""

from __future__ import annotations

import re
from collections.abc import Callable

#: ids that are accepted from clients: visible ASCII, which is safe in headers and logs
SAFE_ID = re.compile(rb"[\x21-\x7e]{1,128}")

#: random bytes per generated id, and ids per read of the kernel's random source
RANDOM_BYTES = 12
BATCH = 64


class RequestIds:
    """Generates ids, and tracks those of the requests in flight."""

    def __init__(self, randbytes: Callable[[int], bytes]) -> None:
        """Start empty; `randbytes` returns the given number of random bytes."""
        self._randbytes = randbytes
        self._in_flight: set[bytes] = set()
        self._random: list[bytes] = []
        self._second, self._second_digits = -1, b""

    def __len__(self) -> int:
        """Return the number of requests in flight."""
        return len(self._in_flight)

    def take(self, given: bytes | None, started: float) -> bytes:
        """Return the id of a request: the client's own if it is safe and not in flight, else a new one.

        Two requests in flight with the same id have broken vLLM's engine: vLLM builds its own ids from this header.

        Args:
            given: the client's id, or None.
            started: when the request began, in seconds since 1970.
        """
        if given is None or given in self._in_flight or not SAFE_ID.fullmatch(given):
            given = self.make(started)
        self._in_flight.add(given)
        return given

    def release(self, request_id: bytes) -> None:
        """Release the id of a request that is over."""
        self._in_flight.discard(request_id)

    def make(self, started: float) -> bytes:
        """Return an id of 32 hex digits: the second in which the request started, and 96 random bits.

        The ledger stores its rows in order of time; the second locates the row.
        """
        second = int(started)
        if second != self._second:
            self._second = second
            self._second_digits = b"%08x" % (second & 0xFFFFFFFF)
        if not self._random:
            digits = self._randbytes(BATCH * RANDOM_BYTES).hex().encode("ascii")
            self._random = [
                digits[start : start + 2 * RANDOM_BYTES] for start in range(0, len(digits), 2 * RANDOM_BYTES)
            ]
        return self._second_digits + self._random.pop()
