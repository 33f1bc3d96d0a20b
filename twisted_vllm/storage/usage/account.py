"""What one spool's rows add up to, and how far the database has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import attrs

from twisted_vllm.storage.usage.batch import UsageBatch
from twisted_vllm.storage.usage.gathered import GatheredSpend, GatheredSums
from twisted_vllm.storage.usage.marks import Mark
from twisted_vllm.storage.usage.steps import Steps
from twisted_vllm.usage.interfaces import Position


@attrs.frozen
class Rhythm:
    """When an amount is written.

    Attributes:
        seconds: after so many seconds in any case.
        seconds_each: seconds that each thing to write delays it: few are written at once, many seldom.
        entries: how many things are gathered at most.
        rows: of how many rows at most.
    """

    seconds: float
    seconds_each: float
    entries: int
    rows: int


class Gathered(Protocol):
    """What rows add up to.

    Attributes:
        entries: how many things were added up, for a bound of the memory.
        rows: how many rows.
    """

    rows: int

    @property
    def entries(self) -> int: ...

    def add(self, batch: UsageBatch) -> None:
        """Add rows."""


G = TypeVar("G", GatheredSums, GatheredSpend)


@attrs.define
class Cut(Generic[G]):
    """What is being written.

    Attributes:
        gathered: what it is.
        to: the position of the spool up to which it has all rows.
        steps: the steps.
        began: when the oldest of its rows was gathered, by the caller's clock in seconds.
    """

    gathered: G
    to: Position
    steps: Steps
    began: float


class Account(Generic[G]):
    """One amount of one spool: its sums, or its spend.

    Rows come in the order of the spool. Those that the database has, by its mark, are left out.

    Attributes:
        what: `SPEND` or `SUMS`.
        mark: the mark in the database, as far as it is known.
        sent: the mark of a transaction of which it is unknown whether it was committed; None for none.
        gathered: what was gathered since the last cut.
        cut: what is being written; None for nothing.
        end: where the gathered rows end in the spool.
        cut_at: when the last cut was made, by the caller's clock in seconds.
        split_at: where a cut ends in any case: the rows that follow count otherwise. None for nowhere.
    """

    def __init__(self, what: str, mark: Mark, make: Callable[[], G], now: float) -> None:
        """Begin where the database is.

        Args:
            what: `SPEND` or `SUMS`.
            mark: the mark in the database.
            make: makes what gathers.
            now: the caller's clock, in seconds.
        """
        self.what = what
        self.mark = mark
        self.sent: Mark | None = None
        self._make: Callable[[], G] = make
        self.gathered: G = make()
        self.cut: Cut[G] | None = None
        self.end = mark.at
        self.cut_at = now
        #: when the oldest of the gathered rows was gathered; None without any
        self._began: float | None = None
        #: where rows end that may not be in one cut with those that follow
        self.split_at: Position | None = None

    @property
    def resumes_to(self) -> Position | None:
        """Where the rows end that a former process was adding; None if it left nothing unfinished."""
        return self.mark.to if self.mark.is_between and self.cut is None else None

    @property
    def rows(self) -> int:
        """How many rows the database lacks in this amount."""
        return self.gathered.rows + (0 if self.cut is None else self.cut.gathered.rows)

    @property
    def since(self) -> float | None:
        """Since when the oldest of them waits, by the caller's clock; None without any."""
        cut = self.cut
        return self._began if cut is None or not cut.gathered.rows else cut.began

    def add(self, batches: Sequence[UsageBatch], end: Position | None, now: float) -> None:
        """Take the next rows. They may not lie on both sides of one of the marks' positions.

        Args:
            batches: the rows.
            end: where they end in the spool; None for rows that are in no spool.
            now: the clock of the constructor.
        """
        if end is not None:
            if end <= self.mark.at:
                return
            self.end = max(end, self.end)
        if self._began is None and batches:
            self._began = now
        for batch in batches:
            self.gathered.add(batch)

    def is_due(self, now: float, rhythm: Rhythm, *, force: bool) -> bool:
        """Return whether to write what was gathered.

        Args:
            now: the clock of the constructor.
            rhythm: how often.
            force: whether to write whatever there is.
        """
        resumes_to = self.resumes_to
        if resumes_to is not None:
            # It is written exactly as far as it was begun.
            return force or self.end >= resumes_to
        entries = self.gathered.entries
        if not self.gathered.rows and self.end <= self.mark.at:
            return False
        if force or (self.split_at is not None and self.mark.at < self.split_at <= self.end):
            return True
        if entries >= rhythm.entries or self.gathered.rows >= rhythm.rows:
            return True
        # Where there is nothing to write, only the mark moves.
        delay = min(rhythm.seconds, entries * rhythm.seconds_each) if entries else rhythm.seconds
        return now - self.cut_at >= delay

    def begin(self, now: float, steps: Callable[[G], Steps]) -> Cut[G]:
        """Cut: what is gathered from now on is not in the returned amount."""
        gathered, began = self.gathered, self._began
        # First: if it fails, nothing is forgotten.
        prepared = steps(gathered)
        self.cut = Cut(gathered, self.resumes_to or self.end, prepared, now if began is None else began)
        self.gathered, self._began = self._make(), None
        self.cut_at = now
        return self.cut

    @property
    def in_one(self) -> bool:
        """Whether the cut has rows of no spool alone: if it were half written, nobody could go on after a crash."""
        return self.cut is not None and self.cut.to <= self.mark.at

    def after(self, done: str | None) -> Mark:
        """Return the mark after a transaction.

        Args:
            done: the last step of the cut that is done; None if all are.
        """
        assert self.cut is not None
        serial = self.mark.serial + 1
        if done is None:
            return Mark(serial, self.cut.to, self.cut.to)
        return Mark(serial, self.mark.at, self.cut.to, done)

    def follows(self, found: Mark) -> bool:
        """Return whether a mark is that of a transaction of this cut that was sent and not confirmed."""
        assert self.cut is not None
        if self.sent is None or found.serial != self.mark.serial + 1:
            return False
        # It had other steps than the cut has left only if another process made it.
        known = not found.done or found.done in self.cut.steps.after(self.mark.done)
        return known and found == self.after(found.done or None)

    def committed(self, mark: Mark) -> None:
        """Note that the database has a mark."""
        self.mark, self.sent = mark, None
        if not mark.done:
            self.cut = None
