"""``python -m benchmarks.telemetry``: what metrics, traces, sinks and kept prompts cost.

One gateway for each variant runs all the time. In each round, one after the other gets the same load, so that what else
the machine does falls on all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from benchmarks.client import Target, chat
from benchmarks.load import Load, apply_load
from benchmarks.measure import ProcessTree
from benchmarks.memory import MEBIBYTE
from benchmarks.notes import Notes
from benchmarks.peers import REPOSITORY, own_upstream, run_gateway
from benchmarks.processes import CannotStart, ask, end_on_sigterm, environment, running, wait_until_ready
from benchmarks.run import say
from benchmarks.table import Column, Row, render
from benchmarks.telemetry.variants import DEFAULT, RECEIVED, variants

COLUMNS = (
    Column("request", "CPU per\nrequest us", 1),
    Column("more_request", "more than as\ninstalled us", 1),
    Column("chunk", "CPU per\nchunk us", 2),
    Column("more_chunk", "more than as\ninstalled us", 2),
    Column("p50", "p50\nms", 2),
    Column("resident", "resident\nMiB", 1),
)
_MODEL = "bench"
_PATIENCE = 20.0
#: after a load: what was gathered is exported meanwhile
_SETTLE_SECONDS = 1.5
#: of a stream's events
_INTERVAL = 0.02


@attrs.define
class Variant:
    """A gateway that runs, and what was measured of it.

    Attributes:
        name: what is on in it.
        target: where it takes requests.
        processes: its processes.
        requests: CPU seconds of a request, in each round.
        chunks: likewise of a chunk.
        latencies: the median seconds of a request, in each round.
    """

    name: str
    target: Target
    processes: ProcessTree
    requests: list[float] = attrs.Factory(list)
    chunks: list[float] = attrs.Factory(list)
    latencies: list[float] = attrs.Factory(list)


@attrs.frozen
class Loads:
    """The loads that each variant gets.

    Attributes:
        seconds: how long each takes.
        connections: connections of the load of requests.
        streams: streams at once.
        events: events of each stream.
    """

    seconds: float
    connections: int
    streams: int
    events: int


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.telemetry",
        description="Compares the gateway's CPU with metrics, traces, sinks and kept prompts on and off.",
    )
    add = parser.add_argument
    add("--rounds", type=int, default=3, metavar="N", help="how often each variant is measured [%(default)s]")
    add("--seconds", type=float, default=5.0, metavar="S", help="length of each load [%(default)s]")
    add("--connections", type=int, default=16, metavar="N", help="requests at once [%(default)s]")
    add("--streams", type=int, default=50, metavar="N", help="streams at once [%(default)s]")
    add("--events", type=int, default=64, metavar="N", help="chunks of a stream [%(default)s]")
    add("--only", default="", metavar="TEXT", help="only the variants whose names have this text, beside the default")
    chosen = parser.parse_args(arguments)
    end_on_sigterm()
    loads = Loads(chosen.seconds, chosen.connections, chosen.streams, chosen.events)
    try:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="benchmarks-")))
            print(measure(directory, stack, loads, rounds=chosen.rounds, only=chosen.only))
    except CannotStart as error:
        print(f"benchmarks.telemetry: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks.telemetry: interrupted", file=sys.stderr)
        return 130
    return 0


def measure(directory: Path, stack: ExitStack, loads: Loads, *, rounds: int, only: str) -> str:
    """Measure all variants in turn, and return the report.

    Raises:
        CannotStart: the default gateway or what is around it does not start.
    """
    notes = Notes()
    upstream = stack.enter_context(own_upstream(directory))
    receiver = _start_receiver(directory, stack)
    started: list[Variant] = []
    compared = {name: settings for name, settings in variants(receiver).items() if name == DEFAULT or only in name}
    for name, settings in compared.items():
        place = directory / f"gateway-{len(started)}"
        place.mkdir()
        config = {"passthrough": {"api_base": f"http://{upstream.host}:{upstream.port}"} | dict(settings)}
        try:
            target, process = stack.enter_context(run_gateway(config, {}, place))
        except CannotStart as error:
            if name == DEFAULT:
                raise
            notes.add(f"{name} was not measured: {error}")
            continue
        started.append(Variant(name, target, ProcessTree(process)))
    for variant in started:
        asyncio.run(_round(variant, attrs.evolve(loads, seconds=min(1.0, loads.seconds)), notes))
        variant.requests.clear()
        variant.chunks.clear()
        variant.latencies.clear()
    for number in range(1, rounds + 1):
        for variant in started:
            say(f"round {number} of {rounds}: {variant.name}")
            asyncio.run(_round(variant, loads, notes))
    _, counts = ask("127.0.0.1", receiver, "GET", "/")
    taken = json.loads(counts)
    for path in RECEIVED:
        if not any(path in json.dumps(settings) for settings in compared.values()):
            continue
        posts, size = taken.get(path, (0, 0))
        notes.add(f"The receiver took {posts:,} posts with {size / MEBIBYTE:,.1f} MiB at {path}.")
    return "\n\n".join([render(COLUMNS, _rows(started)), *notes.texts()])


def _start_receiver(directory: Path, stack: ExitStack) -> int:
    log, port_file = directory / "receiver.out", directory / "receiver.port"
    command = [sys.executable, "-m", "benchmarks.telemetry.receiver", str(port_file)]
    process = stack.enter_context(running(command, log, environ=environment(), directory=REPOSITORY))
    wait_until_ready(process, log, port_file.exists)
    return int(port_file.read_text())


async def _round(variant: Variant, loads: Loads, notes: Notes) -> None:
    requests, cpu = await _timed(variant, chat(_MODEL, max_tokens=8), loads.connections, loads.seconds, notes)
    if requests.latencies and cpu is not None:
        variant.requests.append(cpu / len(requests.latencies))
        variant.latencies.append(statistics.median(requests.latencies))
    plan = f"benchmark events={loads.events} interval={_INTERVAL}"
    body = chat(_MODEL, max_tokens=loads.events, stream=True, plan=plan)
    streams, cpu = await _timed(variant, body, loads.streams, loads.seconds, notes, stream=True)
    if streams.events and cpu is not None:
        variant.chunks.append(cpu / streams.events)


async def _timed(
    variant: Variant, body: bytes, connections: int, seconds: float, notes: Notes, *, stream: bool = False
) -> tuple[Load, float | None]:
    """Return what came of a load, and the CPU seconds that the gateway spent on it and on its exports."""
    before = variant.processes.cpu_seconds()
    load = await apply_load(
        variant.target, body, connections=connections, seconds=seconds, patience=_PATIENCE, stream=stream
    )
    await asyncio.sleep(_SETTLE_SECONDS)
    after = variant.processes.cpu_seconds()
    if (complaint := load.complaint()) is not None:
        notes.add(f"{variant.name}: {complaint}")
    return load, None if before is None or after is None else after - before


def _rows(started: Sequence[Variant]) -> dict[str, Row]:
    base = started[0]
    rows: dict[str, Row] = {}
    for variant in started:
        resident = variant.processes.resident_bytes()
        rows[variant.name] = {
            "request": _median(variant.requests, 1e-6),
            "more_request": None if variant is base else _median(_differences(variant.requests, base.requests), 1e-6),
            "chunk": _median(variant.chunks, 1e-6),
            "more_chunk": None if variant is base else _median(_differences(variant.chunks, base.chunks), 1e-6),
            "p50": _median(variant.latencies, 1e-3),
            "resident": None if resident is None else resident / MEBIBYTE,
        }
    return rows


def _differences(figures: Sequence[float], others: Sequence[float]) -> list[float]:
    """The differences in each round: what else the machine does changes from round to round."""
    return [figure - other for figure, other in zip(figures, others, strict=False)]


def _median(figures: Sequence[float], unit: float) -> float | None:
    return statistics.median(figures) / unit if figures else None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
