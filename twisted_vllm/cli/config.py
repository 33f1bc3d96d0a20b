"""``vllm-passthrough config``: the files of the folder ``config``, which come with every installation."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import click

from twisted_vllm.config.problems import nearest

#: the folder, in an installation and in a checkout
_PLACES = (Path(__file__).parents[1] / "files", Path(__file__).parents[2] / "config")


def files() -> Mapping[str, Path]:
    """Return the files by the names that people write: ``example``, ``prometheus/alerts``.

    A name is the path without the ending, or with it where two files differ in that alone.

    Raises:
        ClickException: the installation lacks them.
    """
    folder = next((place for place in _PLACES if place.is_dir()), None)
    if folder is None:
        raise click.ClickException("the files of the folder config are missing in this installation: install it again")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _is_left_out(path, folder)]
    names = [str(path.relative_to(folder).with_suffix("")) for path in paths]
    whole = [str(path.relative_to(folder)) for path in paths]
    return {full if names.count(name) > 1 else name: path for name, full, path in zip(names, whole, paths, strict=True)}


def _is_left_out(path: Path, folder: Path) -> bool:
    """Return whether a file is in a checkout alone: what compose/prepare made, and the chart, which is an archive."""
    return path.name == ".env" or path.parent.name == "secrets" or path.relative_to(folder).parts[0] == "helm"


def _complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    return [name for name in files() if name.startswith(begun)]


@click.command("config")
@click.argument("name", required=False, shell_complete=_complete)
@click.option("--output", "-o", metavar="PATH", type=click.Path(path_type=Path), help="Write it to this file.")
@click.option("--all", "whole", metavar="DIRECTORY", type=click.Path(path_type=Path), help="Write all files there.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
def command(name: str | None, output: Path | None, whole: Path | None, force: bool) -> None:
    """Print a file that comes with the gateway; without a NAME, list them.

    \b
    vllm-passthrough config example > config.yaml
    vllm-passthrough config prometheus/alerts -o /etc/prometheus/alerts.yml
    """
    found = files()
    if whole is not None:
        if name is not None or output is not None:
            raise click.UsageError("--all goes without a name and without --output")
        folder = next(place for place in _PLACES if place.is_dir())
        for path in found.values():
            _write(path, whole / path.relative_to(folder), force)
        return
    if name is None:
        if output is not None:
            raise click.UsageError(f"--output needs a name, one of {', '.join(found)}")
        click.echo("\n".join(found))
        return
    wanted = found.get(name) or next((path for path in found.values() if str(path).endswith(f"/{name}")), None)
    if wanted is None:
        close = nearest(name, found)
        hint = f"did you mean {close}?" if close else f"there are {', '.join(found)}"
        raise click.UsageError(f"{name!r} is none of the files; {hint}")
    if output is None:
        sys.stdout.buffer.write(wanted.read_bytes())
        sys.stdout.flush()
    else:
        _write(wanted, output / wanted.name if output.is_dir() else output, force)


def _write(source: Path, target: Path, force: bool) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb" if force else "xb") as file:
            file.write(source.read_bytes())
    except FileExistsError:
        raise click.ClickException(f"{target} exists: name another, or replace it with --force") from None
    except OSError as error:
        raise click.ClickException(f"{target} cannot be written: {error.strerror}") from None
    click.echo(str(target), err=True)
