"""How many cores the process may use: those of its CPU set, and no more than the quota of its control groups.

A container with a CPU limit (``docker run --cpus 2``, Kubernetes' ``limits.cpu``, systemd's ``CPUQuota=``) may run on
every core of its machine, and is stopped by the kernel as soon as it has used its share of a period, 100 ms in most
cases. Only the control group tells of that: ``cpu.max`` (version 2,
https://docs.kernel.org/admin-guide/cgroup-v2.html) or ``cpu.cfs_quota_us`` (version 1,
https://docs.kernel.org/scheduler/sched-bwc.html).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

#: where control groups are mounted, and the file that says in which the process is
_MOUNTED, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
#: the controllers of version 1, as their mounts are named
_VERSION_1 = ("cpu,cpuacct", "cpu")


def usable_cores(mounted: Path = _MOUNTED, membership: Path = _MEMBERSHIP) -> int:
    """Return how many cores the process may use, at least 1.

    A quota of 1.5 cores counts as 2: the half core is paid for, and would be idle.

    Args:
        mounted: the directory of the control groups.
        membership: the file with the process's control groups.
    """
    cores = len(os.sched_getaffinity(0))
    quota = min(_quotas(mounted, membership), default=math.inf)
    return cores if quota >= cores else max(1, math.ceil(quota))


def _quotas(mounted: Path, membership: Path) -> Iterator[float]:
    """Return the quotas, in cores, of the process's control groups and of those above them that it can see."""
    try:
        lines = membership.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        # "0::/path" in version 2, "4:cpu,cpuacct:/path" in version 1
        _, _, group_of = line.partition(":")
        controllers, _, path = group_of.partition(":")
        if not controllers:
            for group in _upwards(path):
                yield from _of_version_2(mounted / group)
                # where both versions are mounted
                yield from _of_version_2(mounted / "unified" / group)
        elif "cpu" in controllers.split(","):
            for name in _VERSION_1:
                for group in _upwards(path):
                    yield from _of_version_1(mounted / name / group)


def _upwards(path: str) -> Iterator[PurePosixPath]:
    """Return a group and those above it, as paths below the mount.

    In a container the mount often is the container's own group, while the path is the host's: the top counts always.
    """
    group = PurePosixPath(path.lstrip("/"))
    # a group outside of what the process sees is written with ..
    if ".." not in group.parts:
        yield group
        yield from (above for above in group.parents if above != group)
    else:
        yield PurePosixPath()


def _of_version_2(group: Path) -> Iterator[float]:
    words = _text(group / "cpu.max").split()
    if len(words) == 2 and words[0] != "max":
        yield from _ratio(*words)


def _of_version_1(group: Path) -> Iterator[float]:
    quota = _text(group / "cpu.cfs_quota_us").strip()
    # -1 is none
    if quota and not quota.startswith("-"):
        yield from _ratio(quota, _text(group / "cpu.cfs_period_us").strip())


def _ratio(quota: str, period: str) -> Iterator[float]:
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
        yield int(quota) / int(period)


def _text(file: Path) -> str:
    try:
        return file.read_text("ascii", "replace")
    except OSError:
        return ""
