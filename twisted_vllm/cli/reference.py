"""Writes docs/cli.md from the declarations of the commands: ``make reference``."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from twisted_vllm.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

_HEAD = """# Commands

`make reference` writes this page from the commands' declarations; `vllm-passthrough COMMAND --help` shows the same.

`vllm-passthrough run` and `twistd -n vllm-passthrough` are one program: what one does, the other does.
`twisted-vllm` is a second name of the command, so that `uvx twisted-vllm` and `pipx run twisted-vllm` find it.
So is `python -m twisted_vllm`.

Completion for bash, zsh and fish comes from the command itself:

```sh
eval "$(_VLLM_PASSTHROUGH_COMPLETE=bash_source vllm-passthrough)"
```

| exit status | means |
| --- | --- |
| 0 | done; for `run`, drained after a SIGTERM or SIGINT |
| 1 | refused: the configuration, the database, an address, or what was asked of the gateway; standard error says why |
| 2 | the command line is wrong: an option or command that does not exist, or a value that cannot be |
| 3 | for `keys`, `usage` and `health`: there is no gateway at that address, or no way to it |
"""


def page() -> str:
    """Return docs/cli.md."""
    return "\n".join((_HEAD, *_of(main, click.Context(main, info_name="vllm-passthrough"), 2)))


def _of(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    yield f"{'#' * level} {context.command_path}"
    yield ""
    yield from _prose(command.help or "")
    yield "```text"
    yield from (
        line.rstrip() for line in " ".join((context.command_path, *command.collect_usage_pieces(context))).splitlines()
    )
    yield "```"
    yield ""
    parameters = [each.get_help_record(context) for each in command.get_params(context)]
    rows = [record for record in parameters if record is not None and record[1] and "--help" not in record[0]]
    if rows:
        yield "| option | meaning |"
        yield "| --- | --- |"
        yield from (f"| `{_cell(name)}` | {_cell(text)} |" for name, text in rows)
        yield ""
    yield from _prose(command.epilog or "")
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is None:
                raise ValueError(f"{context.command_path} {name} is listed and does not exist")
            yield from _of(child, click.Context(child, info_name=name, parent=context), min(level + 1, 4))


def _prose(text: str) -> Iterator[str]:
    r"""Return paragraphs; what stands behind click's ``\b`` keeps its lines."""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if not paragraph:
            continue
        if paragraph.lstrip().startswith("\b"):
            lines = textwrap.dedent(paragraph.partition("\b")[2].strip("\n")).splitlines()
            yield from ("```text", *(line.rstrip() for line in lines), "```")
        else:
            yield " ".join(paragraph.split())
        yield ""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
