"""``vllm-passthrough version``: what runs here."""

from __future__ import annotations

import json
import platform
import sqlite3
import ssl
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import click

#: packages whose versions explain most faults
_PACKAGES = ("Twisted", "treq", "klein", "httptools", "msgspec", "SQLAlchemy", "psycopg", "cryptography")


def versions() -> Mapping[str, str]:
    """Return the version of the gateway, of Python, and of what both stand on."""
    found = {"vllm-passthrough": _version("twisted-vllm"), "Python": platform.python_version()}
    found |= {name: _version(name) for name in _PACKAGES}
    return found | {"SQLite": sqlite3.sqlite_version, "OpenSSL": ssl.OPENSSL_VERSION.split()[1], "system": _system()}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _system() -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}"


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="Print an object of JSON.")
def command(as_json: bool) -> None:
    """Print the versions of the gateway and of what it runs on. Add them to a report of a fault."""
    # imported here: it loads the migrations
    from twisted_vllm.storage.schema import HEAD

    found = {**versions(), "schema": HEAD}
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    width = max(map(len, found)) + 2
    for name, value in found.items():
        click.echo(f"{name:{width}}{value}")
