"""``vllm-passthrough import-litellm``: keys, teams and spend of LiteLLM's database."""

from __future__ import annotations

import click

from twisted_vllm.cli.gateway_options import GatewayCommand, as_arguments, gateway_option, obey


@click.command("import-litellm", cls=GatewayCommand)
@click.argument("url")
@gateway_option("config")
@click.option("--check", is_flag=True, help="Say what would be copied and what not, and write nothing.")
def command(url: str, config: str | None, check: bool) -> None:
    """Copy keys, teams and spend from LiteLLM's database, and end.

    URL is PostgreSQL's, or os.environ/NAME for a variable that holds it, which others on the machine cannot see.
    """
    obey(as_arguments(import_litellm=url, check=check, config=config))
