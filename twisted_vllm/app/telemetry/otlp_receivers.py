"""Settings of OTLP exporters, resolved: the gateway's resource attributes, and absolute file names."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from twisted_vllm.config.problems import ConfigError, Problem
from twisted_vllm.config.server_tls import ServerTls
from twisted_vllm.config.tracing import TracingSettings
from twisted_vllm.config.tracing_destinations import TraceDestination
from twisted_vllm.http.client.connect_errors import TlsFileError
from twisted_vllm.http.client.tls import read_files

#: the names of settings by those that messages about TLS to servers have
_NAMES = {"ssl_ca": "ca_file", "ssl_certificate": "certificate_file", "ssl_key": "key_file"}


@attrs.frozen
class Receiver:
    """A destination with what its exporter needs; another one needs another exporter.

    Attributes:
        destination: the destination, with absolute names of files.
        attributes: attributes of the gateway.
        digest: a digest of the contents of its files.
    """

    destination: TraceDestination
    attributes: Mapping[str, str]
    digest: bytes = b""

    @property
    def resource(self) -> Mapping[str, str]:
        """The attributes of the gateway and of its process; ask in the process that exports, which may be a fork."""
        return {"process.pid": str(os.getpid()), **self.attributes}


def trace_receivers(tracing: TracingSettings, directory: str) -> dict[str, Receiver]:
    """Return the destinations of traces by name, none if there are no traces; it reads their files.

    Raises:
        ConfigError: a file of TLS cannot be used.
    """
    if not tracing.active:
        return {}
    placed = [(f"passthrough.tracing.destinations.{each.name}", each) for each in tracing.destinations]
    found = receivers_of(placed, tracing.service_name or "", tracing.resource_attributes, directory)
    return {each.destination.name: each for each in found}


def receivers_of(
    destinations: Iterable[tuple[str, TraceDestination]],
    service_name: str,
    attributes: Mapping[str, str],
    directory: str,
) -> list[Receiver]:
    """Return destinations with what their exporters need; it reads their files.

    Args:
        destinations: each with its path in the settings, for messages.
        service_name: the gateway's name.
        attributes: more attributes of the gateway, which win.
        directory: where relative names of files begin.

    Raises:
        ConfigError: a file of TLS cannot be used.
    """
    problems: list[Problem] = []
    found: list[Receiver] = []
    resource = {
        "service.name": service_name,
        "host.name": platform.node(),
        **attributes,
    }
    for path, each in destinations:
        destination = _with_whole_names(each, directory)
        digest = b""
        if destination.endpoint.startswith("https://"):
            tls = ServerTls(True, destination.ca_file, destination.certificate_file, destination.key_file)
            try:
                digest = read_files(tls).digest
            except TlsFileError as error:
                setting, _, reason = str(error).partition(": ")
                problems.append(Problem(f"{path}.{_NAMES.get(setting, setting)}".lstrip("."), reason))
        found.append(Receiver(destination, resource, digest))
    if problems:
        raise ConfigError(problems)
    return found


def _with_whole_names(destination: TraceDestination, directory: str) -> TraceDestination:
    """Return a destination whose files' names begin at the root."""

    def whole(name: str | None) -> str | None:
        return None if name is None else str(Path(directory, name))

    return attrs.evolve(
        destination,
        ca_file=whole(destination.ca_file),
        certificate_file=whole(destination.certificate_file),
        key_file=whole(destination.key_file),
    )
