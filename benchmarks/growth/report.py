"""The growth table: what was measured, beside the goals, as Markdown and JSON.

``python -m benchmarks.growth.report FILE…`` prints the tables of JSON files again, such as those before and after a
change.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from benchmarks.growth.ledger import ROWS
from benchmarks.growth.reads import ReadCost
from benchmarks.growth.writer import RowCost
from benchmarks.table import MISSING, figure

#: the gateways: one key and an empty database; all keys, without a ledger, with one and without rows, and with all rows
ONE, OFF, EMPTY, FULL = "one key", "ledger off", "empty ledger", "full ledger"

#: the most that a request of so many active keys may cost, as a multiple of one key's
MOST_RATIO: Mapping[int, float] = {1_000: 1.2, 10_000: 1.6, 100_000: 2.0}
#: the most for a row: CPU microseconds of the writer, and bytes besides the row itself
MOST_WRITER_US, MOST_BYTES = 25.0, 300.0
#: the most megabytes with all keys in use
MOST_MEGABYTES = 250.0
#: the most milliseconds of a list or a report at p99
MOST_READ_MS = 300.0


class Cost(msgspec.Struct):
    """What a request cost in one gateway, in each round; CPU microseconds.

    Attributes:
        gateway: of the gateway's process.
        server: of the database's server.
        rates: requests a second.
    """

    gateway: list[float] = msgspec.field(default_factory=list)
    server: list[float] = msgspec.field(default_factory=list)
    rates: list[float] = msgspec.field(default_factory=list)


class Step(msgspec.Struct):
    """What a request of so many keys and end users cost, by gateway."""

    keys: int
    end_users: int
    costs: dict[str, Cost] = msgspec.field(default_factory=dict)

    def ratio(self, name: str) -> float | None:
        """Return the median over the rounds of a gateway's cost as a multiple of one key's."""
        pairs = zip(self.gateway(name), self.gateway(ONE), strict=False)
        ratios = [cost / one for cost, one in pairs if one]
        return statistics.median(ratios) if ratios else None

    def gateway(self, name: str) -> list[float]:
        """Return the rounds of a gateway."""
        return self.costs[name].gateway if name in self.costs else []

    def median(self, name: str) -> float | None:
        """Return the median of a gateway's cost."""
        return _median(self.gateway(name))

    def server(self, name: str) -> float | None:
        """Likewise that of the database's server."""
        return _median(self.costs[name].server) if name in self.costs else None


class WriterStep(msgspec.Struct):
    """What the writer took for rows of so many keys, over an empty or a full ledger."""

    keys: int
    end_users: int
    ledger: str
    cost: RowCost


class Growth(msgspec.Struct):
    """What was measured on one database.

    Attributes:
        database: ``SQLite`` or ``PostgreSQL``.
        size: what it holds, in words.
        rows: of its ledger.
        steps: CPU for a request.
        writer: CPU for a row.
        weights: bytes of the filled ledger, by purpose.
        megabytes: resident memory, by what was measured.
        reads: lists and reports.
        notes: what went wrong.
    """

    database: str
    size: str
    rows: int
    steps: list[Step] = msgspec.field(default_factory=list)
    writer: list[WriterStep] = msgspec.field(default_factory=list)
    weights: dict[str, int] = msgspec.field(default_factory=dict)
    megabytes: dict[str, float] = msgspec.field(default_factory=dict)
    reads: list[ReadCost] = msgspec.field(default_factory=list)
    notes: list[str] = msgspec.field(default_factory=list)


def markdown(growth: Growth) -> str:
    """Return what was measured on a database as Markdown."""
    parts = [f"## {growth.database}: {growth.size}"]
    if growth.steps:
        parts.append("CPU of the gateway for a request, medians; the ratio is to one key and an empty database.")
        parts.append(
            _table(("active keys", "end users", ONE, OFF, EMPTY, "ratio", FULL, "ratio", "goal"), _steps(growth))
        )
        if any(cost.server for step in growth.steps for cost in step.costs.values()):
            parts.append("CPU of PostgreSQL's processes for a request.")
            servers = (
                (f"{step.keys:,}", f"{step.end_users:,}", *(_us(step.server(name)) for name in (ONE, OFF, EMPTY, FULL)))
                for step in growth.steps
            )
            parts.append(_table(("active keys", "end users", ONE, OFF, EMPTY, FULL), servers))
    if growth.writer:
        parts.append("CPU of the ledger's writer for a row, without HTTP.")
        parts.append(_table(("keys", "end users", "ledger", "rows", "rows/s", "CPU", "goal"), _writer(growth)))
    if growth.weights:
        parts.append("Bytes of database for a request.")
        parts.append(_table(("what", "bytes", "goal"), _weights(growth)))
    if growth.megabytes:
        parts.append("Resident memory of the gateway.")
        parts.append(_table(("when", "MB", "goal"), _memory(growth)))
    if growth.reads:
        pages = [read for read in growth.reads if not read.whole]
        late = sum(read.p99 > MOST_READ_MS for read in pages)
        parts.append(f"Lists and reports: {late} of {len(pages)} miss the goal of {MOST_READ_MS:g} ms at p99.")
        parts.append(_table(("route", "times", "p50 ms", "p99 ms", "kB", "goal"), _reads(growth)))
    parts += [f"- {note}" for note in growth.notes]
    return "\n\n".join(parts)


def _steps(growth: Growth) -> Iterator[Sequence[str]]:
    for step in growth.steps:
        most, ratio = MOST_RATIO.get(step.keys), step.ratio(FULL)
        yield (
            f"{step.keys:,}",
            f"{step.end_users:,}",
            *(_us(step.median(name)) for name in (ONE, OFF, EMPTY)),
            _times(step.ratio(EMPTY)),
            _us(step.median(FULL)),
            _times(ratio),
            "" if most is None else goal(ratio, most, " times"),
        )


def _writer(growth: Growth) -> Iterator[Sequence[str]]:
    for step in growth.writer:
        rate = step.cost.rows / step.cost.seconds if step.cost.seconds else None
        meant = step.keys == 10_000 and step.ledger == FULL
        yield (
            f"{step.keys:,}",
            f"{step.end_users:,}",
            step.ledger,
            f"{step.cost.rows:,}",
            figure(rate, 0),
            _us(step.cost.cpu_us),
            goal(step.cost.cpu_us, MOST_WRITER_US, " µs") if meant else "",
        )


def _weights(growth: Growth) -> Iterator[Sequence[str]]:
    rows = max(growth.rows, 1)
    for purpose, size in sorted(growth.weights.items()):
        yield purpose, figure(size / rows, 0), ""
    more = sum(size for purpose, size in growth.weights.items() if purpose != ROWS) / rows
    yield "besides the rows", figure(more, 0), goal(more, MOST_BYTES, " bytes")


def _memory(growth: Growth) -> Iterator[Sequence[str]]:
    for when, size in growth.megabytes.items():
        yield when, figure(size, 0), goal(size, MOST_MEGABYTES, " MB") if "in use" in when else ""


def _reads(growth: Growth) -> Iterator[Sequence[str]]:
    for read in growth.reads:
        status = "any size" if read.whole else goal(read.p99, MOST_READ_MS, " ms")
        if read.failed is not None:
            status = f"status {read.failed}"
        yield read.route, str(read.times), figure(read.p50, 0), figure(read.p99, 0), figure(read.kilobytes, 1), status


def goal(value: float | None, most: float, unit: str) -> str:
    """Return whether a figure reaches its goal, in words."""
    if value is None:
        return MISSING
    return f"{'met' if value <= most else '**not met**'} (≤ {most:g}{unit})"


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _us(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.1f} µs"


def _times(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def main(files: Sequence[str]) -> int:
    """Print the tables of JSON files; return the exit status."""
    for file in files:
        print(f"# {Path(file).stem}\n")
        for growth in msgspec.json.decode(Path(file).read_bytes(), type=list[Growth]):
            print(markdown(growth), end="\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
