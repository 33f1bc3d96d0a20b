"""``vllm-passthrough health``: whether a gateway takes requests, for the health checks of containers and units.

It runs every few seconds: nothing is imported that it can do without.
"""

from __future__ import annotations

import os

import click

from twisted_vllm.cli.client.gateway import DEFAULT_URL, Gateway

#: where a gateway listens whose file and command line say nothing
_LISTEN = "VLLM_PASSTHROUGH_LISTEN"
#: addresses that stand for all of the machine, and one that reaches it
_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}


def address_of(endpoint: str) -> str:
    """Return the URL at which a process beside the gateway reaches an endpoint of Twisted's.

    Raises:
        UsageError: it has none, as an endpoint of systemd's.
    """
    # a colon within a part has a backslash
    parts = [part.replace("\0", ":") for part in endpoint.replace("\\:", "\0").split(":")]
    kind, plain = parts[0], [part for part in parts[1:] if "=" not in part]
    named = dict(part.split("=", 1) for part in parts[1:] if "=" in part)
    if kind == "unix":
        return f"unix:{named.get('address') or ''.join(plain[:1])}"
    port = named.get("port") or "".join(plain[:1])
    if kind not in ("tcp", "tcp6", "ssl") or not port.isdecimal():
        raise click.UsageError(f"{_LISTEN} has no address that a client can take: name one with --url")
    host = named.get("interface", "::" if kind == "tcp6" else "")
    host = _EVERYWHERE.get(host, host)
    return f"{'https' if kind == 'ssl' else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


@click.command("health")
@click.option(
    "--url",
    envvar="VLLM_PASSTHROUGH_URL",
    help=f"The gateway.  [default: where {_LISTEN} says, or {DEFAULT_URL}]",
)
@click.option("--ca-file", metavar="FILE", help="Certificates to trust, in place of the system's.")
@click.option("--timeout", type=click.FloatRange(0.1, 3600), default=3.0, help="Seconds to wait.  [default: 3]")
def command(url: str | None, ca_file: str | None, timeout: float) -> None:
    """Ask a gateway whether it takes requests. It needs no key.

    Exit status: 0 if it does, 1 if it answers that it does not, 3 if nothing answers.
    """
    endpoint = os.environ.get(_LISTEN)
    found = url or (address_of(endpoint) if endpoint else DEFAULT_URL)
    # to itself it has no name that its certificate could prove
    gateway = Gateway(found.rstrip("/"), "", ca_file, timeout, verified=bool(url or ca_file))
    state = gateway.get("/health/readiness")
    click.echo(state["status"])
