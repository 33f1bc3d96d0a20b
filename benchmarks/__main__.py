"""``python -m benchmarks``: see ``--help`` and docs/performance.md."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from benchmarks.client import Target, chat
from benchmarks.load import ask_once
from benchmarks.measure import PROC
from benchmarks.options import Options, parse
from benchmarks.peers import find_peers, first_model, own_upstream
from benchmarks.processes import CannotStart, end_on_sigterm, raise_file_limit
from benchmarks.run import Run, measure_all

#: files that a proxy needs beside two for each stream
_SPARE_FILES = 200
_OWN_MODEL = "bench"
#: a model may have to wake up
_CHECK_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments, os.environ)
    end_on_sigterm()
    try:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="benchmarks-")))
            return run(options, directory, stack)
    except CannotStart as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks: interrupted", file=sys.stderr)
        return 130


def run(options: Options, directory: Path, stack: ExitStack) -> int:
    """Measure, and print the report.

    Raises:
        CannotStart: the gateway or the upstream does not start.
    """
    notes = []
    most = 2 * max(options.open_streams, options.streams, options.connections) + _SPARE_FILES
    files = raise_file_limit(most)
    if files < most:
        fitting = (files - _SPARE_FILES) // 2
        notes.append(f"Only {fitting:,} streams were held open: this user may open {files:,} files (ulimit -n).")
        options = attrs.evolve(options, open_streams=max(min(options.open_streams, fitting), 0))
    server, model = options.server, options.model or _OWN_MODEL
    if server is None:
        server = stack.enter_context(own_upstream(directory))
        about = "Upstream: the stand-in of benchmarks/upstream.py, which answers at once."
    else:
        named = options.model or first_model(server)
        if named is None:
            raise CannotStart(
                f"http://{server.host}:{server.port} does not list its models; is it vLLM, and is its key right? "
                "(--model NAME, --key KEY)"
            )
        model = named
        check(server, model)
        about = f"Upstream: {server.host}:{server.port}, model {model}."
        notes.append("Memory of open streams and large bodies was not measured: that would load a server of yours.")
    if not (PROC / "self" / "stat").exists():
        notes.append("CPU and memory were not measured: they are read from Linux' /proc, which is not here.")
    peers = find_peers(server, nginx_place=options.nginx, router_place=options.router, files=max(files, 1024))
    own = options.server is None
    memory = own and bool(options.open_streams or options.transfer_mib)
    measured = Run(options, model, own_upstream=own, directory=directory)
    for note in (about, *peers.missing, *notes):
        measured.report.notes.add(note)
    print(measure_all(measured, peers.starts, memory=memory).text())
    return 0


def check(server: Target, model: str) -> None:
    """Ask the user's server once, before anything is measured.

    Raises:
        CannotStart: it does not answer well.
    """
    problem = asyncio.run(ask_once(server, chat(model, max_tokens=1), seconds=_CHECK_SECONDS))
    if problem is not None:
        raise CannotStart(f"http://{server.host}:{server.port} cannot be used: {problem}")


if __name__ == "__main__":
    sys.exit(main())
