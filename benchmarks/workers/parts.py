"""The processes of a gateway and what each kind of them uses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import msgspec

from benchmarks.measure import PROC, parse_memory, parse_stat

#: the kinds of processes: all in one, or one of several
SINGLE, SUPERVISOR, HOUSEKEEPER, WORKER = "gateway", "supervisor", "housekeeper", "worker"
#: of those, what a report shows in this order
KINDS = (SINGLE, WORKER, HOUSEKEEPER, SUPERVISOR)


class _Order(msgspec.Struct):
    """What the benchmark reads of `twisted_vllm.workers.orders.Order`."""

    slot: int


@attrs.frozen
class Part:
    """One process of a gateway.

    Attributes:
        pid: its process id.
        kind: one of `KINDS`.
        slot: the number of a worker; 0 for others.
    """

    pid: int
    kind: str
    slot: int = 0


def find_parts(root: int, proc: Path = PROC) -> list[Part]:
    """Return the processes of the gateway that twistd started as `root`."""
    children = []
    for directory in proc.glob("[0-9]*"):
        try:
            if parse_stat((directory / "stat").read_text()).parent != root:
                continue
            slot = slot_of((directory / "cmdline").read_bytes())
        except (OSError, ValueError):  # it ended meanwhile
            continue
        if slot is not None:
            children.append(Part(int(directory.name), WORKER if slot else HOUSEKEEPER, slot))
    if not children:
        return [Part(root, SINGLE)]
    return [Part(root, SUPERVISOR), *sorted(children, key=lambda part: part.slot)]


def slot_of(command_line: bytes) -> int | None:
    """Return the slot that the order on a command line names; None where there is no order."""
    last = command_line.rstrip(b"\0").rpartition(b"\0")[2]
    try:
        return msgspec.json.decode(last, type=_Order).slot
    except msgspec.MsgspecError:
        return None


def cpu_seconds(parts: Sequence[Part], proc: Path = PROC) -> dict[Part, float]:
    """Return the CPU time that each process has used, user and system.

    Raises:
        OSError: one has ended.
    """
    hertz = os.sysconf("SC_CLK_TCK")
    return {part: parse_stat((proc / str(part.pid) / "stat").read_text()).ticks / hertz for part in parts}


def resident_bytes(parts: Sequence[Part], proc: Path = PROC) -> dict[Part, int]:
    """Return the resident memory of each process.

    Raises:
        OSError: one has ended.
    """
    return {part: parse_memory((proc / str(part.pid) / "status").read_text(), "VmRSS") or 0 for part in parts}


def spent(before: Mapping[Part, float], after: Mapping[Part, float]) -> dict[Part, float]:
    """Return what each process used between two readings."""
    return {part: seconds - before[part] for part, seconds in after.items()}
