"""Writes the reference pages; with ``--check``, says which are out of date, and exits with 1 if there is one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from docs.site.markdown import REPOSITORY
from docs.site.reference import admin_api, errors, log_fields, process, routes

#: the files, and the functions that make them
FILES: Mapping[str, Callable[[], str]] = {
    "docs/admin-api.md": admin_api.page,
    "docs/errors.md": errors.page,
    "docs/log-fields.md": log_fields.page,
    "docs/process.md": process.page,
    "docs/routes.md": routes.page,
}


def main(arguments: Sequence[str]) -> int:
    """Write the files, or check them; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m docs.site.reference", description=__doc__.partition(";")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and end with 1 where a file is out of date"
    )
    check = parser.parse_args(arguments).check
    stale = 0
    for name, make in FILES.items():
        file, text = REPOSITORY / name, make()
        if file.is_file() and file.read_text("utf-8") == text:
            continue
        stale += 1
        if check:
            print(f"{name} is out of date: run make reference", file=sys.stderr)
        else:
            file.write_text(text, "utf-8")
            print(f"wrote {name}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
