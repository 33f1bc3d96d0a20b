"""Groups of commands, such as ``keys``."""

from __future__ import annotations

import click

from twisted_vllm.config.problems import nearest


class Section(click.Group):
    """A group that names the nearest of its commands for a misspelt one."""

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is written.

        Raises:
            UsageError: there is no such command.
        """
        name = arguments[0]
        if name not in self.commands and not name.startswith("-"):
            close = nearest(name, self.commands)
            hint = f"did you mean {close}?" if close else f"there are {', '.join(self.commands)}"
            context.fail(f"{name!r} is not a command of {context.command_path}; {hint}")
        return super().resolve_command(context, arguments)
