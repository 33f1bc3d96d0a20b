"""Telling the operator, once, that Redis is away, and once that it is back."""

from __future__ import annotations

from twisted.logger import Logger

_log = Logger()


class OutageNotice:
    """Whether Redis is known to be away.

    Args:
        server: what logs call it.
        refuses: whether requests are refused meanwhile.
    """

    def __init__(self, server: str, *, refuses: bool) -> None:
        self._server = server
        self._then = "requests with limits are refused" if refuses else "this process counts limits for itself"
        self._told = False
        self._quiet = False

    def begins(self, reason: str) -> None:
        """Say so, unless it was said."""
        if self._told or self._quiet:
            return
        self._told = True
        _log.error(
            "{server} does not count limits: {reason}. Until it does, {then}.",
            server=self._server,
            reason=reason,
            then=self._then,
        )

    def is_over(self) -> None:
        """Say so, unless nothing was said before."""
        if self._told:
            self._told = False
            _log.warn("{server} counts limits again.", server=self._server)

    def is_wanted(self) -> None:
        """Say nothing any more: the connection is to be closed."""
        self._quiet = True
