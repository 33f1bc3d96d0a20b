"""``vllm-passthrough``: finds the module of a command, and runs it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from twisted_vllm.config.problems import nearest

#: each command's module, which has it as ``command``, and its line in the help; a module is imported when it is used
_COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("twisted_vllm.cli.run", "Start the gateway."),
    "check": ("twisted_vllm.cli.check", "Check a configuration; with --probe, connect to what it names."),
    "keys": ("twisted_vllm.cli.keys", "List, make, change and delete virtual keys."),
    "usage": ("twisted_vllm.cli.usage", "Report usage and cost."),
    "health": ("twisted_vllm.cli.health", "Ask a gateway whether it takes requests."),
    "config": ("twisted_vllm.cli.config", "Print the files that come with the gateway: an example, alerts, units."),
    "migrate": ("twisted_vllm.cli.migrate", "Bring the database to this version's schema."),
    "backup": ("twisted_vllm.cli.backup", "Copy the database and the spool into one file, while the gateway runs."),
    "restore": ("twisted_vllm.cli.restore", "Put a backup back."),
    "import-litellm": ("twisted_vllm.cli.import_litellm", "Copy keys, teams and spend from LiteLLM's database."),
    "version": ("twisted_vllm.cli.version", "Print the versions of the gateway and of what it runs on."),
}

#: what a write of the output fails with; a reader that went away is click's own matter
_NOT_WRITTEN = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO))


class Commands(click.Group):
    """The commands, each in a module of its own."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names, in the order of the help."""
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import a command; None if there is none of this name."""
        if name not in _COMMANDS:
            return None
        command: click.Command = import_module(_COMMANDS[name][0]).command
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is written.

        Raises:
            UsageError: there is no such command; the message has the nearest name.
        """
        name = arguments[0]
        if name not in _COMMANDS and not name.startswith("-"):
            close = nearest(name, _COMMANDS)
            context.fail(f"{name!r} is not a command" + (f"; did you mean {close}?" if close else ""))
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands into the help, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, told) for name, (_, told) in _COMMANDS.items()])

    def main(self, args: Sequence[str] | None = None, *_: Any, **options: Any) -> Any:
        """Run; output that nobody takes, as a full disk, ends the command with one line."""
        try:
            return super().main(args, **options)
        except OSError as error:
            if error.errno not in _NOT_WRITTEN or error.filename is not None:
                raise
            # Python flushes standard output once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(f"vllm-passthrough: the output cannot be written: {error.strerror}")


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        # imported here: it asks for metadata that no other command needs
        from twisted_vllm.cli.version import versions

        click.echo(f"vllm-passthrough {versions()['vllm-passthrough']}")
        context.exit()


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="vllm-passthrough COMMAND --help explains a command. Documentation: docs/README.md of the project.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def main() -> None:
    """A gateway for shared vLLM servers: keys, limits, usage and routing in front of vLLM.

    \b
    Try it, with a simulated vLLM behind it:
      vllm-passthrough run --quickstart
    """
