"""The process that ``vllm-passthrough run`` becomes: twistd, which says in one line why it does not start."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from twisted.python import usage
from twisted.scripts._twistd_unix import ServerOptions
from twisted.scripts.twistd import runApp


def main(arguments: Sequence[str]) -> int:
    """Run twistd with these arguments until the gateway ends; return the exit status of what never started."""
    config = ServerOptions()
    try:
        config.parseOptions(list(arguments))
    except usage.UsageError as error:
        print(f"vllm-passthrough run: {error}", file=sys.stderr)
        return 2
    try:
        runApp(config)
    except OSError as error:
        # what twistd does itself before the gateway has a say: the run directory, the files of its own
        print(f"vllm-passthrough run: {error.strerror}: {error.filename}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
