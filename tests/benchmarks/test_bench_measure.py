"""CPU and memory are those of the whole tree of processes, and nothing where there is no /proc."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.measure import ProcessTree, machine_cpu_seconds, parse_memory, parse_stat, percentile


def stat_line(pid: int, parent: int, user: int, system: int, command: str = "nginx") -> str:
    return f"{pid} ({command}) S {parent} 7 7 0 -1 4194560 10 0 0 0 {user} {system} 5 6 20 0 1 0 100 1000 10"


class FakeProc:
    """A proc file system with the files that are read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def add(self, pid: int, parent: int, *, ticks: int = 0, rss_kib: int = 0, peak_kib: int = 0) -> None:
        process = self.directory / str(pid)
        process.mkdir()
        (process / "stat").write_text(stat_line(pid, parent, ticks, 0))
        (process / "status").write_text(f"Name:\tx\nVmHWM:\t{peak_kib:8d} kB\nVmRSS:\t{rss_kib:8d} kB\nThreads:\t1\n")
        (process / "clear_refs").write_text("")

    def tree(self, root: int) -> ProcessTree:
        return ProcessTree(root, self.directory, ticks_per_second=100)


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


@pytest.mark.parametrize("command", ["nginx", "tmux: server", "a) S 1 (b", "x)"])
def test_a_command_may_hold_spaces_and_parentheses(command: str) -> None:
    stat = parse_stat(stat_line(42, 17, 120, 34, command))
    assert (stat.parent, stat.ticks, stat.ended_ticks) == (17, 154, 11)


@pytest.mark.parametrize("line", ["", "42 (x) S 1", "no such line"])
def test_a_line_that_is_none_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="stat"):
        parse_stat(line)


def test_memory_is_read_in_bytes_or_not_at_all() -> None:
    status = "VmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n"
    assert parse_memory(status, "VmRSS") == 1024 * 1024
    assert parse_memory(status, "VmSwap") is None


def test_a_process_counts_with_everything_below_it_and_nothing_else(proc: FakeProc) -> None:
    proc.add(10, 1, ticks=5, rss_kib=1, peak_kib=3)
    proc.add(11, 10, ticks=70, rss_kib=10, peak_kib=30)
    proc.add(12, 11, ticks=25, rss_kib=100, peak_kib=300)
    proc.add(13, 1, ticks=9999, rss_kib=9999, peak_kib=9999)
    tree = proc.tree(10)
    assert tree.cpu_seconds() == 1.0
    assert tree.resident_bytes() == 111 * 1024
    assert tree.peak_bytes() == 333 * 1024


def test_children_that_ended_count_where_that_is_asked_for(proc: FakeProc) -> None:
    proc.add(10, 1, ticks=50)
    proc.add(11, 10, ticks=50)
    tree = proc.tree(10)
    # each line says 11 ticks of its ended children
    assert (tree.cpu_seconds(), tree.cpu_seconds(ended=True)) == (1.0, 1.22)


def test_a_new_peak_begins_for_the_whole_tree(proc: FakeProc) -> None:
    proc.add(10, 1)
    proc.add(11, 10)
    assert proc.tree(10).reset_peak()
    assert [(proc.directory / str(pid) / "clear_refs").read_text() for pid in (10, 11)] == ["5", "5"]


def test_without_a_proc_file_system_nothing_is_known(tmp_path: Path) -> None:
    tree = ProcessTree(10, tmp_path / "missing", ticks_per_second=100)
    assert (tree.cpu_seconds(), tree.resident_bytes(), tree.peak_bytes()) == (None, None, None)


def test_a_process_that_ended_is_not_guessed_at(proc: FakeProc) -> None:
    proc.add(13, 1, ticks=1)
    assert proc.tree(10).cpu_seconds() is None


def test_the_machine_s_cpu_time_excludes_idle_and_iowait(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  100 20 30 9999 9999 4 6 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    assert machine_cpu_seconds(tmp_path, ticks_per_second=100) == 1.6


@pytest.mark.parametrize("text", [None, "", "intr 1 2", "cpu 1 2"])
def test_the_machine_s_cpu_time_is_not_guessed(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "stat").write_text(text)
    assert machine_cpu_seconds(tmp_path, ticks_per_second=100) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_the_kernel_s_own_files_are_understood() -> None:
    tree = ProcessTree(os.getpid())
    cpu, resident = tree.cpu_seconds(), tree.resident_bytes()
    assert cpu is not None
    assert cpu > 0
    assert resident is not None
    assert resident > 1024 * 1024


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1.0), (1, 1.0), (50, 2.0), (51, 3.0), (75, 3.0), (99, 4.0), (100, 4.0)]
)
def test_a_percentile_is_one_of_the_values(percent: float, expected: float) -> None:
    assert percentile([3.0, 1.0, 4.0, 2.0], percent) == expected


def test_nothing_has_no_percentile() -> None:
    assert percentile([], 50) is None


@settings(deadline=None)
@given(values=st.lists(st.floats(0, 1e6), min_size=1), percent=st.integers(1, 100))
def test_so_many_percent_do_not_exceed_a_percentile(values: list[float], percent: int) -> None:
    found = percentile(values, percent)
    assert found is not None
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 < percent * len(values)
