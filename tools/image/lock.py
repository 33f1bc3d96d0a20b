"""Writes the image's lock files: each package that goes into the image, with its version and the hashes of its files.

``make lock`` asks PyPI for the latest versions that setup.cfg allows; commit what it writes. One resolution counts for
files, so that a package has the same version whichever extras an image has. They hold for each Python that the gateway
supports, and for each processor: what is needed on one alone has a marker.
"""

from __future__ import annotations

import configparser
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from tools.release.dependencies import runtime_extras

REPOSITORY = Path(__file__).parents[2]
DIRECTORY = Path(__file__).parent / "requirements"
#: the file with what the gateway always needs, and the one with what builds its wheel
GATEWAY, BUILD = "gateway", "build"

_HEAD = """\
# {what}
# Written by `make lock`; do not edit it here.
"""


def main() -> None:
    """Write all files."""
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg", "utf-8")
    always = _lines(setup["options"]["install_requires"])
    extras = {name: _lines(setup["options.extras_require"][name]) for name in runtime_extras()}
    builds = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["build-system"]["requires"]
    with tempfile.TemporaryDirectory() as scratch:
        everything = _resolve([*always, *(each for wanted in extras.values() for each in wanted)])
        versions = Path(scratch, "versions.txt")
        versions.write_text(everything, "utf-8")
        _write(GATEWAY, "What the gateway needs.", _resolve(always, versions))
        for name, wanted in extras.items():
            _write(
                name, f"What the extra {name} needs, with what it needs of the gateway's.", _resolve(wanted, versions)
            )
    _write(BUILD, "What builds the wheel.", _resolve(builds))


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def _resolve(requirements: Sequence[str], versions: Path | None = None) -> str:
    """Return pinned requirements with hashes, of these and of all that they need."""
    uv = Path(sysconfig.get_path("scripts"), "uv")
    command = [str(uv), "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--no-header", "--no-annotate"]
    # no file of this machine's settings, and no other index
    command += ["--no-config", "--default-index", "https://pypi.org/simple", "--python-version", "3.11", "-"]
    if versions is not None:
        command += ["--constraints", str(versions)]
    done = subprocess.run(command, input="\n".join(requirements), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def _write(name: str, what: str, text: str) -> None:
    path = DIRECTORY / f"{name}.txt"
    path.write_text(_HEAD.format(what=what) + text, "utf-8")
    print(path.relative_to(REPOSITORY), file=sys.stderr)


if __name__ == "__main__":
    main()
