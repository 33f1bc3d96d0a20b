"""The ids of requests, which client, server, log and ledger share."""

from __future__ import annotations

import re
from collections.abc import Callable

#: ids that are accepted from clients: visible ASCII, which is safe in headers and logs
SAFE_ID = re.compile(rb"[\x21-\x7e]{1,128}")

#: bytes of randomness in an id that is made here, and ids that are made with one question to the kernel
RANDOM_BYTES = 12
BATCH = 64


class RequestIds:
    """Makes ids, and knows those of the requests in flight."""

    def __init__(self, randbytes: Callable[[int], bytes]) -> None:
        """Begin with none; `randbytes` returns so many random bytes."""
        self._randbytes = randbytes
        self._in_flight: set[bytes] = set()
        self._random: list[bytes] = []
        self._second, self._second_digits = -1, b""

    def __len__(self) -> int:
        """Return the number of requests in flight."""
        return len(self._in_flight)

    def take(self, given: bytes | None, started: float) -> bytes:
        """Return the id of a request: the client's own where it is safe and not in flight, else a new one.

        A second request in flight with one id has broken vLLM's engine: vLLM builds its own ids from this header.

        Args:
            given: the client's.
            started: when the request began, in seconds since 1970.
        """
        if given is None or given in self._in_flight or not SAFE_ID.fullmatch(given):
            given = self.make(started)
        self._in_flight.add(given)
        return given

    def release(self, request_id: bytes) -> None:
        """Forget a request that is over."""
        self._in_flight.discard(request_id)

    def make(self, started: float) -> bytes:
        """Return an id of 32 hex digits: the second that a request began in, and 96 random bits.

        The ledger keeps its rows in the order of their time; the second says where a row is.
        """
        second = int(started)
        if second != self._second:
            self._second = second
            self._second_digits = b"%08x" % (second & 0xFFFFFFFF)
        if not self._random:
            digits = self._randbytes(BATCH * RANDOM_BYTES).hex().encode("ascii")
            self._random = [digits[at : at + 2 * RANDOM_BYTES] for at in range(0, len(digits), 2 * RANDOM_BYTES)]
        return self._second_digits + self._random.pop()
