"""The gateway's own metrics, in Prometheus' formats.

What they say is read when somebody asks: between two scrapes they cost nothing.
"""

from __future__ import annotations

from importlib.metadata import version

from prometheus_client import CollectorRegistry, GCCollector, Info, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

#: what the names of the gateway's own metrics begin with
PREFIX = "vllm_passthrough"

#: versions of either format that a client may ask for; none is as good as a known one
_VERSIONS = frozenset({"", "0.0.1", "0.0.4", "1.0.0"})


class Metrics:
    """The metrics of one gateway: a registry of its own, as a process may hold several."""

    def __init__(self) -> None:
        """Begin with what the process and its interpreter say."""
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        about = Info(PREFIX, "The gateway", registry=registry)
        about.info({"version": version("twisted-vllm")})

    def add(self, collector: Collector) -> None:
        """Ask `collector` as well."""
        self._registry.register(collector)

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics and their media type: OpenMetrics where the client takes it, else Prometheus' text.

        Args:
            accept: the request's ``Accept``; what cannot be understood of it is left out.
        """
        encode, content_type = choose_encoder(",".join(filter(_is_known, accept.split(","))))
        return encode(self._registry), content_type


def _is_known(media_range: str) -> bool:
    """Return whether the version that part of an ``Accept`` asks for, if any, is one that is written here.

    `choose_encoder` compares versions as numbers, which fails at other text, and promises any that is high enough.
    """
    parameters = (parameter.strip().partition("=") for parameter in media_range.split(";")[1:])
    return all(value in _VERSIONS for name, _, value in parameters if name == "version")
