"""``make chart``: the Helm chart as an archive, with the version of the commit's tag."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools_scm import get_version

from tools.chart.helm import TARGET

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "config" / "helm" / "vllm-passthrough"
#: what Python's versions write in a word, and SemVer behind a hyphen: 1.2.3rc1 and 1.2.3.dev4
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?:\.?(a|b|rc|dev)(\d+))?")


def semver(version: str) -> str:
    """Return a version of Python's (PEP 440) in the form that Helm takes (SemVer 2).

    Raises:
        ValueError: it has none, as a local version.
    """
    found = _VERSION.fullmatch(version)
    if found is None:
        raise ValueError(f"{version} is neither a release nor one of its pre-releases")
    major, minor, patch, kind, number = found.groups()
    return f"{major}.{minor}.{patch or 0}" + (f"-{kind}.{number}" if kind else "")


def main() -> int:
    """Pack the chart; return the exit status."""
    parser = argparse.ArgumentParser(prog="make chart", description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist", help="the directory [default: dist]")
    parser.add_argument("--version", help="the version of the gateway and its image [default: that of the tag]")
    options = parser.parse_args()
    helm = shutil.which("helm") or (str(TARGET) if TARGET.exists() else None)
    if helm is None:
        print("make chart: helm is missing: install it, or run make helm", file=sys.stderr)
        return 1
    # the tag of the image, as make image writes it
    version = options.version or get_version(str(REPOSITORY), local_scheme="no-local-version")
    try:
        chart_version = semver(version)
    except ValueError as error:
        print(f"make chart: {error}", file=sys.stderr)
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    package = [helm, "package", str(CHART), "--destination", str(options.output)]
    done = subprocess.run(
        [*package, "--version", chart_version, "--app-version", version], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stderr, end="", file=sys.stderr)
        return 1
    print(options.output / f"{CHART.name}-{chart_version}.tgz")
    return 0


if __name__ == "__main__":
    sys.exit(main())
