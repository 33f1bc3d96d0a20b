"""``python -m benchmarks.streams``: what open streams cost; see ``--help`` and docs/scaling.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.options import number, whole
from benchmarks.processes import CannotStart, end_on_sigterm, raise_file_limit
from benchmarks.streams.real import INTERVAL, measure, most_streams, simulated
from benchmarks.streams.report import markdown

#: more than any step needs
_WANTED_FILES = 200_000
_STEPS = (1, 1_000, 5_000, 10_000, 20_000, 50_000)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streams",
        description="Measures memory and CPU of open streams, each with an event every ten seconds: real ones, and "
        "more of them in one process without sockets.",
    )
    add = parser.add_argument
    add("--workers", default="1", metavar="NUMBERS", help="of the gateways with real streams; 0 leaves them out [1]")
    add("--most", type=whole(1, 10**6), default=_STEPS[-1], metavar="N", help="streams without sockets [%(default)s]")
    add("--most-real", type=whole(1, 10**6), default=10**6, metavar="N", help="real streams [what descriptors allow]")
    add("--seconds", type=number(0.1, 600), default=10.0, metavar="S", help="of each measurement [%(default)s]")
    chosen = parser.parse_args(arguments)
    end_on_sigterm()
    files = raise_file_limit(_WANTED_FILES)
    try:
        numbers = [whole(0, 256)(word) for word in chosen.workers.split(",")]
    except argparse.ArgumentTypeError as error:
        parser.error(f"--workers: {error}")
    try:
        for workers in numbers:
            if workers:
                most = min(most_streams(files, workers), chosen.most_real)
                with TemporaryDirectory(prefix="benchmarks-streams-") as place:
                    steps = measure(_steps(most), workers, files, chosen.seconds, Path(place))
                name = "1 process" if workers == 1 else f"{workers} workers"
                print(markdown(f"Real streams, {name}, {files:,} files each", steps), end="\n\n", flush=True)
        steps = simulated(_steps(chosen.most), 1 / INTERVAL, chosen.seconds)
        print(markdown("Streams without sockets, 1 process", steps))
    except CannotStart as error:
        print(f"benchmarks.streams: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks.streams: interrupted", file=sys.stderr)
        return 130
    return 0


def _steps(most: int) -> list[int]:
    return [*(step for step in _STEPS if step < most), most]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
