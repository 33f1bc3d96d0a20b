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
