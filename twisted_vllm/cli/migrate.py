"""``vllm-passthrough migrate``: the database's schema."""

from __future__ import annotations

import click

from twisted_vllm.cli.gateway_options import GatewayCommand, as_arguments, gateway_option, obey


@click.command("migrate", cls=GatewayCommand)
@click.argument("kind", type=click.Choice(["expand", "contract"]), default="expand")
@gateway_option("config")
def command(kind: str, config: str | None) -> None:
    """Bring the database to this version's schema, and end.

    \b
    expand    adds what this version needs, as a start does; gateways of the version before go on (the default)
    contract  also takes away what only the version before needed, once none of them runs
    """
    obey(as_arguments(migrate=kind, config=config))
