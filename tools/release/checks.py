"""What a wheel and a source distribution must be before others get them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from packaging.utils import parse_sdist_filename, parse_wheel_filename

from tools.release.distributions import REPOSITORY

#: of ten; pyroma takes off two where neither authors nor project have an address, as here
_RATING = 8


def check(sdist: Path, wheel: Path) -> list[str]:
    """Return what is wrong with a release's files, one text for each program that found something."""
    of_python = Path(sys.executable).parent
    programs: Sequence[Sequence[str]] = (
        # the description and the metadata, as PyPI reads them
        (str(of_python / "twine"), "check", "--strict", str(sdist), str(wheel)),
        (str(of_python / "check-wheel-contents"), "--config", str(REPOSITORY / "pyproject.toml"), str(wheel)),
        (str(of_python / "pyroma"), "--min", str(_RATING), str(sdist)),
    )
    problems = []
    for command in programs:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            problems.append(f"{Path(command[0]).name}:\n{done.stdout}")
    if parse_sdist_filename(sdist.name)[1] != parse_wheel_filename(wheel.name)[1]:
        problems.append(f"{sdist.name} and {wheel.name} have different versions")
    return problems


def is_release(wheel: Path) -> bool:
    """Return whether a wheel's version is that of a release, not of a commit between two."""
    return not parse_wheel_filename(wheel.name)[1].is_devrelease
