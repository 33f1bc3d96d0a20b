"""The JavaScript libraries that the console ships: which, from where, and whether they are what npm has.

``make vendored`` fetches the packages again, checks npm's integrity hash, and compares each file; with ``--write`` it
replaces them. ``vendored.toml`` beside the files says what there is.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import sys
import tarfile
import tomllib
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).parents[2] / "twisted_vllm" / "admin" / "web" / "assets" / "vendor"
#: seconds that npm has for a package
PATIENCE = 60


def packages() -> Mapping[str, Any]:
    """Return the packages by name, as ``vendored.toml`` has them."""
    return tomllib.loads((VENDOR / "vendored.toml").read_text())


def fetch(package: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of a package by the names that they have here.

    Raises:
        ValueError: the package is not the one that npm had.
    """
    with urllib.request.urlopen(package["tarball"], timeout=PATIENCE) as answer:
        archive = answer.read()
    algorithm, _, expected = package["integrity"].partition("-")
    found = base64.b64encode(hashlib.new(algorithm, archive).digest()).decode()
    if found != expected:
        raise ValueError(f"{package['tarball']} has another hash than vendored.toml says")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        result = {}
        for name, origin in package["files"].items():
            member = files.extractfile(f"package/{origin['path']}")
            assert member is not None, origin
            result[name] = member.read()
        return result


def main() -> int:
    """Fetch all packages; return how many files differ."""
    parser = argparse.ArgumentParser(prog="make vendored", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="replace the files that differ")
    options = parser.parse_args()
    differing = 0
    for title, package in packages().items():
        for name, data in fetch(package).items():
            target = VENDOR / name
            same = target.is_file() and target.read_bytes() == data
            differing += not same
            print(f"{title} {package['version']}: {name} {'is the same' if same else 'differs'}")
            if options.write and not same:
                target.write_bytes(data)
    return 0 if options.write else differing


if __name__ == "__main__":
    sys.exit(main())
