"""What a run starts for which figure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.measure import ProcessTree
from benchmarks.options import parse
from benchmarks.peers import GATEWAY, Peer, own_upstream
from benchmarks.processes import CannotStart
from benchmarks.run import Run

TINY = ["--seconds=0.1", "--open-streams=3", "--transfer-mib=1"]


def run_in(directory: Path, *arguments: str) -> Run:
    (directory / "run").mkdir()
    return Run(parse([*TINY, *arguments], {}), "bench", own_upstream=True, directory=directory / "run")


def refuse() -> Peer:
    raise CannotStart("it ended with status 1")


@contextmanager
def never_starts(_: Path) -> Iterator[Peer]:
    yield refuse()


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs /proc")
@pytest.mark.parametrize(
    ("arguments", "starts", "figures"),
    [
        ([], 3, {"before", "held", "per_stream", "upload", "download"}),
        (["--open-streams=0"], 2, {"before", "upload", "download"}),
        (["--transfer-mib=0"], 1, {"before", "held", "per_stream"}),
    ],
)
def test_each_figure_of_memory_has_a_process_of_its_own(
    tmp_path: Path, arguments: list[str], starts: int, figures: set[str]
) -> None:
    started = []
    with own_upstream(tmp_path) as target:

        @contextmanager
        def start(directory: Path) -> Iterator[Peer]:
            started.append(directory)
            yield Peer(target, ProcessTree(os.getpid()))

        run = run_in(tmp_path, *arguments)
        run.measure_memory("peer", start)
    assert len(set(started)) == len(started) == starts
    assert set(run.report.memory["peer"]) == figures
    assert None not in run.report.memory["peer"].values()


def test_a_peer_that_does_not_start_is_left_out_and_said(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    run.measure_speed("nginx", never_starts)
    run.measure_memory("nginx", never_starts)
    assert (run.report.speed, run.report.memory) == ({}, {})
    assert run.report.notes.texts() == ["nginx was not measured: it ended with status 1"]


def test_without_the_gateway_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="status 1"):
        run_in(tmp_path).measure_speed(GATEWAY, never_starts)
