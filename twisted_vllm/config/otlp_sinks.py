"""Completes sinks of type ``otlp`` from the ``OTEL_*`` variables, or adds one if these ask for it."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from twisted_vllm.config.otel_environment import OtelEnvironment
from twisted_vllm.config.problems import Place
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.sinks import SinkSettings
from twisted_vllm.config.tracing import EXTRA, TracingSettings, identity, is_installed
from twisted_vllm.config.tracing_destinations import TraceDestination

#: the type of these sinks, and the name of the one that variables alone ask for
OTLP = "otlp"


def with_environment(sinks: Iterable[SinkSettings], tracing: TracingSettings, root: Place) -> tuple[SinkSettings, ...]:
    """Return the sinks, completed from the variables; the file wins.

    Args:
        sinks: the sinks of the file.
        tracing: the settings of traces, which name the gateway.
        root: the place of the environment; problems and warnings are reported there.
    """
    found = list(sinks)
    said = OtelEnvironment(root, "LOGS")
    asked = "otlp" in said.exporters or bool(root.environ.get("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"))
    if asked and "none" not in said.exporters and not said.disabled and all(sink.type != OTLP for sink in found):
        if not is_installed():
            # the variable may be meant for another program
            root.at("OTEL_LOGS_EXPORTER").warn(f"has no effect: OTLP logs need {EXTRA}")
        elif any(sink.name == OTLP for sink in found):
            root.at("OTEL_LOGS_EXPORTER").warn(f"has no effect: a sink of another type is named {OTLP}")
        else:
            found.append(SinkSettings(name=OTLP, type=OTLP, format="event"))
    return tuple(_resolved(sink, tracing, said) if sink.type == OTLP else sink for sink in found)


def _resolved(sink: SinkSettings, tracing: TracingSettings, said: OtelEnvironment) -> SinkSettings:
    protocol = sink.protocol or said.protocol()
    service_name, resource = identity(tracing, said)
    return attrs.evolve(
        sink,
        protocol=protocol,
        url=sink.url or Secret(said.endpoint(protocol)),
        # a key for one receiver must not go to another
        headers=sink.headers or ({} if sink.url else said.headers()),
        ca_file=sink.ca_file or said.file("CERTIFICATE"),
        service_name=service_name,
        resource=resource,
    )


def log_destination(sink: SinkSettings) -> TraceDestination:
    """Return the destination of a resolved sink of type ``otlp``."""
    assert sink.url is not None
    assert sink.protocol is not None
    return TraceDestination(
        name=sink.name,
        protocol=sink.protocol,
        endpoint=sink.url.reveal(),
        headers=sink.headers,
        timeout=sink.queue.timeout,
        ca_file=sink.ca_file,
        compression=sink.compression,
    )
