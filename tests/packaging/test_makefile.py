"""The Makefile says clearly what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    return tmp_path


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = shutil.which("make")
    if command is None:
        pytest.skip("make is not installed")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "VLLM_"))
    }
    return subprocess.run(
        [command, "-C", str(checkout), *arguments],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_missing_python_is_named_with_what_to_do(checkout: Path) -> None:
    done = make(checkout, "test", "PYTHON=python-that-is-missing")
    assert done.returncode == 2
    assert "python-that-is-missing is missing: install Python 3.11" in done.stderr


def test_live_tests_ask_for_their_server_before_they_install_anything(checkout: Path) -> None:
    done = make(checkout, "live", "PYTHON=python-that-is-missing")
    assert done.returncode == 2
    assert "set VLLM_BASE_URL to a vLLM server" in done.stderr
    assert not (checkout / ".venv").exists()


def test_make_alone_tells_what_there_is(checkout: Path) -> None:
    done = make(checkout)
    assert done.returncode == 0
    for target in ("run", "test", "format", "live", "bench", "wheel", "clean"):
        assert f"make {target} " in done.stdout


def test_each_test_module_is_in_one_job_of_make_test() -> None:
    # so that nothing is to be made first, whatever is installed here
    listed = make(REPOSITORY, "--dry-run", "--assume-old=.venv/installed-dev", "test")
    assert listed.returncode == 0, listed.stderr
    jobs = [line.partition(" -m pytest")[2].split() for line in listed.stdout.splitlines() if " -m pytest" in line]
    modules = [path.relative_to(REPOSITORY) for path in (REPOSITORY / "tests").rglob("test_*.py")]

    def runs(job: list[str], module: Path) -> bool:
        above = {str(module), *map(str, module.parents)}
        ignored = {option.removeprefix("--ignore=") for option in job if option.startswith("--ignore=")}
        chosen = [option for option in job if not option.startswith("-")]
        return not above & ignored and (not chosen or bool(above & set(chosen)))

    counts = {str(module): sum(runs(job, module) for job in jobs) for module in modules if module.parts[1] != "live"}
    assert {module: count for module, count in counts.items() if count != 1} == {}
