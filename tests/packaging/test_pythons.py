"""Each Python that the gateway supports, as far as it is here; `make test-pythons` runs all tests with each."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest

from benchmarks.free_ports import free_port
from tests.end_to_end.twistd_harness import Foreground, ask, environment, wait_until
from tests.packaging.conftest import PATIENCE, REPOSITORY
from tools import pythons

#: what pip says where it reaches nobody
OFFLINE = re.compile(
    r"Failed to establish a new connection|Temporary failure in name resolution|Network is unreachable"
)


@cache
def others() -> dict[str, pythons.Python]:
    """Return those that do not run these tests: one of each version, and the operating system's own."""
    found = {}
    for python in pythons.installed():
        if (python.version, python.prefix) != (sys.version_info[:3], os.path.realpath(sys.base_prefix)):
            is_system_s = python.program.resolve() == pythons.SYSTEM.resolve()
            found["the system's" if is_system_s else f"{python.version[0]}.{python.version[1]}"] = python
    return found


@pytest.fixture(params=["the system's", *(f"{major}.{minor}" for major, minor in pythons.supported())])
def other(request: pytest.FixtureRequest) -> pythons.Python:
    python = others().get(request.param)
    if python is None:
        pytest.skip(f"no other Python is {request.param} here")
    return python


@pytest.fixture
def command(other: pythons.Python, wheel: Path, tmp_path: Path) -> Path:
    """The command of the wheel, installed with its dependencies from PyPI."""
    programs = tmp_path / "environment" / "bin"
    subprocess.run([other.program, "-m", "venv", "--without-pip", programs.parent], check=True, timeout=PATIENCE)
    pip = (sys.executable, "-m", "pip", "--python", programs / "python", "--disable-pip-version-check")
    done = subprocess.run(
        [*pip, "install", "--quiet", "--retries", "1", "--timeout", "10", wheel],
        env={name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_REQUIRE"))},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )
    if done.returncode and OFFLINE.search(done.stdout + done.stderr):
        pytest.skip("PyPI cannot be reached")
    assert done.returncode == 0, done.stdout + done.stderr
    return programs / "vllm-passthrough"


class Installed(Foreground):
    """The command of an installed wheel, without the checkout and with every warning of Python."""

    def __init__(self, program: Path, directory: Path, *arguments: str) -> None:
        self._program = program
        super().__init__(directory, free_port(), *arguments, PYTHONPATH="", PYTHONWARNINGS="default")

    def _command(self, *arguments: str) -> list[str]:
        return [str(self._program), "run", *arguments]


def test_the_wheel_serves_writes_its_row_and_warns_of_nothing(
    other: pythons.Python, command: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "gateway"
    directory.mkdir()
    with Installed(command, directory, "--quickstart", "--workers", "2") as gateway:
        key = (directory / ".run" / "master-key").read_text().strip()
        question = {"model": "simulated-model", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
        status, answer = ask(gateway.port, "/v1/chat/completions", key, "POST", json.dumps(question))
        assert (status, json.loads(answer)["usage"]["completion_tokens"]) == (200, 3)
        streamed = json.dumps({**question, "stream": True})
        status, answer = ask(gateway.port, "/v1/chat/completions", key, "POST", streamed)
        assert (status, answer.rstrip()[-12:]) == (200, "data: [DONE]")
        status, made = ask(gateway.port, "/key/generate", key, "POST", '{"models": ["another"]}')
        assert status == 200
        refused = ask(gateway.port, "/v1/chat/completions", json.loads(made)["key"], "POST", json.dumps(question))
        assert refused[0] == 403

        def rows() -> list[dict[str, object]]:
            return list(json.loads(ask(gateway.port, "/spend/logs/v2", key)[1])["data"])

        wait_until(lambda: len(rows()) == 2)
        assert [(row["prompt_tokens"], row["completion_tokens"]) for row in rows()] == [(1, 3), (1, 3)]
        assert gateway.terminate() == 0
    assert gateway.stderr == ""
    assert f"{other}) starting up" in gateway.stdout
    assert "Warning" not in gateway.stdout


def test_what_pip_and_the_command_support_is_the_same() -> None:
    setup = ConfigParser()
    setup.read(REPOSITORY / "setup.cfg", "utf-8")
    versions = pythons.supported()
    oldest, newest = versions[0], versions[-1]
    assert setup["options"]["python_requires"] == f">={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}"
    classified = re.findall(r"Programming Language :: Python :: (\d+)\.(\d+)$", setup["metadata"]["classifiers"], re.M)
    assert [(int(major), int(minor)) for major, minor in classified] == versions


@pytest.mark.parametrize("name", ["python3.8", "python3.9", "python3.10"])
def test_pip_refuses_an_old_python_by_its_version(name: str, wheel: Path, tmp_path: Path) -> None:
    found = sorted((Path.home() / ".pyenv" / "versions").glob(f"{name.removeprefix('python')}.*/bin/{name}"))
    program = shutil.which(name) if not found else str(found[0])
    if program is None or subprocess.run([program, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip(f"{name} with pip is not installed")
    pip = (program, "-m", "pip", "--disable-pip-version-check", "--isolated", "install", "--no-deps", "--no-index")
    done = subprocess.run(
        [*pip, "--target", tmp_path / "there", wheel], env=environment(PYTHONPATH=""), capture_output=True, text=True
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 1
    assert "requires a different Python" in errors[0]
    assert "not in '<3.15,>=3.11'" in errors[0]


def script(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    return folder / name


def answering(version: str, prefix: str, fit: bool = True) -> str:
    return f"echo '{json.dumps([[int(part) for part in version.split('.')], prefix, fit])}'"


def test_each_python_is_found_once_and_what_does_not_run_is_none(tmp_path: Path) -> None:
    on_path, pyenv = tmp_path / "bin", tmp_path / "pyenv"
    script(on_path, "python3.11", answering("3.11.7", "/opt/eleven"))
    # pyenv's stand-in for a version that is switched off
    script(on_path, "python3.12", "exit 127")
    script(pyenv / "versions" / "3.11.7" / "bin", "python3.11", answering("3.11.7", "/opt/eleven"))
    script(pyenv / "versions" / "3.12.1" / "bin", "python3.12", answering("3.12.1", "/opt/twelve"))
    system = script(tmp_path, "python3", answering("3.13.5", "/usr", fit=False))
    found = pythons.installed(str(on_path), pyenv, system)
    assert [str(python) for python in found] == ["3.11.7", "3.12.1", "3.13.5"]
    assert pythons.lacking(found) == [
        "Python 3.14 is not installed",
        f"Python 3.13.5 ({system}) makes no virtual environments: install its package venv",
    ]


@pytest.mark.parametrize("version", ["3.10.13", "3.15.0"])
def test_a_system_whose_python_is_not_supported_is_no_python(version: str, tmp_path: Path) -> None:
    assert pythons.installed(str(tmp_path), tmp_path, script(tmp_path, "python3", answering(version, "/usr"))) == []
