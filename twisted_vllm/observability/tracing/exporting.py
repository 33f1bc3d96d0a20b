"""Exports spans by OpenTelemetry's official exporters, in a thread of its own.

It imports the OpenTelemetry SDK, so it is imported only where traces are configured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zope.interface import implementer

from twisted_vllm.config.tracing_destinations import TraceDestination
from twisted_vllm.observability.delivery.interfaces import IBlockingDestination
from twisted_vllm.observability.otlp_exporter import TRACES, OtlpExporter
from twisted_vllm.observability.tracing.spans import SpanMaker
from twisted_vllm.observability.tracing.traced_request import TracedRequest


@implementer(IBlockingDestination)
class SpanDestination:
    """Makes spans of requests and exports them."""

    def __init__(self, destination: TraceDestination, resource: Mapping[str, str]) -> None:
        """Make the exporter.

        Args:
            destination: where they go; the names of its files are absolute.
            resource: attributes of the gateway.
        """
        self._exporter = OtlpExporter(destination, TRACES)
        self._maker = SpanMaker({**resource, **destination.resource}, destination.conventions)

    def deliver(self, batch: Sequence[TracedRequest]) -> None:
        """Export the spans of requests.

        Raises:
            DeliveryFailed: the receiver did not take them.
        """
        self._exporter.export([span for traced in batch for span in self._maker.spans(traced)])

    def close(self) -> None:
        """Close the connections."""
        self._exporter.close()
