"""What every exporter of OTLP needs: the gateway's name and attributes, and the files of a destination."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from twisted_vllm.config.problems import ConfigError, Problem
from twisted_vllm.config.tracing_destinations import TraceDestination


@attrs.frozen
class Receiver:
    """A destination with what its exporter needs; another one needs another exporter.

    Attributes:
        destination: the destination, with absolute names of files.
        resource: attributes of the gateway.
        files: the contents of its files, by name.
    """

    destination: TraceDestination
    resource: Mapping[str, str]
    files: Mapping[str, bytes] = attrs.field(repr=False)


def receiver_of(
    destination: TraceDestination, service_name: str, attributes: Mapping[str, str], directory: str, path: str
) -> Receiver:
    """Return a destination with what its exporter needs.

    Args:
        destination: the destination.
        service_name: the gateway's name.
        attributes: more attributes of the gateway, which win.
        directory: where relative names of files begin.
        path: the path of the destination in the settings, for messages.

    Raises:
        ConfigError: a file cannot be read.
    """
    problems: list[Problem] = []
    files: dict[str, bytes] = {}
    names: dict[str, Any] = {}
    for attribute in ("ca_file", "certificate_file", "key_file"):
        named = getattr(destination, attribute)
        if named is None:
            continue
        file = Path(directory, named)
        names[attribute] = str(file)
        try:
            files[str(file)] = file.read_bytes()
        except OSError as error:
            message = f"cannot be read: {error.strerror} (check the path and its permissions)"
            problems.append(Problem(f"{path}.{attribute}", message))
    if problems:
        raise ConfigError(problems)
    resource = {
        "service.name": service_name,
        "host.name": platform.node(),
        "process.pid": str(os.getpid()),
        **attributes,
    }
    return Receiver(attrs.evolve(destination, **names), resource, files)
