"""The licences of what the gateway needs: docs/licences.md, and a check that each goes with MIT.

``make licences`` writes the page. A licence that is not in the list below fails the tests until somebody has read it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path

from tools.release.dependencies import Dependency, dependencies

PAGE = Path(__file__).parents[2] / "docs" / "licences.md"

#: SPDX identifiers of licences under which a program may be imported by one under MIT
ALLOWED = frozenset(
    (
        *("MIT", "MIT-0", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "ISC", "Apache-2.0", "PSF-2.0", "ZPL-2.1", "Zlib"),
        # weak copyleft: they bind who changes these packages, not who imports them
        *("LGPL-3.0-only", "MPL-2.0"),
    )
)

#: what distributions without an SPDX expression say of themselves, and the identifier it stands for
_SPELLED = {
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "gnu lesser general public license v3 (lgplv3)": "LGPL-3.0-only",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
    "zope public license": "ZPL-2.1",
}
_EXPRESSION = re.compile(r"\(|\)|\bAND\b|\bOR\b|\bWITH [\w.-]+")


def licence_of(found: Distribution) -> str:
    """Return the licence of a distribution: an SPDX expression, or its own words where those are not known here."""
    metadata = found.metadata
    if "License-Expression" in metadata:
        return str(metadata["License-Expression"])
    classified = [
        each.rpartition(" :: ")[2] for each in metadata.get_all("Classifier") or () if each.startswith("License :: ")
    ]
    own = str(metadata["License"]) if "License" in metadata else "unknown"
    said = [each for each in classified if each != "OSI Approved"] or [own]
    return " AND ".join(dict.fromkeys(_SPELLED.get(each.lower(), each) for each in said))


def is_allowed(licence: str) -> bool:
    """Return whether every part of an SPDX expression is allowed; of alternatives, every one."""
    parts = [part.strip() for part in _EXPRESSION.split(licence)]
    return all(part in ALLOWED for part in parts if part)


def page(needed: list[Dependency]) -> str:
    """Return docs/licences.md."""
    return "\n".join((*_head(), *_rows(needed), ""))


def _head() -> Iterator[str]:
    yield "# Licences"
    yield ""
    yield "The gateway is under the MIT licence."
    yield "This page lists what it needs when it runs, with what that needs. `make licences` writes it."
    yield "The versions in use stand in the bill of materials (CycloneDX) of [each release](releasing.md)."
    yield ""
    yield "No licence here binds your own code or configuration."
    yield "LGPL and MPL bind who passes on changed copies of those packages, and the gateway changes none."
    yield ""
    yield "The console ships htmx (0BSD) and uPlot (MIT) as files;"
    yield "`twisted_vllm/admin/web/assets/vendor` has their licences."
    yield ""
    yield "| package | licence | needed for |"
    yield "| --- | --- | --- |"


def _rows(needed: list[Dependency]) -> Iterator[str]:
    for each in needed:
        used = "the gateway" if not each.extras else ", ".join(f"extra `{extra}`" for extra in each.extras)
        yield f"| {each.name} | {licence_of(each.found)} | {used} |"


def main() -> int:
    """Write the page; return 1 if a licence is not allowed."""
    needed = list(dependencies())
    PAGE.write_text(page(needed), "utf-8")
    unknown = [f"{each.name}: {licence_of(each.found)}" for each in needed if not is_allowed(licence_of(each.found))]
    for line in unknown:
        print(f"make licences: read this licence, and add it to tools/release/licences.py if it may be used: {line}")
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
