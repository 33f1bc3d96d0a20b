"""The Makefile says clearly what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    # what says which Pythons will do
    for name in ("twisted_vllm/__init__.py", "twisted_vllm/cli/__init__.py", "twisted_vllm/cli/entry.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    return tmp_path


def old_python() -> str:
    """Return a Python that is too old; skip where there is none."""
    pyenv = sorted((Path.home() / ".pyenv" / "versions").glob("3.10.*/bin/python3.10"))
    for program in (*map(str, pyenv), "python3.10", "python3.9"):
        found = shutil.which(program)
        if found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
            return found
    pytest.skip("no old Python is installed")


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = shutil.which("make")
    if command is None:
        pytest.skip("make is not installed")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MAKE", "MFLAGS", "VLLM_")) and name not in ("PYTHON", "VENV")
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


def test_a_python_that_is_too_old_is_refused_before_anything_is_made(checkout: Path) -> None:
    old = old_python()
    done = make(checkout, "--silent", "test", f"PYTHON={old}")
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(said) == 1
    assert said[0].startswith("vllm-passthrough needs Python 3.11 to 3.14, and this is Python 3.")
    assert not (checkout / ".venv").exists()


def test_a_python_without_venv_is_told_what_it_lacks(checkout: Path) -> None:
    # as Debian's without its package python3-venv
    part = checkout / "python"
    part.write_text(f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    part.chmod(0o755)
    done = make(checkout, "test", f"PYTHON={part}")
    assert done.returncode == 2
    assert f"make: {part} makes no virtual environments: install its package venv" in done.stderr
    assert not (checkout / ".venv").exists()


def test_another_python_than_the_folder_has_is_not_passed_over(checkout: Path) -> None:
    for folder, version in (("here/bin", "3.11.7"), ("other", "3.13.0")):
        (checkout / folder).mkdir(parents=True)
        (checkout / folder / "python").write_text(f"#!/bin/sh\necho Python {version}\n")
        (checkout / folder / "python").chmod(0o755)
    done = make(checkout, "test", f"PYTHON={checkout}/other/python", "VENV=here")
    assert done.returncode == 2
    assert f"here has Python 3.11.7, and {checkout}/other/python is Python 3.13.0: name another folder" in done.stderr


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
