"""The process that ``vllm-passthrough run`` becomes: twistd, which says in one line why it does not start."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

from twisted.python import usage
from twisted.scripts._twistd_unix import ServerOptions
from twisted.scripts.twistd import runApp

from twisted.plugins.vllm_passthrough import vllm_passthrough


class _Options(ServerOptions):
    """twistd's options where the gateway is the only program.

    twistd looks for all programs that are installed, imports them, and writes what it found beside its own files, which
    the root file system of a container may not allow.
    """

    @property
    def subCommands(self) -> Iterator[tuple[str, None, Callable[[], usage.Options], str]]:
        """The gateway's name, options and description."""
        plugin = vllm_passthrough
        self.loadedPlugins = {plugin.tapname: plugin}
        yield plugin.tapname, None, lambda: plugin.options(), plugin.description


def main(arguments: Sequence[str]) -> int:
    """Run twistd with these arguments until the gateway ends; return the exit status of what never started."""
    config = _Options()
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
