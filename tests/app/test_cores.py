"""How many workers ``auto`` is where the CPU is limited."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from twisted_vllm.app.cores import usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)))


def group(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)


def cores(mounted: Path, membership: str) -> int:
    file = mounted / "membership"
    file.write_text(membership)
    return usable_cores(mounted, file)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("25000 50000", 1),
        ("9900000 100000", 8),
        ("max 100000", 8),
        ("", 8),
        ("nonsense", 8),
        ("0 0", 8),
    ],
)
def test_a_containers_quota_bounds_the_cores(tmp_path: Path, quota: str, expected: int) -> None:
    group(tmp_path, cpu__max=quota)
    assert cores(tmp_path, "0::/\n") == expected


def test_the_narrowest_of_the_groups_above_counts(tmp_path: Path) -> None:
    group(tmp_path / "system.slice" / "vllm.service", cpu__max="max 100000")
    group(tmp_path / "system.slice", cpu__max="300000 100000")
    group(tmp_path, cpu__max="600000 100000")
    assert cores(tmp_path, "0::/system.slice/vllm.service\n") == 3


def test_a_path_of_the_host_leads_to_the_containers_own_group(tmp_path: Path) -> None:
    group(tmp_path, cpu__max="400000 100000")
    assert cores(tmp_path, "0::/docker/0123456789abcdef\n") == 4
    assert cores(tmp_path, "0::/../../elsewhere\n") == 4


@pytest.mark.parametrize(("quota", "expected"), [("200000", 2), ("-1", 8), ("", 8)])
def test_the_first_version_of_control_groups_counts_too(tmp_path: Path, quota: str, expected: int) -> None:
    group(tmp_path / "cpu,cpuacct" / "docker", cpu__cfs_quota_us=f"{quota}\n", cpu__cfs_period_us="100000\n")
    assert cores(tmp_path, "5:memory:/docker\n4:cpu,cpuacct:/docker\n0::/\n") == expected


def test_both_versions_may_be_mounted(tmp_path: Path) -> None:
    group(tmp_path / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    group(tmp_path / "unified", cpu__max="500000 100000")
    assert cores(tmp_path, "1:cpu:/\n0::/\n") == 5


def test_without_control_groups_the_cpu_set_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, tmp_path / "none") == 8
    assert cores(tmp_path, "not a line of the kernel's\n") == 8
