"""The level of the log, which administrators may change for a while."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twisted_vllm.observability.logging.observer import LineObserver


@attrs.frozen
class LevelInEffect:
    """The level of the log.

    Attributes:
        level: the lowest level that is written.
        configured: the level that the settings say.
        ends: when `configured` holds again, in the reactor's seconds; None for the next reload.
    """

    level: str
    configured: str
    ends: float | None = None


class LogLevels:
    """Changes the level of the log at once, until the next reload or for a time.

    Attributes:
        share: has the other processes of the gateway make a change; the arguments are those of `change`. It returns the
            names of those that did not. None if there are no others.
    """

    _log = Logger()

    def __init__(self, observer: LineObserver, clock: Any) -> None:
        """Set up.

        Args:
            observer: the log.
            clock: the reactor's clock (``IReactorTime``).
        """
        self.share: Callable[[str, float | None, str], Deferred[Sequence[str]]] | None = None
        self._observer = observer
        self._clock = clock
        self._configured = observer.level
        self._ends: Any = None

    @property
    def in_effect(self) -> LevelInEffect:
        """The level now."""
        return LevelInEffect(
            self._observer.level, self._configured, None if self._ends is None else float(self._ends.getTime())
        )

    def change(self, level: str, seconds: float | None, by: str) -> LevelInEffect:
        """Write lines of this level and above from now on; return what holds now.

        Args:
            level: one of `twisted_vllm.config.log.LEVELS`.
            seconds: for how long; None until the next reload.
            by: who asks, for the log.
        """
        self._forget()
        before = self._observer.level
        # before the change: the log says why it falls silent
        self._log.warn(
            "The log's level is {now} {how_long} (it was {before}), as {by} asked",
            now=level,
            how_long="until the next reload" if seconds is None else f"for {seconds:g} s",
            before=before,
            by=by,
        )
        self._observer.level = level
        if seconds is not None:
            self._ends = self._clock.callLater(seconds, self._expired)
        return self.in_effect

    def reconfigure(self, level: str) -> None:
        """Take the level of the settings; what was asked for ends."""
        self._forget()
        self._configured = self._observer.level = level

    def stop(self) -> None:
        """Wait for nothing more. Idempotent."""
        self._forget()

    def _forget(self) -> None:
        ends, self._ends = self._ends, None
        if ends is not None and ends.active():
            ends.cancel()

    def _expired(self) -> None:
        self._ends = None
        self._observer.level = self._configured
        self._log.warn("The log's level is {now} again", now=self._configured)
