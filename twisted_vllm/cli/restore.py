"""``vllm-passthrough restore``: puts a backup back."""

from __future__ import annotations

from pathlib import Path

import click

from twisted_vllm.cli.gateway_options import GatewayCommand, gateway_option


@click.command("restore", cls=GatewayCommand)
@click.argument("backup", type=click.Path(path_type=Path))
@gateway_option("config")
@click.option(
    "--force",
    is_flag=True,
    help="Move what is there aside; deletes nothing. Also restore where the salt key is another than the backup's.",
)
@click.option("--keep-spool", is_flag=True, help="Leave the files of the spool that are there, and add those missing.")
def command(backup: Path, config: str | None, force: bool, keep_spool: bool) -> None:
    """Put a backup in the place that the configuration names, while no gateway runs there.

    All of it is unpacked beside that place and checked first; then it is there as a whole. An older schema is migrated
    at the next start.

    \b
    vllm-passthrough restore /backup/gateway-20260301T0300Z.tar.zst --config gateway.yaml
    """
    # imported here: the help needs none of it
    from twisted_vllm.cli import backup_files

    backup_files.restore(backup, config, force=force, keep_spool=keep_spool)
