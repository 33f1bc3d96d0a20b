"""``python -m benchmarks.growth``: the growth table; see ``--help`` and docs/performance.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from benchmarks.growth.databases import POSTGRESQL, SQLITE, opened_databases
from benchmarks.growth.load import find_wrk
from benchmarks.growth.options import add_size, size_of, spread_of
from benchmarks.growth.report import Growth, markdown
from benchmarks.growth.run import PARTS, Measurement, Plan
from benchmarks.options import number, whole
from benchmarks.peers import own_upstream
from benchmarks.processes import CannotStart, end_on_sigterm
from benchmarks.run import say

_EPILOG = """
A database is filled first, by the gateway's own storage: a million rows take minutes. To fill it once and measure it
often, fill one with python -m benchmarks.growth.fill URL and name it with --sqlite or --postgresql, with the same
sizes; only copies of it are used.

  make bench-growth
  make bench-growth ARGS="--keys 100000 --users 20000 --teams 1000 --end-users 50000 --rows 5000000"
  make bench-growth ARGS="--databases sqlite --parts keys,writer --rounds 1"
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description="Measures what a request, a row and a report cost with many keys, end users and rows.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, default = parser.add_argument, Plan(size=size_of(_sizes()), spread=spread_of(_sizes()))
    add_size(parser)
    add("--databases", default=f"{SQLITE},{POSTGRESQL}", metavar="NAMES", help="[%(default)s]")
    add("--sqlite", metavar="URL", help="a filled SQLite database, as in sqlite:////DIRECTORY/FILE")
    add("--postgresql", metavar="URL", help="a filled PostgreSQL database, on a server of this machine")
    add("--parts", default=",".join(PARTS), metavar="NAMES", help="[%(default)s]")
    add("--steps", default=",".join(map(str, default.steps)), metavar="NUMBERS", help="active keys [%(default)s]")
    add("--rounds", type=whole(1, 100), default=default.rounds, metavar="N", help="of each load [%(default)s]")
    add("--seconds", type=number(1, 600), default=default.seconds, metavar="S", help="of each load [%(default)s]")
    add("--writer-seconds", type=number(1, 3600), default=default.writer_seconds, metavar="S", help="[%(default)s]")
    add("--rate", type=whole(1, 10**6), default=default.rate, metavar="N", help="rows/s for the writer [%(default)s]")
    add("--read-rate", type=whole(10, 10**5), default=default.read_rate, metavar="N", help="requests/s [%(default)s]")
    add("--read-times", type=whole(1, 10**4), default=default.read_times, metavar="N", help="[%(default)s]")
    add("--only", default="", metavar="TEXT", help="only the lists and reports whose names have this text")
    add("--json", type=Path, metavar="FILE", help="write the figures there, after each part")
    chosen = parser.parse_args(arguments)
    names, parts = chosen.databases.split(","), chosen.parts.split(",")
    if not set(names) <= {SQLITE, POSTGRESQL} or not set(parts) <= set(PARTS):
        parser.error(f"--databases are of {SQLITE},{POSTGRESQL}, and --parts of {','.join(PARTS)}")
    plan = Plan(
        size=size_of(chosen),
        spread=spread_of(chosen),
        parts=parts,
        steps=[int(step) for step in chosen.steps.split(",")],
        rounds=chosen.rounds,
        seconds=chosen.seconds,
        writer_seconds=chosen.writer_seconds,
        rate=chosen.rate,
        read_rate=chosen.read_rate,
        read_times=chosen.read_times,
        only=chosen.only,
    )
    end_on_sigterm()
    try:
        find_wrk()
        for growth in measure(plan, {name: getattr(chosen, name) for name in names}, chosen.json):
            print(markdown(growth), end="\n\n", flush=True)
    except CannotStart as error:
        print(f"benchmarks.growth: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks.growth: interrupted", file=sys.stderr)
        return 130
    return 0


def _sizes() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_size(parser)
    return parser.parse_args([])


def measure(plan: Plan, filled: dict[str, str | None], json: Path | None) -> Iterator[Growth]:
    """Measure one kind of database after the other.

    Args:
        plan: what is measured.
        filled: the kinds, each with the URL of a filled database or None.
        json: a file that has the figures after each part; None writes none.

    Raises:
        CannotStart: a gateway, a load or PostgreSQL does not start.
    """
    done: list[Growth] = []

    def save(growth: Growth) -> None:
        if json is not None:
            json.write_bytes(msgspec.json.format(msgspec.json.encode([*done, growth])))

    for kind, url in filled.items():
        with ExitStack() as stack:
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="benchmarks-growth-")))
            databases = stack.enter_context(opened_databases(kind, url, directory))
            if databases is None:
                say("PostgreSQL is left out: its programs (initdb, postgres) are not installed.")
                continue
            upstream = stack.enter_context(own_upstream(directory))
            growth = Measurement(plan, databases, url, upstream, directory, save).run()
        save(growth)
        done.append(growth)
        yield growth


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
