"""``python -m benchmarks.dashboards``: writes the dashboards, or checks them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.dashboards.fleet import FLEET
from benchmarks.dashboards.grafana import text
from benchmarks.dashboards.operations import OPERATIONS
from benchmarks.dashboards.panels import Dashboard
from benchmarks.dashboards.tenants import TENANTS

FOLDER = Path(__file__).parents[2] / "config" / "grafana"

#: the names of the files, without their ending
DASHBOARDS: Mapping[str, Dashboard] = {"operations": OPERATIONS, "tenants": TENANTS, "fleet": FLEET}


def main(arguments: Sequence[str]) -> int:
    """Write the files, or check them.

    Args:
        arguments: those of the command line.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dashboards", description="Writes Grafana's dashboards from their declarations."
    )
    add = parser.add_argument
    add("--folder", type=Path, default=FOLDER, metavar="FOLDER", help="where to write them [config/grafana]")
    add("--docs", default="", metavar="URL", help="where the documentation can be read, for links to it")
    add("--check", action="store_true", help="write nothing, and end with 1 where a file is out of date")
    chosen = parser.parse_args(arguments)
    if not chosen.folder.is_dir():
        parser.error(f"there is no folder {chosen.folder}: make it first")
    stale = 0
    for name, dashboard in DASHBOARDS.items():
        file, wanted = chosen.folder / f"{name}.json", text(dashboard, chosen.docs)
        if file.exists() and file.read_text("utf-8") == wanted:
            continue
        stale += 1
        if chosen.check:
            print(f"{file.name} is out of date: run make dashboards", file=sys.stderr)
        else:
            file.write_text(wanted, "utf-8")
            print(f"wrote {file}")
    return 1 if chosen.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
