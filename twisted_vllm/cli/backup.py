"""``vllm-passthrough backup``: one file with all that a gateway keeps."""

from __future__ import annotations

import os
from pathlib import Path

import click

from twisted_vllm.cli.gateway_options import GatewayCommand, gateway_option

#: how much less of the processor it takes than the gateway
_NICENESS = 10


@click.command("backup", cls=GatewayCommand)
@gateway_option("config")
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="Write this file: .tar.zst or .tar.gz.")
@click.option("--check", metavar="FILE", type=click.Path(path_type=Path), help="Read a backup, and say if it is whole.")
def command(config: str | None, output: Path | None, check: Path | None) -> None:
    """Copy the database and the ledger's spool into one file, while the gateway runs or not.

    The configuration and the environment, with the master key and the salt key, are not in it. It is written beside
    FILE, read back, and only then renamed.

    \b
    vllm-passthrough backup --config gateway.yaml --output /backup/gateway-$(date -u +%Y%m%dT%H%MZ).tar.zst
    vllm-passthrough backup --check /backup/gateway-20260301T0300Z.tar.zst
    """
    if (output is None) == (check is None):
        raise click.UsageError("name a file with --output, or one that is there with --check")
    # imported here: the help needs none of it
    from twisted_vllm.cli import backup_files

    os.nice(_NICENESS)
    if check is not None:
        backup_files.check(check)
    elif output is not None:
        backup_files.back_up(config, output)
