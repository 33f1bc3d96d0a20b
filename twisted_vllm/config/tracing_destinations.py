"""Where traces go."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from twisted_vllm.config.secret import Secret

#: protobuf in requests of HTTP/1.1, or gRPC
HTTP, GRPC = "http", "grpc"


@attrs.frozen
class TraceDestination:
    """One receiver of traces.

    Attributes:
        name: its name, for metrics and the log.
        protocol: ``http`` or ``grpc``.
        endpoint: the URL that takes traces (``https://host/v1/traces``); for gRPC ``http://host:port``, where ``https``
            means TLS.
        headers: what is sent with each export, such as a credential.
        conventions: the names of attributes that it understands, of
            `twisted_vllm.observability.tracing.attributes.CONVENTIONS`.
        resource: attributes of the resource that it needs, such as the name of a project.
    """

    name: str
    protocol: str
    endpoint: str
    headers: Mapping[str, Secret] = attrs.field(factory=dict)
    conventions: tuple[str, ...] = ("gen_ai",)
    resource: Mapping[str, str] = attrs.field(factory=dict)
