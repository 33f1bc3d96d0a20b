"""What was measured of the console, as Markdown and JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

import msgspec

from benchmarks.memory import MEBIBYTE
from benchmarks.table import MISSING, figure
from benchmarks.workers.report import table

#: of the CPU per request: the most that open pages may add
MOST_SHARE = 0.01


class Load(msgspec.Struct):
    """What came of a load on the data path.

    Attributes:
        cpu_us: CPU microseconds of a request in all processes of the gateway, what the pages cost included.
        rate: requests a second.
        p99: milliseconds.
        longest: milliseconds of the slowest request.
    """

    cpu_us: float
    rate: float
    p99: float
    longest: float


class PageCost(msgspec.Struct):
    """What one page costs.

    Attributes:
        path: its address.
        load_ms: CPU milliseconds of the gateway to load it once; None where that cannot be told.
        received: bytes that a browser receives which has nothing of it yet.
        again: bytes that it receives with the files kept.
        paint: milliseconds to the first content on the screen; None without a browser.
        paint_again: likewise with the files kept.
        open_ms: CPU milliseconds a second while one window stays on it; None where no window does.
    """

    path: str
    load_ms: float | None
    received: int
    again: int
    paint: float | None
    paint_again: float | None
    open_ms: float | None = None


class Gateway(msgspec.Struct):
    """One gateway.

    Attributes:
        workers: how many processes serve.
        streams: requests that were in flight all the time.
        without: loads while nobody looks at the console.
        watched: loads while the windows are open, each in the same round as the one without.
        idle_ms: CPU milliseconds a second without a load and without windows.
        open_ms: likewise with the windows open.
        asked: how often the windows asked in a minute.
        memory: resident bytes of all processes before the first page was asked for.
        memory_after: likewise at the end.
        pages: what each page costs, by its title.
    """

    workers: int
    streams: int
    without: list[Load] = msgspec.field(default_factory=list)
    watched: list[Load] = msgspec.field(default_factory=list)
    idle_ms: float = 0.0
    open_ms: float = 0.0
    asked: float = 0.0
    memory: int = 0
    memory_after: int = 0
    pages: dict[str, PageCost] = msgspec.field(default_factory=dict)

    def shares(self) -> list[float]:
        """Return by how much the windows raised the CPU of a request, in each round."""
        return [after.cpu_us / before.cpu_us - 1 for before, after in zip(self.without, self.watched, strict=False)]

    @property
    def by_themselves(self) -> float:
        """The share of one CPU that the windows take without a load."""
        return (self.open_ms - self.idle_ms) / 1000


class Figures(msgspec.Struct):
    """All that was measured.

    Attributes:
        windows: how many of which page were open.
        browser: whether they were those of a real browser.
        gateways: the gateways.
        notes: what is to be known about the figures.
    """

    windows: dict[str, int]
    browser: bool
    gateways: list[Gateway]
    notes: list[str]


def markdown(figures: Figures) -> str:
    """Return the tables: medians over the rounds, and of the shares in each round the median and the quartiles."""
    windows = ", ".join(f"{count} {name}" for name, count in figures.windows.items())
    kind = "windows of Chromium" if figures.browser else "watchers without a browser"
    parts = [
        f"Open were {sum(figures.windows.values())} {kind}: {windows}. "
        "All CPU is that of the gateway's own processes.",
        "### Under load\n\n"
        + table(
            (
                "processes", "in flight", "rounds", "CPU µs without", "with", "more", "requests/s without", "with",
                "p99 ms without", "with", "longest ms without", "with",
            ),
            map(_loaded, figures.gateways),
        ),
        "### By themselves, without a load\n\n"
        + table(
            ("processes", "in flight", "CPU ms/s without", "with", "of one CPU", "asked/min", "MiB before", "after"),
            map(_idle, figures.gateways),
        ),
    ]  # fmt: skip
    for gateway in figures.gateways:
        if gateway.pages:
            head = (
                "page", "CPU ms to load", "kB first", "kB again", "first paint ms", "again",
                "CPU ms/s while open",
            )  # fmt: skip
            parts.append(f"### Each page, {_name(gateway)}\n\n" + table(head, _pages(gateway)))
    if figures.notes:
        parts.append("\n".join(f"- {note}" for note in figures.notes))
    return "\n\n".join(parts)


def _name(gateway: Gateway) -> str:
    processes = "1 process" if gateway.workers == 1 else f"{gateway.workers} workers"
    return f"{processes}, {gateway.streams:,} in flight"


def _loaded(gateway: Gateway) -> list[str]:
    def both(of: Callable[[Load], float], digits: int) -> list[str]:
        return [figure(_median(list(map(of, loads))), digits) for loads in (gateway.without, gateway.watched)]

    cells = [str(gateway.workers), f"{gateway.streams:,}", str(len(gateway.watched))]
    cells += [*both(lambda load: load.cpu_us, 1), _spread(gateway.shares())]
    cells += [*both(lambda load: load.rate, 0), *both(lambda load: load.p99, 1), *both(lambda load: load.longest, 0)]
    return cells


def _spread(shares: Sequence[float]) -> str:
    """Format the median of the shares, and the quartiles where there are enough for them."""
    if not shares:
        return MISSING
    text = f"{statistics.median(shares):+.1%}"
    if len(shares) < 4:
        return text
    low, _, high = statistics.quantiles(shares, n=4, method="inclusive")
    return f"{text} ({low:+.1%} … {high:+.1%})"


def _idle(gateway: Gateway) -> list[str]:
    return [
        str(gateway.workers),
        f"{gateway.streams:,}",
        figure(gateway.idle_ms, 1),
        figure(gateway.open_ms, 1),
        f"{gateway.by_themselves:.2%}",
        figure(gateway.asked, 0),
        figure(gateway.memory / MEBIBYTE, 0),
        figure(gateway.memory_after / MEBIBYTE, 0),
    ]


def _pages(gateway: Gateway) -> Iterable[list[str]]:
    for title, cost in gateway.pages.items():
        yield [
            title,
            figure(cost.load_ms, 1),
            figure(cost.received / 1000, 1),
            figure(cost.again / 1000, 1),
            figure(cost.paint, 0),
            figure(cost.paint_again, 0),
            figure(cost.open_ms, 1),
        ]


def _median(figures: Sequence[float]) -> float | None:
    return statistics.median(figures) if figures else None
