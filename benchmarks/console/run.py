"""A gateway under load, in turn with and without windows that are open on its console."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import attrs

from benchmarks.console.report import MOST_SHARE, Figures, Gateway, Load, PageCost
from benchmarks.console.windows import WATCHED, Windows
from benchmarks.growth.databases import Databases
from benchmarks.notes import Notes
from benchmarks.peers import RunningGateway
from benchmarks.processes import CannotStart
from benchmarks.run import say
from benchmarks.streams.real import held_streams
from benchmarks.workers.parts import cpu_seconds
from benchmarks.workers.run import LOADS, Around, Contestant, Plan, contestant, others_cpu
from benchmarks.workers.upstream import Server

_LOAD = LOADS["requests"]
#: how long a new load or new windows have before they are measured
_BEGIN_SECONDS = 2.0

#: opens windows on a gateway
MakeWindows = Callable[[RunningGateway], AbstractContextManager[Windows]]


@attrs.frozen
class ConsolePlan:
    """What is measured.

    Attributes:
        workers: numbers of workers of the gateways.
        streams: requests that are in flight meanwhile, for each a gateway of its own.
        windows: the windows that are open.
        rounds: how often the load is measured with and without them.
        seconds: how long each load takes.
        connections: requests at once.
        idle_seconds: how long the gateway is watched without a load.
        loads: how often each page is loaded; 0 leaves the pages out.
    """

    workers: Sequence[int]
    streams: Sequence[int]
    windows: Sequence[str]
    rounds: int
    seconds: float
    connections: int
    idle_seconds: float
    loads: int


def measure(
    plan: ConsolePlan,
    upstream: Server,
    databases: Databases,
    directory: Path,
    make_windows: MakeWindows,
    *,
    browser: bool,
) -> Figures:
    """Run one gateway after the other, and measure each.

    Args:
        plan: what is measured.
        upstream: the server behind the gateways; its streams last longer than the measurement.
        databases: where each gateway has one.
        directory: where files are.
        make_windows: opens windows.
        browser: whether they are those of a real browser.

    Raises:
        CannotStart: a gateway, a load, a stream or a window does not start.
    """
    notes, found = Notes(), []
    for workers in plan.workers:
        for streams in plan.streams:
            gateway = Gateway(workers, streams)
            with ExitStack() as stack:
                around = Around(upstream, databases, None, None, directory)
                each = stack.enter_context(contestant(workers, True, around, f"_{streams}"))
                gateway.memory = sum(each.resident().values())
                if streams:
                    say(f"{each.name}: opening {streams:,} streams")
                    running = each.running
                    held, lost = stack.enter_context(held_streams(running.port, running.master_key, streams, 0))
                    gateway.streams = held
                    if lost:
                        notes.add(f"{each.name}: of {streams:,} streams {lost:,} could not be opened.")
                windows = stack.enter_context(make_windows(each.running))
                _Measurement(plan, each, windows, gateway, notes).run()
                gateway.memory_after = sum(each.resident().values())
            found.append(gateway)
            if gateway.by_themselves > MOST_SHARE:
                notes.add(f"{each.name}, {gateway.streams:,} in flight: the windows take more than 1 % of one CPU.")
    return Figures(dict(Counter(plan.windows)), browser, found, notes.texts())


class _Measurement:
    """The measurement of one gateway."""

    def __init__(self, plan: ConsolePlan, each: Contestant, windows: Windows, found: Gateway, notes: Notes) -> None:
        self._plan = plan
        self._load = Plan(workers=(each.workers,), connections=plan.connections)
        self._each = each
        self._windows = windows
        self._found = found
        self._notes = notes
        self._what = f"{each.name}, {found.streams:,} in flight"

    def run(self) -> None:
        """Measure all."""
        # the first page loads the console, the first load warms up the data path
        self._windows.open(self._plan.windows)
        self._each.send(_LOAD, self._load, _BEGIN_SECONDS)
        self._windows.close()
        self._each.settle()
        for number in range(1, self._plan.rounds + 1):
            say(f"{self._what}: round {number} of {self._plan.rounds}")
            # in turn first: what changes in the course of time falls on both
            for watched in (False, True) if number % 2 else (True, False):
                (self._found.watched if watched else self._found.without).append(self._under_load(watched))
        say(f"{self._what}: without a load")
        self._found.idle_ms, _ = self._idle(())
        self._found.open_ms, self._found.asked = self._idle(self._plan.windows)
        if self._plan.loads:
            self._found.pages = {title: self._page(title, path) for title, path in self._windows.navigation().items()}
        for problem, times in self._windows.problems.most_common(5):
            self._notes.add(f"{self._what}, windows: {problem} ({times:,} times)")

    def _under_load(self, watched: bool) -> Load:
        if watched:
            self._windows.open(self._plan.windows)
            self._windows.rest(_BEGIN_SECONDS)
        began, others, used = time.monotonic(), others_cpu(), self._cpu()
        outcome = self._each.send(_LOAD, self._load, self._plan.seconds)
        cpu, others_after, seconds = self._cpu() - used, others_cpu(), time.monotonic() - began
        if watched:
            self._windows.close()
        self._each.settle()
        if others is not None and others_after is not None:
            self._notes.others(self._what, (others_after - others) / seconds)
        if (complaint := outcome.complaint()) is not None:
            self._notes.add(f"{self._what}: {complaint}")
        if not outcome.requests:
            raise CannotStart(f"{self._what}: nothing was answered")
        rate = outcome.requests / outcome.seconds
        return Load(cpu / outcome.requests * 1e6, rate, outcome.p99, outcome.longest)

    def _idle(self, names: Sequence[str]) -> tuple[float, float]:
        """Return CPU milliseconds a second, and what is asked in a minute, while these windows are open."""
        self._windows.open(names)
        self._windows.rest(_BEGIN_SECONDS)
        self._windows.asked.clear()
        began, used = time.monotonic(), self._cpu()
        self._windows.rest(self._plan.idle_seconds)
        cpu, seconds = self._cpu() - used, time.monotonic() - began
        asked = dict(self._windows.asked)
        self._windows.close()
        for path in asked:
            if not any(WATCHED[name].asks(path) for name in names):
                self._notes.add(f"{path} was asked for by a page: benchmarks/console/windows.py does not know that.")
        return cpu / seconds * 1000, sum(asked.values()) * 60 / seconds

    def _page(self, title: str, path: str) -> PageCost:
        say(f"{self._what}: {title}")
        loaded = self._windows.load(path)
        began, used = time.monotonic(), self._cpu()
        many = [self._windows.load(path) for _ in range(self._plan.loads)]
        seconds, cpu = time.monotonic() - began, self._cpu() - used
        # of each, the page is loaded twice
        cost = max(cpu - self._found.idle_ms / 1000 * seconds, 0.0) / (2 * len(many)) * 1000
        paints = sorted(each.paint for each in many if each.paint is not None)
        again = sorted(each.paint_again for each in many if each.paint_again is not None)
        name = next((name for name, page in WATCHED.items() if page.path == path), None)
        return PageCost(
            path,
            cost,
            loaded.received,
            loaded.again,
            paints[len(paints) // 2] if paints else None,
            again[len(again) // 2] if again else None,
            None if name is None else self._idle((name,))[0] - self._found.idle_ms,
        )

    def _cpu(self) -> float:
        try:
            return sum(cpu_seconds(self._each.parts).values())
        except OSError as error:
            raise CannotStart(f"{self._what}: a process of the gateway ended; see its log") from error
