"""``make test-pythons``: the tests with each Python that is installed and that the gateway supports.

Looks for ``python3.11`` and its successors on the PATH, in pyenv, and for the system's own ``python3``. Each runs the
tests in a folder of its own, ``.venv-VERSION``, one after another; format, lint and types are checked once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs

from twisted_vllm.cli.entry import OLDEST, TOO_NEW

REPOSITORY = Path(__file__).parents[1]
#: the Python of the operating system
SYSTEM = Path("/usr/bin/python3")
#: what `make test` runs, without the checks of the sources
TESTS = (
    *("test-soak", "test-services", "test-processes", "test-browser", "test-rest", "test-more-processes"),
    "test-apart",
)
#: seconds that a Python has to say which it is
PATIENCE = 20

_LOOK = """
import json, os, sys
try:
    import ensurepip, venv
    fit = True
except ImportError:
    fit = False
print(json.dumps([list(sys.version_info[:3]), sys.base_prefix, fit]))
"""


@attrs.frozen
class Python:
    """A Python that is installed.

    Attributes:
        program: how it is called.
        version: three numbers.
        prefix: where it is installed.
        makes_environments: whether it has venv and ensurepip, which Debian packs apart.
    """

    program: Path
    version: tuple[int, int, int]
    prefix: str
    makes_environments: bool

    def __str__(self) -> str:
        """Return its version as people write it."""
        return ".".join(map(str, self.version))


def supported() -> list[tuple[int, int]]:
    """Return the versions that the gateway supports, the oldest first."""
    return [(OLDEST[0], minor) for minor in range(OLDEST[1], TOO_NEW[1])]


def installed(path: str | None = None, pyenv: Path | None = None, system: Path = SYSTEM) -> list[Python]:
    """Return the supported Pythons of this machine, each once, by version.

    Args:
        path: where programs are looked for; that of the environment by default.
        pyenv: pyenv's folder; that of the environment by default.
        system: the Python of the operating system.
    """
    path = os.environ.get("PATH", os.defpath) if path is None else path
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") if pyenv is None else pyenv
    found: dict[tuple[tuple[int, int, int], str], Python] = {}
    for program in _candidates(path, pyenv, system):
        python = look(program)
        if python is not None and OLDEST <= python.version[:2] < TOO_NEW:
            found.setdefault((python.version, python.prefix), python)
    return sorted(found.values(), key=lambda python: python.version)


def look(program: Path) -> Python | None:
    """Return what a program says of itself; ``None`` if it is no Python, or pyenv's stand-in for one."""
    try:
        done = subprocess.run([program, "-c", _LOOK], capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    (major, minor, patch), prefix, fit = json.loads(done.stdout)
    return Python(program, (major, minor, patch), os.path.realpath(prefix), fit)


def _candidates(path: str, pyenv: Path, system: Path) -> Iterator[Path]:
    for major, minor in supported():
        name = f"python{major}.{minor}"
        for folder in [*path.split(os.pathsep), *map(str, sorted(pyenv.glob(f"versions/{major}.{minor}.*/bin")))]:
            if program := shutil.which(name, path=folder):
                yield Path(program)
    if system.exists():
        yield system


def lacking(pythons: Iterable[Python]) -> list[str]:
    """Return a line for each supported version that is not here, and for each Python that makes no environment."""
    pythons = list(pythons)
    here = {python.version[:2] for python in pythons}
    lines = [f"Python {major}.{minor} is not installed" for major, minor in supported() if (major, minor) not in here]
    return lines + [
        f"Python {python} ({python.program}) makes no virtual environments: install its package venv"
        for python in pythons
        if not python.makes_environments
    ]


def _test(python: Python, targets: Sequence[str]) -> int:
    # what make exported for this run is not for another Python's
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHON", "VENV") and not name.startswith(("MAKE", "MFLAGS"))
    }
    environment.setdefault("SOAK_NOISE", "0.5")
    options = ("--no-print-directory", "--jobs=5", "--keep-going", "--output-sync=target")
    variables = (f"PYTHON={python.program}", f"VENV=.venv-{python}")
    return subprocess.run(
        [os.environ.get("MAKE", "make"), *options, *variables, *targets], cwd=REPOSITORY, env=environment, check=False
    ).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests with each Python; return the exit status."""
    parser = argparse.ArgumentParser(prog="make test-pythons", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument(
        "targets", nargs="*", default=TESTS, metavar="TARGET", help="make's targets [default: all tests]"
    )
    parser.add_argument("--list", action="store_true", help="only say which are installed, and which are missing")
    parser.add_argument("--only", action="append", metavar="VERSION", help="only this one, as 3.13 or 3.13.0")
    options = parser.parse_args(arguments)
    pythons = installed()
    for line in lacking(pythons):
        print(line, file=sys.stderr)
    chosen = [
        python
        for python in pythons
        if python.makes_environments
        and (not options.only or any(f"{python}.".startswith(f"{wanted}.") for wanted in options.only))
    ]
    if options.list:
        print("".join(f"Python {python}  {python.program}\n" for python in chosen), end="")
        return 0
    if not chosen:
        print("make test-pythons: no Python to test with", file=sys.stderr)
        return 2
    failed = subprocess.run(["make", "--no-print-directory", "style"], cwd=REPOSITORY, check=False).returncode != 0
    told = []
    for python in chosen:
        began = time.monotonic()
        status = _test(python, options.targets)
        failed = failed or status != 0
        told.append(f"Python {python}: {'failed' if status else 'passed'} in {time.monotonic() - began:.0f} s")
    print("\n".join(told))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
