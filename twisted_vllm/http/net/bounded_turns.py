"""Runs long work in steps, so that the reactor serves everybody else in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from twisted.internet.task import CooperativeTask, Cooperator

#: seconds of work in one turn of the reactor, of all tasks together; the last step may take some milliseconds more
SLICE = 0.003

#: owners whose work is done at the same time
OWNERS = 4

#: runs an iterator in steps, between which the reactor serves others
Cooperate = Callable[[Iterator[Any]], CooperativeTask[Any]]


def turn_cooperator(reactor: Any) -> Cooperator:
    """Return what runs iterators in turns of the reactor, each for at most `SLICE` and one step.

    Args:
        reactor: a provider of IReactorTime.
    """
    seconds = reactor.seconds

    def begin_turn() -> Callable[[], bool]:
        end = seconds() + SLICE
        return lambda: seconds() >= end

    return Cooperator(begin_turn, partial(reactor.callLater, 0))


class Job:
    """The work of one owner that waits or runs."""

    __slots__ = ("_jobs", "owner", "steps", "task")

    def __init__(self, jobs: Jobs, owner: str, steps: Iterator[Any]) -> None:
        self._jobs = jobs
        self.owner = owner
        self.steps = steps
        self.task: CooperativeTask[Any] | None = None

    def stop(self) -> None:
        """Do nothing more of it. Idempotent."""
        self._jobs.stop(self)


class Jobs:
    """Runs the work of many owners: of each one job after the other, of few owners at the same time.

    So much work of one owner delays another's by little, and the memory of few jobs is in use.
    """

    def __init__(self, cooperate: Cooperate) -> None:
        """Begin without work.

        Args:
            cooperate: runs the steps of a job.
        """
        self._cooperate = cooperate
        # in the order of their turns
        self._waiting: dict[str, dict[Job, None]] = {}
        self._running: dict[str, Job] = {}

    def run(self, owner: str, steps: Iterator[Any]) -> Job:
        """Run an iterator in steps, when it is its owner's turn.

        Args:
            owner: whose work it is.
            steps: does one step each time.
        """
        job = Job(self, owner, steps)
        self._waiting.setdefault(owner, {})[job] = None
        self._begin()
        return job

    def stop(self, job: Job) -> None:
        """As `Job.stop`."""
        waiting = self._waiting.get(job.owner, {})
        if job in waiting:
            del waiting[job]
            if not waiting:
                del self._waiting[job.owner]
        elif self._running.get(job.owner) is job:
            if job.task is not None:
                job.task.stop()
            self._end(job)

    def _begin(self) -> None:
        while len(self._running) < OWNERS:
            owner = next((each for each in self._waiting if each not in self._running), None)
            if owner is None:
                return
            waiting = self._waiting.pop(owner)
            job = next(iter(waiting))
            del waiting[job]
            if waiting:
                self._waiting[owner] = waiting
            self._running[owner] = job
            job.task = self._cooperate(self._steps(job))

    def _steps(self, job: Job) -> Iterator[Any]:
        try:
            yield from job.steps
        finally:
            self._end(job)

    def _end(self, job: Job) -> None:
        if self._running.get(job.owner) is job:
            del self._running[job.owner]
            self._begin()
