"""How many requests may be sent to another server after the first one failed. It does no I/O.

A retry is load that no client asked for. Where servers fail because they are overloaded, retries without a limit keep
them down. So retries are at most a share of the requests, and in a burst at most one for each request in flight: that
is what the death of a server takes, and it must be possible without a single request before it.

The account is a debt. A retry adds 1, a request takes off the share, and time takes off `FORGIVEN` a second, so that a
gateway with little traffic is not without retries for hours after a server died. Over any time, retries are at most

    share of the requests + FORGIVEN a second + the larger of BURST and the most requests in flight.

Not counted is an attempt of which nothing was sent (connection refused, no connection in time): no server did any work
for it, so its retry is the first load. ``num_retries`` bounds those. A request at a server that the health checks
declare dead counts: it was sent, and the checks may have failed because of overload. Then the requests of the second
server that is declared dead have no budget left, and the load does not go through all servers in turn.
"""

from __future__ import annotations

#: retries at once, however few requests are in flight
BURST = 10
#: retries a second that need no requests
FORGIVEN = 0.1


class RetryBudget:
    """The retries of one model's requests.

    Attributes:
        share: retries for each request, 0 to 1; 0 allows only those that are not counted.
        denied: retries that were not allowed.
        taken: retries that were allowed and counted.
    """

    __slots__ = ("_debt", "_settled", "denied", "share", "taken")

    def __init__(self, share: float, now: float) -> None:
        """Create a budget without debt.

        Args:
            share: retries for each request, 0 to 1.
            now: the time, in seconds.
        """
        self.share = share
        self.denied = self.taken = 0
        self._debt = 0.0
        self._settled = now

    def __repr__(self) -> str:
        return f"<RetryBudget {self._debt:.1f} used, {self.taken} taken, {self.denied} denied>"

    def began(self) -> None:
        """Count a client's request, once."""
        debt = self._debt
        if debt:
            self._debt = debt - self.share if debt > self.share else 0.0

    def take(self, now: float, *, sent: bool, in_flight: int) -> bool:
        """Decide whether a request may be sent again, and count it.

        Args:
            now: the time, in seconds.
            sent: whether any byte of it may have reached a server.
            in_flight: the model's requests in flight, those in the queue included.
        """
        if not sent:
            return True
        # a clock that was set back forgives nothing
        forgiven = (now - self._settled) * FORGIVEN
        self._settled = now
        if forgiven > 0.0:
            self._debt = max(0.0, self._debt - forgiven)
        if not self.share or self._debt + 1.0 > max(BURST, in_flight):
            self.denied += 1
            return False
        self._debt += 1.0
        self.taken += 1
        return True
