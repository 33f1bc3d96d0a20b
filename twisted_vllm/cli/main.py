"""``vllm-passthrough``: finds the module of a command, and runs it."""

from __future__ import annotations

from importlib import import_module

import click

from twisted_vllm.config.problems import nearest

#: each command's module, which has it as ``command``; a module is imported only when its command is used
_COMMANDS: dict[str, str] = {}


class Commands(click.Group):
    """The commands, each in a module of its own."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names, in the order of the help."""
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import a command; None if there is none of this name."""
        module = _COMMANDS.get(name)
        if module is None:
            return None
        command: click.Command = import_module(module).command
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


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def main() -> None:
    """A gateway for shared vLLM servers: keys, limits, usage and routing in front of vLLM."""
