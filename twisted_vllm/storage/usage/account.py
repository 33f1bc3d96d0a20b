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


class Gathered(Protocol):
    """What rows add up to.

    Attributes:
        entries: how many things were added up.
    """

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
        prepared: whether what needs no mark was written.
    """

    gathered: G
    to: Position
    steps: Steps
    prepared: bool = False


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

    @property
    def resumes_to(self) -> Position | None:
        """Where the rows end that a former process was adding; None if it left nothing unfinished."""
        return self.mark.to if self.mark.is_between and self.cut is None else None

    def add(self, batches: Sequence[UsageBatch], end: Position | None) -> None:
        """Take the next rows. They may not lie on both sides of one of the marks' positions.

        Args:
            batches: the rows.
            end: where they end in the spool; None for rows that are in no spool.
        """
        if end is not None:
            if end <= self.mark.at:
                return
            self.end = max(end, self.end)
        for batch in batches:
            self.gathered.add(batch)

    def is_due(self, now: float, longest: float, per_entry: float, most: int, *, force: bool) -> bool:
        """Return whether to write what was gathered.

        Args:
            now: the clock of the constructor.
            longest: seconds after which it is written in any case.
            per_entry: seconds that each thing to write delays it: few are written at once, many seldom.
            most: things that are gathered at most.
            force: whether to write whatever there is.
        """
        resumes_to = self.resumes_to
        if resumes_to is not None:
            # It is written exactly as far as it was begun.
            return force or self.end >= resumes_to
        entries = self.gathered.entries
        if not entries and self.end <= self.mark.at:
            return False
        return force or entries >= most or now - self.cut_at >= min(longest, entries * per_entry)

    def begin(self, now: float, steps: Callable[[G], Steps]) -> Cut[G]:
        """Cut: what is gathered from now on is not in the returned amount."""
        to = self.resumes_to or self.end
        gathered, self.gathered = self.gathered, self._make()
        self.cut = Cut(gathered, to, steps(gathered))
        self.cut_at = now
        return self.cut

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

    def committed(self, mark: Mark) -> None:
        """Note that the database has a mark."""
        self.mark, self.sent = mark, None
        if not mark.done:
            self.cut = None
