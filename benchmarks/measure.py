"""What a process and its children use, from Linux' ``/proc``; ``None`` where that is not available."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import attrs

PROC = Path("/proc")
_KIBIBYTE = 1024


@attrs.frozen
class Stat:
    """A line of ``/proc/PID/stat``.

    Attributes:
        parent: the parent's process id.
        ticks: CPU time of all its threads, user and system, in clock ticks.
        ended_ticks: likewise of its children that ended.
    """

    parent: int
    ticks: int
    ended_ticks: int = 0


def parse_stat(line: str) -> Stat:
    """Read ``/proc/PID/stat`` (proc(5)): the command, in parentheses, may itself hold spaces and parentheses.

    Raises:
        ValueError: it is not such a line.
    """
    fields = line.rpartition(")")[2].split()
    if len(fields) < 15:
        raise ValueError("not a line of /proc/PID/stat")
    user, system, ended_user, ended_system = map(int, fields[11:15])
    return Stat(parent=int(fields[1]), ticks=user + system, ended_ticks=ended_user + ended_system)


def parse_memory(status: str, name: str) -> int | None:
    """Return a figure of ``/proc/PID/status`` in bytes, such as ``VmRSS``; None where it has no such line."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    return None if found is None else int(found[1]) * _KIBIBYTE


class ProcessTree:
    """A process and all below it.

    Args:
        root: its process id.
        proc: where the proc file system is.
        ticks_per_second: the unit of its CPU times.
    """

    def __init__(self, root: int, proc: Path = PROC, ticks_per_second: int | None = None) -> None:
        self._root = root
        self._proc = proc
        self._hertz = ticks_per_second or os.sysconf("SC_CLK_TCK")

    def cpu_seconds(self, *, ended: bool = False) -> float | None:
        """CPU time that the processes which run now have used, and with `ended` also their children that ended."""
        stats = self._stats()
        ticks = [stats[pid].ticks + (stats[pid].ended_ticks if ended else 0) for pid in self._below(stats)]
        return sum(ticks) / self._hertz if ticks else None

    def resident_bytes(self) -> int | None:
        """Memory that is resident now; what processes share counts for each."""
        return self._memory("VmRSS")

    def peak_bytes(self) -> int | None:
        """The most that was resident since `reset_peak`, as the sum over the processes."""
        return self._memory("VmHWM")

    def reset_peak(self) -> bool:
        """Begin a new peak; return whether the kernel allowed it."""
        try:
            for pid in self._below(self._stats()):
                (self._proc / str(pid) / "clear_refs").write_text("5")
        except OSError:
            return False
        return True

    def _memory(self, name: str) -> int | None:
        found = []
        for pid in self._below(self._stats()):
            try:
                found.append(parse_memory((self._proc / str(pid) / "status").read_text(), name))
            except OSError:  # it ended meanwhile
                continue
        known = [figure for figure in found if figure is not None]
        return sum(known) if known else None

    def _stats(self) -> dict[int, Stat]:
        stats = {}
        for directory in self._proc.glob("[0-9]*"):
            try:
                stats[int(directory.name)] = parse_stat((directory / "stat").read_text())
            except (OSError, ValueError):  # it ended meanwhile
                continue
        return stats

    def _below(self, stats: dict[int, Stat]) -> list[int]:
        children = defaultdict(list)
        for pid, stat in stats.items():
            children[stat.parent].append(pid)
        found = []
        waiting = [self._root] if self._root in stats else []
        while waiting:
            found.append(waiting.pop())
            waiting += children[found[-1]]
        return found


def machine_cpu_seconds(proc: Path = PROC, ticks_per_second: int | None = None) -> float | None:
    """CPU time that all programs of this machine have used since it started; None where that is not available."""
    try:
        name, *fields = (proc / "stat").read_text().partition("\n")[0].split()
    except (OSError, ValueError):
        return None
    if name != "cpu" or len(fields) < 7:
        return None
    user, nice, system, _idle, _iowait, interrupts, soft_interrupts = map(int, fields[:7])
    hertz = ticks_per_second or os.sysconf("SC_CLK_TCK")
    return (user + nice + system + interrupts + soft_interrupts) / hertz


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the nearest-rank percentile: the least value that at least so many percent do not exceed."""
    if not values:
        return None
    rank = -(-len(values) * percent // 100)
    return sorted(values)[max(int(rank), 1) - 1]
