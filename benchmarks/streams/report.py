"""What was measured of open streams, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from benchmarks.memory import MEBIBYTE
from benchmarks.table import MISSING, figure

#: fewer streams than this tell nothing of one
_FEW = 100


class Step(msgspec.Struct):
    """A gateway with so many open streams.

    Attributes:
        streams: that are open.
        failed: that could not be opened.
        resident: bytes of all processes.
        largest: bytes of the largest process.
        busy: CPU seconds of a second in which each stream gets its share of events.
        opening: CPU seconds to open one.
        idle: CPU seconds of a second in which nothing comes; None where it was not measured.
    """

    streams: int
    failed: int
    resident: int
    largest: int
    busy: float
    opening: float
    idle: float | None = None


def markdown(title: str, steps: Sequence[Step]) -> str:
    """Return a table: what streams add to the first step."""
    head = (
        "open streams", "not opened", "MiB", "largest process MiB", "KiB a stream",
        "CPU %, events", "CPU %, none", "µs a stream and second", "µs to open",
    )  # fmt: skip
    lines = [head, ["---"] * len(head), *_rows(steps)]
    return f"### {title}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _rows(steps: Sequence[Step]) -> Iterator[list[str]]:
    first = steps[0]
    for step in steps:
        more = step.streams - first.streams
        yield [
            figure(step.streams, 0),
            figure(step.failed, 0),
            figure(step.resident / MEBIBYTE, 0),
            figure(step.largest / MEBIBYTE, 0),
            figure((step.resident - first.resident) / more / 1024, 1) if more >= _FEW else MISSING,
            figure(step.busy * 100, 1),
            figure(None if step.idle is None else step.idle * 100, 1),
            figure((step.busy - first.busy) / more * 1e6, 1) if more >= _FEW else MISSING,
            figure(step.opening * 1e6, 0) if more >= _FEW else MISSING,
        ]
