"""``python -m benchmarks.console``: what the console costs the data path; see ``--help`` and docs/performance.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from benchmarks.chromium import chromium, find_chromium
from benchmarks.console.plain_windows import PlainWindows
from benchmarks.console.report import Figures, markdown
from benchmarks.console.run import ConsolePlan, MakeWindows, measure
from benchmarks.console.windows import TEN, WATCHED, Windows
from benchmarks.growth.databases import POSTGRESQL, SQLITE, opened_databases
from benchmarks.growth.load import find_wrk
from benchmarks.options import number, whole
from benchmarks.peers import RunningGateway
from benchmarks.processes import CannotStart, end_on_sigterm, raise_file_limit
from benchmarks.streams.real import EVENTS, INTERVAL
from benchmarks.workers.upstream import nginx_as_vllm

_SPARE_FILES = 1_000
_EPILOG = """
Ten browsers keep a page open each, while wrk sends requests, in turn with and without them. A browser takes the cores
that the gateway needs, so rate and latency fall also where the gateway does nothing for it: what counts is the CPU of
the gateway's own processes, of a request and of a second without a load.

  make bench-console
  make bench-console ARGS="--workers 1 --streams 0 --rounds 20"
  make bench-console ARGS="--plain"
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.console",
        description="Measures what pages of the console cost the data path while ten browsers keep them open.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workers", default="1,2", metavar="NUMBERS", help="of the gateways [%(default)s]")
    add("--streams", default="0,2000", metavar="NUMBERS", help="requests in flight meanwhile [%(default)s]")
    add("--windows", default=",".join(TEN), metavar="NAMES", help="what is open [%(default)s]")
    add("--plain", action="store_true", help="clients that ask what the pages' scripts ask, in place of Chromium")
    add("--database", choices=(SQLITE, POSTGRESQL), default=SQLITE, help="of keys and ledger [%(default)s]")
    add("--postgresql", metavar="URL", help="a database on a PostgreSQL server of this machine; else one is started")
    add("--rounds", type=whole(1, 1000), default=6, metavar="N", help="[%(default)s]")
    add("--seconds", type=number(1, 600), default=8.0, metavar="S", help="of each load [%(default)s]")
    add("--connections", type=whole(1, 10**4), default=64, metavar="N", help="[%(default)s]")
    add("--idle-seconds", type=number(1, 600), default=20.0, metavar="S", help="without a load [%(default)s]")
    add("--loads", type=whole(0, 100), default=5, metavar="N", help="of each page; 0 leaves them out [%(default)s]")
    add("--json", type=Path, metavar="FILE", help="also write the figures there")
    chosen = parser.parse_args(arguments)
    windows = tuple(chosen.windows.split(","))
    if not set(windows) <= set(WATCHED):
        parser.error(f"--windows are of {','.join(WATCHED)}")
    try:
        plan = ConsolePlan(
            workers=[whole(1, 256)(word) for word in chosen.workers.split(",")],
            streams=[whole(0, 10**5)(word) for word in chosen.streams.split(",")],
            windows=windows,
            rounds=chosen.rounds,
            seconds=chosen.seconds,
            connections=chosen.connections,
            idle_seconds=chosen.idle_seconds,
            loads=chosen.loads,
        )
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    end_on_sigterm()
    try:
        find_wrk()
        figures = run(plan, chosen.database, chosen.postgresql, plain=chosen.plain)
    except CannotStart as error:
        print(f"benchmarks.console: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks.console: interrupted", file=sys.stderr)
        return 130
    if chosen.json is not None:
        chosen.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures)))
    print(markdown(figures))
    return 0


def run(plan: ConsolePlan, kind: str, url: str | None, *, plain: bool) -> Figures:
    """Start what is needed, and measure.

    Args:
        plan: what is measured.
        kind: the kind of database.
        url: of a PostgreSQL server that runs; None starts one.
        plain: whether the windows are those of no browser.

    Raises:
        CannotStart: something does not start or is not installed.
    """
    files = raise_file_limit(3 * max(*plan.streams, plan.connections) + _SPARE_FILES)
    with ExitStack() as stack:
        make_windows = _plain if plain else stack.enter_context(_real())
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="benchmarks-console-")))
        databases = stack.enter_context(opened_databases(kind, url, directory))
        if databases is None:
            raise CannotStart("PostgreSQL's programs (initdb, postgres) are not installed")
        upstream = stack.enter_context(nginx_as_vllm(directory, 2, files, EVENTS, INTERVAL))
        if any(plan.streams) and not upstream.streams:
            raise CannotStart("nginx has no echo module for --streams (Debian: libnginx-mod-http-echo)")
        return measure(plan, upstream, databases, directory, make_windows, browser=not plain)


@contextmanager
def _plain(gateway: RunningGateway) -> Iterator[Windows]:
    windows = PlainWindows(gateway.port, gateway.master_key)
    try:
        yield windows
    finally:
        windows.close()


@contextmanager
def _real() -> Iterator[MakeWindows]:
    """Run Chromium.

    Raises:
        CannotStart: Chromium or Playwright is not installed.
    """
    program = find_chromium()
    if program is None:
        raise CannotStart("Chromium is not installed (Debian: apt-get install chromium); --plain does without")
    try:
        from benchmarks.console.real_windows import RealWindows
    except ImportError as error:
        raise CannotStart("Playwright is not installed (pip install playwright); --plain does without") from error
    with chromium(program) as browser:

        @contextmanager
        def make(gateway: RunningGateway) -> Iterator[Windows]:
            windows = RealWindows(browser, f"http://127.0.0.1:{gateway.port}", gateway.master_key)
            try:
                yield windows
            finally:
                windows.end()

        yield make


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
