"""What was measured of gateways with one and with several processes, as Markdown and JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from benchmarks.memory import MEBIBYTE
from benchmarks.table import MISSING, figure, ratio
from benchmarks.workers.parts import HOUSEKEEPER, KINDS, SINGLE, SUPERVISOR, WORKER

#: what is around a gateway
DATABASE, REDIS = AROUND = ("database", "Redis")

_HEAD = (
    "load", "workers", "per second", "of one", "p50 ms", "p99 ms", "CPU µs", "of one",
    "workers µs", "housekeeper µs", "supervisor µs", "evenness", "database µs", "Redis µs",
)  # fmt: skip


class Cost(msgspec.Struct):
    """What came of a load in one round.

    Attributes:
        rate: requests or chunks a second.
        p50, p99: milliseconds of a request or a whole stream.
        cpu_us: CPU microseconds of a request or a chunk, by the kind of the process.
        around_us: likewise of what is around the gateway: `DATABASE`, `REDIS`.
        evenness: the CPU of the least busy worker divided by that of the busiest; None with one process.
    """

    rate: float
    p50: float
    p99: float
    cpu_us: dict[str, float]
    evenness: float | None = None
    around_us: dict[str, float] = msgspec.field(default_factory=dict)

    @property
    def whole_us(self) -> float:
        """CPU microseconds in all processes of the gateway."""
        return sum(self.cpu_us.values())


class Line(msgspec.Struct):
    """A load on a gateway, in all rounds."""

    load: str
    ledger: bool
    workers: int
    rounds: list[Cost] = msgspec.field(default_factory=list)


class Figures(msgspec.Struct):
    """All that was measured.

    Attributes:
        database: the kind of database.
        lines: the loads.
        memory: resident bytes by gateway and kind of process.
        streams: how many streams there were at once.
        notes: what is to be known about the figures.
    """

    database: str
    lines: list[Line]
    memory: dict[str, dict[str, int]]
    streams: int
    notes: list[str]


def markdown(figures: Figures) -> str:
    """Return the tables: medians over the rounds, and medians of the ratios in each round."""
    parts = []
    for ledger in sorted({line.ledger for line in figures.lines}):
        where = f"ledger on, in {figures.database}" if ledger else "ledger off"
        lines = [line for line in figures.lines if line.ledger == ledger]
        parts.append(f"### {where[0].upper()}{where[1:]}\n\n" + table(_HEAD, _rows(lines, figures.streams)))
    rows = [
        [name, *(figure(sizes.get(kind, 0) / MEBIBYTE, 0) if kind in sizes else MISSING for kind in KINDS)]
        for name, sizes in figures.memory.items()
    ]
    parts.append("### Resident memory, MiB\n\n" + table(("gateway", *KINDS), rows))
    if figures.notes:
        parts.append("\n".join(f"- {note}" for note in figures.notes))
    return "\n\n".join(parts)


def _rows(lines: Sequence[Line], streams: int) -> Iterator[list[str]]:
    first: dict[str, Line] = {}
    for line in lines:
        first.setdefault(line.load, line)
    for line in lines:
        base, rounds = first[line.load], line.rounds
        name = f"{streams:,} streams, chunks" if line.load == "streams" else line.load
        yield [
            name,
            str(line.workers),
            figure(_median([cost.rate for cost in rounds]), 0),
            _times(base, line, lambda cost: cost.rate),
            figure(_median([cost.p50 for cost in rounds]), 2),
            figure(_median([cost.p99 for cost in rounds]), 2),
            figure(_median([cost.whole_us for cost in rounds]), 1),
            _times(base, line, lambda cost: cost.whole_us),
            figure(_median([cost.cpu_us.get(SINGLE, cost.cpu_us.get(WORKER, 0.0)) for cost in rounds]), 1),
            _kind(rounds, HOUSEKEEPER),
            _kind(rounds, SUPERVISOR),
            figure(_median([cost.evenness for cost in rounds if cost.evenness is not None]), 2),
            *(figure(_median([cost.around_us[who] for cost in rounds if who in cost.around_us]), 1) for who in AROUND),
        ]


def _kind(rounds: Sequence[Cost], kind: str) -> str:
    return figure(_median([cost.cpu_us[kind] for cost in rounds if kind in cost.cpu_us]), 1)


def _times(base: Line, line: Line, of: Callable[[Cost], float]) -> str:
    if base is line:
        return "1"
    ratios = [of(cost) / of(one) for cost, one in zip(line.rounds, base.rounds, strict=False) if of(one)]
    return ratio(_median(ratios), 1.0)


def _median(figures: Sequence[float]) -> float | None:
    return statistics.median(figures) if figures else None


def table(head: Sequence[str], rows: Iterable[list[str]]) -> str:
    """Return a table of Markdown."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
