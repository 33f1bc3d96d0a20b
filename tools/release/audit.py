"""``make audit``: known vulnerabilities of what the gateway needs, from PyPI's advisories (pip-audit).

Without a way to the advisories nothing is known, and that is said. It is a failure only with ``--strict``: a build
without the internet does not fail for it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.release.dependencies import dependencies

#: seconds for each question
_PATIENCE = 15


def audit(arguments: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Ask for the vulnerabilities of what is installed and needed.

    Args:
        arguments: further arguments of pip-audit's, such as another service.

    Returns:
        What was found, one line for each vulnerability, and the packages of which nothing could be learnt, with why.
    """
    needed = [f"{each.name}=={each.found.version}" for each in dependencies()]
    with tempfile.TemporaryDirectory() as scratch:
        pinned = Path(scratch, "requirements.txt")
        pinned.write_text("\n".join(needed) + "\n", "utf-8")
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(pinned), "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off", "--timeout", str(_PATIENCE), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        told: Sequence[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return [], [f"pip-audit: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}"]
    found = [
        f"{each['name']} {each['version']}: {hole['id']}, mended in {' '.join(hole['fix_versions']) or 'no version'}"
        for each in told
        for hole in each.get("vulns", ())
    ]
    return found, [f"{each['name']}: {each['skip_reason']}" for each in told if "skip_reason" in each]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found; return 1 for a vulnerability, and with ``--strict`` for a package that is not known."""
    parser = argparse.ArgumentParser(prog="make audit", description=__doc__.partition("\n")[0])
    parser.add_argument("--strict", action="store_true", help="fail where nothing could be learnt, too")
    options, further = parser.parse_known_args(arguments)
    found, unknown = audit(further)
    for line in found:
        print(f"audit: {line}")
    if unknown:
        print(f"audit: not audited: {len(unknown)} packages, the first is {unknown[0]}", file=sys.stderr)
    if not found and not unknown:
        print("audit: no known vulnerability")
    return 1 if found or (unknown and options.strict) else 0


if __name__ == "__main__":
    sys.exit(main())
