"""``vllm-passthrough check``: what a configuration would do."""

from __future__ import annotations

import click

from twisted_vllm.cli.gateway_options import GatewayCommand, as_arguments, gateway_option, obey, told

_PROBE = told("probe").removeprefix("With --check: c")


@click.command("check", cls=GatewayCommand)
@gateway_option("config")
@gateway_option("listen")
@gateway_option("workers")
@click.option("--probe", is_flag=True, help=f"C{_PROBE}")
def command(config: str | None, listen: tuple[str, ...], workers: str | None, probe: bool) -> None:
    """Check a configuration, print what it would do, and start nothing.

    Exit status: 0 if it can be used (and, with --probe, all that it names answered), 1 if not.
    """
    obey(as_arguments(check=True, probe=probe, config=config, listen=listen, workers=workers))
