"""Chooses which requests that went well have a line in the log."""

from __future__ import annotations

from math import inf

from twisted.logger import Logger

from twisted_vllm.context import RequestContext


class RequestSampling:
    """Gives a share of the completed requests a line, evenly, and counts the others.

    A request has its line in any case if it did not complete, if its answer is an error, if a server failed it before,
    or if its answer began late.

    Attributes:
        left_out: how many lines were left out.
    """

    _log = Logger()

    def __init__(self, share: float = 1.0, slow: float | None = None) -> None:
        """Set up; see `reconfigure`."""
        self.left_out = 0
        self._reported = 0
        self._due = 0.0
        self.reconfigure(share, slow)

    def reconfigure(self, share: float, slow: float | None) -> None:
        """Choose otherwise from now on.

        Args:
            share: the share of completed requests that have a line, 0.0 to 1.0.
            slow: seconds after which an answer has begun late; None for never.
        """
        self.share = share
        self._slow = inf if slow is None else slow

    def has_line(self, context: RequestContext) -> bool:
        """Return whether a request that is over has a line."""
        first_byte = context.first_byte
        if (
            context.outcome != "completed"
            or context.status >= 400
            or context.attempts
            or (first_byte is not None and first_byte - context.started >= self._slow)
        ):
            return True
        self._due += self.share
        if self._due >= 1.0:
            self._due -= 1.0
            return True
        self.left_out += 1
        return False

    def report(self) -> None:
        """Log how many lines were left out since the last report."""
        count = self.left_out - self._reported
        self._reported = self.left_out
        if count:
            self._log.info(
                "{count} more requests were completed and have no line of their own (passthrough.log.requests)",
                count=count,
            )
