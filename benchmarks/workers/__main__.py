"""``python -m benchmarks.workers``: one process against several workers; see ``--help`` and docs/scaling.md."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from benchmarks.free_ports import free_port
from benchmarks.growth.databases import POSTGRESQL, SQLITE, opened_databases
from benchmarks.growth.load import find_wrk
from benchmarks.measure import ProcessTree
from benchmarks.options import number, whole
from benchmarks.peers import find_program
from benchmarks.processes import (
    CannotStart,
    end_on_sigterm,
    environment,
    raise_file_limit,
    running,
    wait_until_ready,
)
from benchmarks.run import say
from benchmarks.workers.report import Figures, markdown
from benchmarks.workers.run import LOADS, Around, Plan, measure
from benchmarks.workers.upstream import nginx_as_vllm

_MOST_WORKERS = (1, 2, 4)
_SPARE_FILES = 500
_EPILOG = """
All gateways run at the same time and get the same loads in turn, so that what else this machine does falls on all.
CPU per request is the figure to trust where load, server and gateways share the cores; the rate shows what was left.

  make bench-workers
  make bench-workers ARGS="--workers 1,2 --rounds 5 --seconds 10"
  make bench-workers ARGS="--database postgresql --loads 'requests,limited requests' --ledger on"
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    cores = len(os.sched_getaffinity(0))
    fitting = ",".join(str(workers) for workers in _MOST_WORKERS if workers <= max(cores, 2))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.workers",
        description="Measures requests, streamed chunks and CPU of gateways with one process and with several workers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, default = parser.add_argument, Plan(workers=())
    add(
        "--workers", default=fitting, metavar="NUMBERS", help="the first is what others are compared with [%(default)s]"
    )
    add("--ledger", choices=("off", "on", "both"), default="both", help="[%(default)s]")
    add("--database", choices=(SQLITE, POSTGRESQL), default=SQLITE, help="of keys and ledger [%(default)s]")
    add(
        "--postgresql",
        metavar="URL",
        help="a database on a PostgreSQL server of this machine; without it, one is started",
    )
    add("--redis", action="store_true", help="a Redis of the benchmark's own counts the limits")
    add("--loads", default=",".join(LOADS), metavar="NAMES", help="[%(default)s]")
    add("--rounds", type=whole(1, 100), default=default.rounds, metavar="N", help="[%(default)s]")
    add("--seconds", type=number(1, 600), default=default.seconds, metavar="S", help="of each load [%(default)s]")
    add("--connections", type=whole(1, 10**4), default=default.connections, metavar="N", help="[%(default)s]")
    add("--streams", type=whole(1, 10**5), default=default.streams, metavar="N", help="at once [%(default)s]")
    add("--json", type=Path, metavar="FILE", help="also write the figures there")
    chosen = parser.parse_args(arguments)
    loads = tuple(chosen.loads.split(","))
    try:
        workers = tuple(whole(1, 256)(word) for word in chosen.workers.split(","))
    except argparse.ArgumentTypeError as error:
        parser.error(f"--workers: {error}")
    if not set(loads) <= set(LOADS):
        parser.error(f"--loads are of {','.join(LOADS)}")
    plan = Plan(
        workers=workers,
        ledgers={"off": (False,), "on": (True,), "both": (False, True)}[chosen.ledger],
        loads=loads,
        rounds=chosen.rounds,
        seconds=chosen.seconds,
        connections=chosen.connections,
        streams=chosen.streams,
    )
    end_on_sigterm()
    try:
        find_wrk()
        figures = run(plan, chosen.database, chosen.postgresql, with_redis=chosen.redis)
    except CannotStart as error:
        print(f"benchmarks.workers: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks.workers: interrupted", file=sys.stderr)
        return 130
    if chosen.json is not None:
        chosen.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures)))
    print(markdown(figures))
    return 0


def run(plan: Plan, kind: str, url: str | None, *, with_redis: bool = False) -> Figures:
    """Start what is needed, and measure.

    Args:
        plan: what is measured.
        kind: the kind of database.
        url: of a PostgreSQL server that runs; None starts one.
        with_redis: whether a Redis counts the limits.

    Raises:
        CannotStart: a gateway, a load, nginx, PostgreSQL or Redis does not start.
    """
    files = raise_file_limit(2 * max(plan.streams, plan.connections) + _SPARE_FILES)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="benchmarks-workers-")))
        databases = stack.enter_context(opened_databases(kind, url, directory))
        if databases is None:
            raise CannotStart("PostgreSQL's programs (initdb, postgres) are not installed")
        upstream = stack.enter_context(nginx_as_vllm(directory, max(plan.workers), files))
        say(f"gateways with {', '.join(map(str, plan.workers))} workers, on {databases.name}")
        redis, redis_process = stack.enter_context(_redis(directory)) if with_redis else (None, None)
        return measure(plan, Around(upstream, databases, redis, redis_process, directory))


@contextmanager
def _redis(directory: Path) -> Iterator[tuple[int, ProcessTree]]:
    """Run a Redis that keeps nothing; yield its port and its processes."""
    program = find_program("redis-server", None)
    if program is None:
        raise CannotStart("Redis is not installed (Debian: apt-get install redis-server)")
    port, log = free_port(), directory / "redis.out"
    command = [str(program), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with running(command, log, environ=environment(), directory=directory) as process:
        wait_until_ready(process, log, lambda: "Ready to accept connections" in log.read_text(errors="replace"))
        yield port, ProcessTree(process.pid)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
