"""Real streams: as many as descriptors allow, each with an event every few seconds, through a gateway with sockets."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from benchmarks.peers import REPOSITORY, run_gateway_of
from benchmarks.processes import CannotStart, environment
from benchmarks.run import say
from benchmarks.streams.report import Step
from benchmarks.workers.parts import cpu_seconds, find_parts, resident_bytes
from benchmarks.workers.upstream import STREAM_PATH, nginx_as_vllm
from twisted_vllm.http.net.open_files import share_out

#: seconds between two events of a stream, and the events: a stream is longer than the measurement
INTERVAL, EVENTS = 10.0, 180
_SETTLE_SECONDS = 2.0
_SPARE_FILES = 200
_BODY = json.dumps({"model": "bench", "prompt": "I am going to Paris", "max_tokens": 512, "stream": True})


def most_streams(files: int, workers: int) -> int:
    """Return how many streams a gateway can have whose processes may each open so many files."""
    clients = share_out(None, files).clients
    assert clients is not None
    # the kernel spreads clients over workers by chance, not evenly
    share = clients if workers == 1 else int(clients * 0.9)
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    return min(share * workers, high - low)


def measure(counts: Sequence[int], workers: int, files: int, seconds: float, directory: Path) -> list[Step]:
    """Open more and more streams, and look at the gateway's processes.

    Args:
        counts: how many streams at each step, in ascending order.
        workers: how many workers the gateway has.
        files: how many files each process may open.
        seconds: how long CPU time is measured at each step.
        directory: where files are.

    Raises:
        CannotStart: something does not start, or nginx has no echo module.
    """
    steps: list[Step] = []
    with ExitStack() as stack:
        upstream = stack.enter_context(nginx_as_vllm(directory, max(workers, 2), files, EVENTS, INTERVAL))
        if not upstream.streams:
            raise CannotStart("nginx has no echo module (Debian: apt-get install libnginx-mod-http-echo)")
        own = {"api_base": f"http://127.0.0.1:{upstream.port}", "limits": {"max_connections": None}}
        place = directory / "gateway"
        place.mkdir()
        options = [] if workers == 1 else [f"--workers={workers}"]
        config = {"general_settings": {"database_url": f"sqlite:///{place}/gateway.sqlite"}, "passthrough": own}
        gateway = stack.enter_context(run_gateway_of(config, {}, place, *options))
        parts = find_parts(gateway.process)
        opened = failed = 0
        for count in [0, *counts]:
            began = sum(cpu_seconds(parts).values())
            before = opened
            while opened + failed < count:
                most = min(count - opened - failed, files - _SPARE_FILES)
                say(f"opening {most:,} of {count:,} streams")
                held, lost = stack.enter_context(held_streams(gateway.port, gateway.master_key, most, opened + failed))
                opened, failed = opened + held, failed + lost
            opening = (sum(cpu_seconds(parts).values()) - began) / max(opened - before, 1)
            time.sleep(_SETTLE_SECONDS)
            resident = resident_bytes(parts)
            began, wall = sum(cpu_seconds(parts).values()), time.monotonic()
            time.sleep(seconds)
            used = (sum(cpu_seconds(parts).values()) - began) / (time.monotonic() - wall)
            steps.append(Step(opened, failed, sum(resident.values()), max(resident.values()), used, opening))
    return steps


@contextmanager
def held_streams(port: int, key: str, count: int, first: int) -> Iterator[tuple[int, int]]:
    """Hold streams through a gateway during a block; yield how many, and how many could not be opened.

    Args:
        port: the gateway's.
        key: whose streams they are.
        count: how many.
        first: the number of the first: others may hold those before.

    Raises:
        CannotStart: the process that holds them ended.
    """
    command = [sys.executable, "-m", "benchmarks.streams.clients", str(port), f"/vllm{STREAM_PATH}", str(count)]
    process = subprocess.Popen(
        [*command, str(first)],
        env=environment(),
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(f"{key}\n{_BODY}\n")
        process.stdin.flush()
        words = process.stdout.readline().split()
        if len(words) != 3:
            raise CannotStart("the clients of streams ended")
        yield int(words[1]), int(words[2])
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe.close()


def simulated(counts: Sequence[int], rate: float, seconds: float) -> list[Step]:
    """Run `benchmarks.streams.simulated`, and return its steps.

    Raises:
        CannotStart: it failed.
    """
    say(f"{counts[-1]:,} streams without sockets")
    command = [sys.executable, "-m", "benchmarks.streams.simulated", ",".join(map(str, counts)), str(rate)]
    done = subprocess.run(
        [*command, str(seconds)], env=environment(), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise CannotStart(f"the simulation failed: {done.stderr[-1000:]}")
    return msgspec.json.decode(done.stdout, type=list[Step])
