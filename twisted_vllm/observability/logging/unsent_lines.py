"""Bounds the log lines of requests that reached no server, which cost whoever sends them nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from twisted.logger import Logger

from twisted_vllm.client_address import client_of
from twisted_vllm.context import RequestContext
from twisted_vllm.ratelimit.minute_counts import MinuteCounts

#: as many times the limit are all requests without a key together
STRANGERS = 10
#: senders that the summary of a minute names
MAX_NAMED = 10

#: the name of all requests without a key together
_ALL_STRANGERS = ""


class UnsentLines:
    """Decides which requests have a line, and says once a minute how many had none.

    Attributes:
        left_out: how many lines were left out.
    """

    _log = Logger()

    def __init__(self, limit: int | None, client_of: Callable[[RequestContext], str]) -> None:
        """Set up.

        Args:
            limit: the lines of one key, or of one address without a key, in a minute; None means no limit.
            client_of: returns the address of a request's client.
        """
        self.left_out = 0
        self._client_of = client_of
        self._counts = MinuteCounts()
        self._left_out: Counter[str] = Counter()
        self.reconfigure(limit)

    def reconfigure(self, limit: int | None) -> None:
        """Use another limit from now on; what was counted in this minute still counts."""
        self._limit = limit

    def has_line(self, context: RequestContext, now: float) -> bool:
        """Return whether a request that reached no server has a line.

        Args:
            context: the request, which is over.
            now: the time in seconds.
        """
        limit, principal = self._limit, context.principal
        if limit is None or (principal is not None and principal.may_administer):
            return True
        if principal is not None and principal.key_id:
            if self._counts.add(principal.key_id, now)[0] <= limit:
                return True
            self._leave_out(f"the key {principal.name}")
            return False
        address = self._client_of(context)
        if self._counts.add((client_of(address),), now)[0] > limit:
            self._leave_out(address)
            return False
        if self._counts.add(_ALL_STRANGERS, now)[0] > limit * STRANGERS:
            self._leave_out("other addresses")
            return False
        return True

    def report(self) -> None:
        """Log how many lines were left out since the last report."""
        left_out, self._left_out = self._left_out, Counter()
        named = left_out.most_common(MAX_NAMED)
        for sender, count in named:
            self._log.warn(
                "{count} more requests from {sender} reached no server and have no line of their own "
                "(passthrough.log.max_unsent_lines)",
                count=count,
                sender=sender,
            )
        others = left_out.total() - sum(count for _, count in named)
        if others:
            self._log.warn("{count} more requests from others reached no server and have no line either", count=others)

    def _leave_out(self, sender: str) -> None:
        self.left_out += 1
        # the same bound as that of the counts
        known = sender in self._left_out or len(self._left_out) < 4 * MAX_NAMED
        self._left_out[sender if known else "other addresses"] += 1
