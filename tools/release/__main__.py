"""``make release``: all files of a release, checked, in ``dist``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.release.audit import main as audit
from tools.release.bill import bill_of, install
from tools.release.checks import check, is_release
from tools.release.distributions import REPOSITORY, build, digest, time_of
from tools.release.licences import main as licences


def main() -> int:
    """Build twice, compare, check, and write the bill of materials and the digests; return the exit status."""
    parser = argparse.ArgumentParser(prog="make release", description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist", help="the directory [default: dist]")
    parser.add_argument("--revision", default="HEAD", help="the tag of the release [default: HEAD]")
    options = parser.parse_args()
    try:
        built = build(options.output, options.revision)
        if not is_release(built[1]):
            print("make release: the commit has no tag: this is a development version", file=sys.stderr)
        with tempfile.TemporaryDirectory() as scratch:
            again = build(Path(scratch, "again"), options.revision)
            if [digest(file) for file in built] != [digest(file) for file in again]:
                print("make release: a second build gave other files", file=sys.stderr)
                return 1
            if problems := check(*built):
                print("\n".join(problems), file=sys.stderr)
                return 1
            python = install(built[1], Path(scratch, "environment"))
            bill = bill_of(python, time_of(options.revision))
    except subprocess.CalledProcessError as error:
        print(f"make release: {error.cmd[0]} failed with status {error.returncode}", file=sys.stderr)
        return 1
    name = built[0].name.removesuffix(".tar.gz")
    sbom = options.output / f"{name}.cdx.json"
    sbom.write_text(json.dumps(bill, indent=1) + "\n", "utf-8")
    files = (*built, sbom)
    sums = options.output / "SHA256SUMS"
    sums.write_text("".join(f"{digest(file)}  {file.name}\n" for file in files), "utf-8")
    print(sums.read_text("utf-8"), end="")
    return licences() or audit([])


if __name__ == "__main__":
    sys.exit(main())
