"""Where traces go."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from twisted_vllm.config.secret import Secret

#: the protocols of OTLP: protobuf over HTTP, and gRPC
HTTP, GRPC = "http", "grpc"

#: which requests a destination gets, by how they ended
SUCCESS, FAILURE = "success", "failure"


@attrs.frozen
class TraceDestination:
    """A receiver of traces by OTLP.

    Attributes:
        name: its name in metrics and in the log.
        protocol: ``http`` (protobuf over HTTP) or ``grpc``.
        endpoint: for ``http`` the full URL of traces (``…/v1/traces``), for ``grpc`` ``scheme://host:port``.
        headers: request headers, such as a key, by name.
        conventions: which names of attributes it gets; see ``observability.tracing.attributes``.
        resource: attributes of the resource for this destination alone.
        timeout: how long one export may take, in seconds.
        ca_file: the authorities of its certificate, in PEM; None for the system's.
        certificate_file: the gateway's own certificate, in PEM; None for none.
        key_file: the private key of that, in PEM; None if it is in the same file.
        compression: ``gzip`` or ``none``.
        outcomes: which requests it gets: ``success`` are those that were answered below 400, ``failure`` the others.
    """

    name: str
    protocol: str
    endpoint: str
    headers: Mapping[str, Secret] = attrs.field(factory=dict, hash=False)
    conventions: tuple[str, ...] = ("gen_ai",)
    resource: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    timeout: float = 10.0
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    compression: str = "gzip"
    outcomes: tuple[str, ...] = (SUCCESS, FAILURE)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What the log must not show: its headers' values, whole and without a scheme such as ``Bearer``."""
        found: list[str] = []
        for value in self.headers.values():
            whole = value.reveal()
            found += [whole, whole.rpartition(" ")[2]]
        return tuple(dict.fromkeys(each for each in found if len(each) >= _SHORTEST))


# a shorter value, such as ``1`` of a version, would be struck out of every line
_SHORTEST = 8
