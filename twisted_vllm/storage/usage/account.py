"""What the rows of some spools add up to, and how far the database has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        to: the positions of the spools up to which it has all rows, by the spool's name.
        steps: the steps.
        began: when the oldest of its rows was gathered, by the caller's clock in seconds.
        done: the last step that is done; empty before the first.
    """

    gathered: G
    to: Mapping[str, Position]
    steps: Steps
    began: float
    done: str


class Account(Generic[G]):
    """One amount of some spools: their sums, or their spend.

    Rows come in the order of each spool. Those that the database has, by its mark, are left out. Spools are written
    together: each transaction moves the marks of all that have rows in it.

    Attributes:
        what: `SPEND` or `SUMS`.
        marks: the marks in the database, as far as they are known, by the spool's name.
        sent: the marks of a transaction of which it is unknown whether it was committed; None for none.
        gathered: what was gathered since the last cut.
        cut: what is being written; None for nothing.
        ends: where the gathered rows of each spool end.
        cut_at: when the last cut was made, by the caller's clock in seconds.
        split_at: where a cut ends in any case: the rows that follow count otherwise.
    """

    def __init__(self, what: str, marks: Mapping[str, Mark], make: Callable[[], G], now: float) -> None:
        """Begin where the database is.

        Args:
            what: `SPEND` or `SUMS`.
            marks: the marks in the database. Where a former process left one between two transactions, there is no
                other spool.
            make: makes what gathers.
            now: the caller's clock, in seconds.
        """
        self.what = what
        self.marks = dict(marks)
        self.sent: Mapping[str, Mark] | None = None
        self._make: Callable[[], G] = make
        self.gathered: G = make()
        self.cut: Cut[G] | None = None
        self.ends = {name: mark.at for name, mark in marks.items()}
        self.cut_at = now
        #: when the oldest of the gathered rows was gathered; None without any
        self._began: float | None = None
        self.split_at: Mapping[str, Position] = {}

    @property
    def resumes_to(self) -> Mapping[str, Position]:
        """Where the rows end that a former process was adding, if it left any unfinished."""
        return {} if self.cut is not None else {name: mark.to for name, mark in self.marks.items() if mark.is_between}

    @property
    def rows(self) -> int:
        """How many rows the database lacks in this amount."""
        return self.gathered.rows + (0 if self.cut is None else self.cut.gathered.rows)

    @property
    def since(self) -> float | None:
        """Since when the oldest of them waits, by the caller's clock; None without any."""
        cut = self.cut
        return self._began if cut is None or not cut.gathered.rows else cut.began

    def add(self, batches: Sequence[UsageBatch], ends: Mapping[str, Position] | None, now: float) -> None:
        """Take the next rows. Those of one spool may not lie on both sides of one of its marks' positions.

        Args:
            batches: the rows.
            ends: where they end in the spools; None for rows that are in no spool. Of several spools, the database
                has none of the rows in this amount.
            now: the clock of the constructor.
        """
        if ends is not None:
            if all(end <= self.marks[name].at for name, end in ends.items()):
                return
            for name, end in ends.items():
                self.ends[name] = max(end, self.ends[name])
        if self._began is None and batches:
            self._began = now
        for batch in batches:
            self.gathered.add(batch)

    def has_new(self, name: str) -> bool:
        """Return whether rows of a spool are gathered, or a part of it without any."""
        return self.ends[name] > self.marks[name].at

    def is_due(self, now: float, rhythm: Rhythm, *, force: bool) -> bool:
        """Return whether to write what was gathered.

        Args:
            now: the clock of the constructor.
            rhythm: how often.
            force: whether to write whatever there is.
        """
        resumes_to = self.resumes_to
        if resumes_to:
            # It is written exactly as far as it was begun.
            return force or all(self.ends[name] >= to for name, to in resumes_to.items())
        entries = self.gathered.entries
        if not self.gathered.rows and not any(map(self.has_new, self.marks)):
            return False
        if force or any(self.marks[name].at < split <= self.ends[name] for name, split in self.split_at.items()):
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
        to = {name: self.ends[name] for name in self.marks if self.has_new(name)} | dict(self.resumes_to)
        if not to:
            # Rows of no spool have the mark of any.
            to = {name: mark.at for name, mark in list(self.marks.items())[:1]}
        done = next((self.marks[name].done for name in to if self.marks[name].done), "")
        self.cut = Cut(gathered, to, prepared, now if began is None else began, done)
        self.gathered, self._began = self._make(), None
        self.cut_at = now
        return self.cut

    @property
    def in_one(self) -> bool:
        """Whether the cut has rows of no spool alone: if it were half written, nobody could go on after a crash."""
        return self.cut is not None and all(to <= self.marks[name].at for name, to in self.cut.to.items())

    def after(self, done: str | None) -> dict[str, Mark]:
        """Return the marks of the cut after a transaction, by the spool's name.

        Args:
            done: the last step of the cut that is done; None if all are.
        """
        cut = self.cut
        assert cut is not None
        found: dict[str, Mark] = {}
        for name, to in cut.to.items():
            old = self.marks[name]
            found[name] = Mark(old.serial + 1, to, to) if done is None else Mark(old.serial + 1, old.at, to, done)
        return found

    def follows(self, found: Mapping[str, Mark]) -> bool:
        """Return whether marks are those of a transaction of this cut that was sent and not confirmed."""
        cut = self.cut
        assert cut is not None
        if self.sent is None:
            return False
        done = next(iter(found.values())).done
        # It had other steps than the cut has left only if another process made it.
        known = not done or done in cut.steps.after(cut.done)
        return known and found == self.after(done or None)

    def committed(self, marks: Mapping[str, Mark]) -> None:
        """Note that the database has the marks of a transaction of the cut."""
        assert self.cut is not None
        self.marks |= marks
        self.sent = None
        done = next(iter(marks.values())).done
        if done:
            self.cut.done = done
        else:
            self.cut = None

    def join(self, name: str, mark: Mark) -> None:
        """Take the rows of another spool as well, from its mark on."""
        self.marks[name] = mark
        self.ends[name] = mark.at

    def leave(self, name: str) -> None:
        """Take no more rows of a spool, all of whose rows the database has."""
        del self.marks[name], self.ends[name]
