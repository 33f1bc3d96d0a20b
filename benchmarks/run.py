"""One run: each peer is started alone, measured and stopped, first for speed, then in a new process for memory."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import attrs

from benchmarks.answers import BadAnswer
from benchmarks.client import Target, chat
from benchmarks.load import Load, apply_load
from benchmarks.measure import PROC, ProcessTree, machine_cpu_seconds
from benchmarks.memory import MEBIBYTE, MeasurePeak, download_peak, hold_streams, upload_peak
from benchmarks.notes import Notes
from benchmarks.options import Options
from benchmarks.peers import DIRECT, GATEWAY, NGINX, ROUTER, Peer, Start
from benchmarks.processes import CannotStart
from benchmarks.table import Column, Row, render

SPEED_COLUMNS = (
    Column("rate", "requests\nper s"),
    Column("p50", "p50\nms", 2),
    Column("p99", "p99\nms", 2),
    Column("slowest", "slowest\nms", 1),
    Column("one", "p50, one\nconnection ms", 2),
    Column("cpu_request", "CPU per\nrequest us"),
    Column("chunk_rate", "chunks\nper s"),
    Column("cpu_chunk", "CPU per\nchunk us", 1),
    Column("resident", "resident\nMiB", 1),
)
MEMORY_COLUMNS = (
    Column("before", "at start\nMiB", 1),
    Column("held", "open\nstreams", compared=False),
    Column("per_stream", "per open\nstream KiB", 1),
    Column("upload", "upload\npeak MiB", 1),
    Column("download", "download\npeak MiB", 1),
)
COMPARE = ((GATEWAY, NGINX), (GATEWAY, ROUTER))

_MeasureMemory = Callable[[str, Target, ProcessTree], Awaitable[Row]]

_REQUEST_TOKENS = 8
_WARM_UP_REQUESTS = 1.0
_ONE_CONNECTION_SECONDS = 3.0
_TRANSFER_SECONDS = 120.0
_OPEN_SECONDS = 60.0


@attrs.define
class Report:
    """The results.

    Attributes:
        speed: rows of the first table.
        memory: rows of the second.
        notes: what could not be measured, and why.
    """

    speed: dict[str, Row] = attrs.Factory(dict)
    memory: dict[str, Row] = attrs.Factory(dict)
    notes: Notes = attrs.Factory(Notes)

    def text(self) -> str:
        """Return the tables and the notes, as they are printed."""
        parts = [render(SPEED_COLUMNS, self.speed, COMPARE)]
        if self.memory:
            parts.append(render(MEMORY_COLUMNS, self.memory, COMPARE))
        parts += self.notes.texts()
        return "\n\n".join(parts)


class Run:
    """Measures peers in turn.

    Args:
        options: what to measure.
        model: the model to ask for.
        own_upstream: whether `benchmarks.upstream` is behind the peers, which takes a plan and any load.
        directory: where peers may write.
    """

    def __init__(self, options: Options, model: str, *, own_upstream: bool, directory: Path) -> None:
        self.report = Report()
        self._options = options
        self._model = model
        self._own_upstream = own_upstream
        self._patience = 10.0 if own_upstream else 120.0
        plan = f"benchmark events={options.events} interval={options.interval}" if own_upstream else None
        self._request = chat(model, max_tokens=_REQUEST_TOKENS)
        self._stream = chat(model, max_tokens=options.events, stream=True, plan=plan)
        self._directory = directory

    def measure_speed(self, name: str, start: Start) -> None:
        """Measure what requests and chunks cost."""

        async def measure(peer: Peer) -> None:
            self.report.speed[name] = await self._speed(name, peer)

        self._with_peer(name, start, measure)

    def measure_memory(self, name: str, start: Start) -> None:
        """Measure what open streams and large bodies cost, each in a new process, as processes keep freed memory."""
        row: dict[str, float | None] = {}
        for wanted, measure in (
            (self._options.open_streams, self._open_streams),
            (self._options.transfer_mib, self._upload),
            (self._options.transfer_mib, self._download),
        ):

            async def add(peer: Peer, measure: _MeasureMemory = measure) -> None:
                if peer.processes is None:
                    return
                await self._load(name, "warming up", peer.target, 1, min(_WARM_UP_REQUESTS, self._options.seconds))
                row.setdefault("before", _each(peer.processes.resident_bytes(), 1, MEBIBYTE))
                row.update(await measure(name, peer.target, peer.processes))

            if wanted:
                self._with_peer(name, start, add)
        if row:
            self.report.memory[name] = row

    def _with_peer(self, name: str, start: Start, measure: Callable[[Peer], Coroutine[Any, Any, None]]) -> None:
        directory = self._directory / f"{name}-{len(list(self._directory.iterdir()))}"
        directory.mkdir()

        try:
            with start(directory) as peer:
                asyncio.run(measure(peer))
        except CannotStart as error:
            if name == GATEWAY:
                raise
            self.report.notes.add(f"{name} was not measured: {error}")

    async def _load(self, name: str, what: str, target: Target, connections: int, seconds: float) -> Load:
        stream = what == "streams"
        body = self._stream if stream else self._request
        load = await apply_load(
            target, body, connections=connections, seconds=seconds, patience=self._patience, stream=stream
        )
        complaint = load.complaint()
        if complaint is not None:
            self.report.notes.add(f"{name}, {what}: {complaint}")
        return load

    async def _speed(self, name: str, peer: Peer) -> Row:
        options = self._options
        seconds = options.seconds
        say(f"{name}: {seconds:g} s of requests, {seconds:g} s of streams")
        await self._load(name, "warming up", peer.target, min(8, options.connections), min(_WARM_UP_REQUESTS, seconds))
        requests, request_cpu = await self._timed(
            f"{name}, requests", peer, self._load(name, "requests", peer.target, options.connections, seconds)
        )
        one = await self._load(name, "one connection", peer.target, 1, min(seconds, _ONE_CONNECTION_SECONDS))
        streams, stream_cpu = await self._timed(
            f"{name}, streams", peer, self._load(name, "streams", peer.target, options.streams, seconds)
        )
        if self._own_upstream and options.interval:
            self.report.notes.pace(name, streams.event_rate, options.streams / options.interval)
        resident = None if peer.processes is None else peer.processes.resident_bytes()
        return {
            "rate": requests.rate,
            "p50": requests.latency_ms(50),
            "p99": requests.latency_ms(99),
            "slowest": requests.latency_ms(100),
            "one": one.latency_ms(50),
            "cpu_request": _each(request_cpu, len(requests.latencies), 1e-6),
            "chunk_rate": streams.event_rate,
            "cpu_chunk": _each(stream_cpu, streams.events, 1e-6),
            "resident": _each(resident, 1, MEBIBYTE),
        }

    async def _timed(self, what: str, peer: Peer, load: Awaitable[Load]) -> tuple[Load, float | None]:
        """Return what came of a load, and the CPU seconds that the peer spent on it."""
        before, others_before = _cpu(peer), _others_cpu()
        done = await load
        after, others_after = _cpu(peer), _others_cpu()
        # the user's server on this machine would count as another program
        if self._own_upstream and others_before is not None and others_after is not None:
            self.report.notes.others(what, (others_after - others_before) / done.seconds)
        return done, None if before is None or after is None else after - before

    async def _open_streams(self, name: str, target: Target, processes: ProcessTree) -> Row:
        count = self._options.open_streams
        say(f"{name}: {count:,} open streams")
        held = await hold_streams(target, processes, self._model, count, _OPEN_SECONDS)
        self.report.notes.failures(f"{name}, {count:,} open streams", held.failures)
        return {"held": held.streams, "per_stream": _each(held.per_stream, 1, 1024)}

    async def _upload(self, name: str, target: Target, processes: ProcessTree) -> Row:
        return {"upload": await self._peak(name, "upload", upload_peak, target, processes)}

    async def _download(self, name: str, target: Target, processes: ProcessTree) -> Row:
        return {"download": await self._peak(name, "download", download_peak, target, processes)}

    async def _peak(
        self, name: str, what: str, measure: MeasurePeak, target: Target, processes: ProcessTree
    ) -> float | None:
        mebibytes = self._options.transfer_mib
        what = f"{name}, {what} of {mebibytes:,} MiB"
        say(what)
        try:
            peak = await measure(target, processes, self._model, mebibytes * MEBIBYTE, _TRANSFER_SECONDS)
        except BadAnswer as error:
            self.report.notes.add(f"{what}: {error}")
            return None
        if peak is None and PROC.joinpath("self/status").exists():
            self.report.notes.add(f"{what}: the kernel does not let peaks be reset (/proc/PID/clear_refs).")
        return _each(peak, 1, MEBIBYTE)


def _each(total: float | None, count: int, unit: float) -> float | None:
    return None if total is None or not count else total / count / unit


def _cpu(peer: Peer) -> float | None:
    return None if peer.processes is None else peer.processes.cpu_seconds()


def _others_cpu() -> float | None:
    """CPU seconds of all programs that are not this process or its children."""
    machine, ours = machine_cpu_seconds(), ProcessTree(os.getpid()).cpu_seconds()
    return None if machine is None or ours is None else machine - ours


def say(text: str) -> None:
    """Print progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def measure_all(run: Run, starts: dict[str, Start], *, memory: bool) -> Report:
    """Measure every peer.

    Raises:
        CannotStart: the gateway does not start.
    """
    for name, start in starts.items():
        run.measure_speed(name, start)
    for name, start in starts.items():
        if memory and name != DIRECT:
            run.measure_memory(name, start)
    return run.report
