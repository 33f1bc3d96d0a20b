"""Builds the image of this commit: ``make image``.

The engine is docker, podman or buildah, whichever is found first. Version, revision and dates are the commit's, so that
another build of it gives the same files.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from setuptools_scm import get_version

from tools.release.distributions import REPOSITORY, time_of

TAG = "vllm-passthrough"
ENGINES = ("docker", "podman", "buildah")


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, and return the engine's exit status."""
    parser = argparse.ArgumentParser(prog="make image", description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", help="docker, podman or buildah, with options of its own [default: what is found]")
    parser.add_argument("--tag", default=TAG, help=f"the name of the image [default: {TAG}]")
    parser.add_argument("more", nargs="*", metavar="OPTION", help="after --: options of the engine's build")
    options = parser.parse_args(arguments)
    engine = shlex.split(options.engine) if options.engine else found_engine()
    if not engine:
        print(f"make image: none of {', '.join(ENGINES)} is installed: name one with --engine", file=sys.stderr)
        return 2
    command = [*engine, "build", "--tag", options.tag, *build_arguments(), *options.more, str(REPOSITORY)]
    return subprocess.run(command, check=False).returncode


def found_engine() -> list[str]:
    """Return the first engine that is installed; empty if none is."""
    return next(([name] for name in ENGINES if shutil.which(name)), [])


def build_arguments() -> list[str]:
    """Return what tells the Dockerfile of the commit."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or time_of("HEAD"))
    revision = subprocess.run(
        ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    told = {
        "VERSION": get_version(str(REPOSITORY), local_scheme="no-local-version"),
        "REVISION": revision,
        "CREATED": datetime.fromtimestamp(epoch, UTC).isoformat(),
        "SOURCE_DATE_EPOCH": str(epoch),
    }
    return [part for name, value in told.items() for part in ("--build-arg", f"{name}={value}")]


if __name__ == "__main__":
    sys.exit(main())
