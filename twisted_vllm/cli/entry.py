"""Where the command ``vllm-passthrough`` begins. An old Python can read this file, and says that it is too old."""

import os
import sys

#: the environment before anything was imported: Twisted takes the names of systemd's sockets out of it
BEGUN_WITH = dict(os.environ)

#: the first version that will do, and the first that nobody has tried
OLDEST, TOO_NEW = (3, 11), (3, 15)


def refusal(version):
    # type: (tuple[int, ...]) -> str
    """Return why a version of Python is not fit; empty if it is."""
    if OLDEST <= version[:2] < TOO_NEW:
        return ""
    return "vllm-passthrough needs Python 3.11 to 3.14, and this is Python {}.{} ({})".format(
        version[0], version[1], sys.executable
    )


def main():
    # type: () -> None
    """Run the command that the arguments name."""
    why = refusal(sys.version_info[:3])
    if why:
        sys.exit(why)
    try:
        from twisted_vllm.cli.main import main as run
    except ImportError as error:
        # a copy of the files alone, or a broken installation
        if getattr(error, "name", None) is None or str(error.name).startswith("twisted_vllm"):
            raise
        sys.exit(
            "vllm-passthrough: the package {} is missing here: install the gateway with pip install twisted-vllm "
            "({})".format(error.name, sys.executable)
        )
    run(prog_name="vllm-passthrough")
