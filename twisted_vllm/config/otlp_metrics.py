"""The settings of OTLP metrics, ``passthrough.otlp_metrics``; the ``OTEL_*`` variables are their defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from twisted_vllm.config.checks import flag, one_of, optional, seconds, text
from twisted_vllm.config.declaration import setting
from twisted_vllm.config.otel_environment import OtelEnvironment
from twisted_vllm.config.problems import Place
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.tracing import (
    DEFAULT_SERVICE_NAME,
    EXTRA,
    TracingSettings,
    check_installed,
    check_key_file,
    endpoint_url,
    headers,
    identity,
    is_installed,
    protocol,
)
from twisted_vllm.config.tracing_destinations import TraceDestination

#: what a number counts from: the start of the gateway, or the last export; OpenTelemetry's words
TEMPORALITIES = CUMULATIVE, DELTA, LOW_MEMORY = "cumulative", "delta", "lowmemory"

#: the name of the destination in metrics and in the log
DESTINATION = "otlp"
DEFAULT_INTERVAL = 60.0
DEFAULT_TIMEOUT = 10.0

_MILLISECONDS = re.compile(r"[0-9]{1,9}")
_LEAST_INTERVAL = 1000


@attrs.frozen
class OtlpMetricsSettings:
    """Whether metrics are exported by OTLP, and where to.

    `resolved` replaces each ``None`` by what the environment says, or by the default.
    """

    enabled: bool | None = setting(
        None,
        optional(
            flag,
            "on if OTEL_METRICS_EXPORTER is otlp, OTEL_EXPORTER_OTLP_METRICS_ENDPOINT is set, or endpoint is set here",
        ),
        "Whether the metrics of /metrics are exported by OTLP as well. Needs the extra otel.",
    )
    endpoint: str | None = setting(
        None,
        optional(endpoint_url, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT, else a collector on this machine"),
        "Where metrics go: for http/protobuf the whole URL, with /v1/metrics; for grpc without a path. https:// checks "
        "its certificate.",
    )
    protocol: str | None = setting(
        None,
        optional(protocol, "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL, else http/protobuf"),
        "Protobuf over HTTP, or gRPC.",
    )
    headers: Mapping[str, Secret] | None = setting(
        None,
        optional(headers, "OTEL_EXPORTER_OTLP_METRICS_HEADERS, if endpoint is not set here"),
        "Headers of each export, such as a key: os.environ/NAME.",
    )
    interval: float | None = setting(
        None,
        optional(seconds(), f"OTEL_METRIC_EXPORT_INTERVAL, else {DEFAULT_INTERVAL:g} s"),
        "How often metrics are collected and exported.",
    )
    timeout: float | None = setting(
        None,
        optional(seconds(), f"OTEL_METRIC_EXPORT_TIMEOUT, else {DEFAULT_TIMEOUT:g} s"),
        "How long one export may take.",
    )
    temporality: str | None = setting(
        None,
        optional(one_of(*TEMPORALITIES), f"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE, else {CUMULATIVE}"),
        "Whether counters and histograms count from the start (cumulative, as Prometheus wants it) or from the last "
        "export (delta, as Datadog wants it); lowmemory is delta for histograms alone.",
    )
    compression: str = setting("gzip", one_of("gzip", "none"), "How an export is compressed.")
    ca_file: str | None = setting(
        None,
        optional(text, "the system's authorities"),
        "The file, in PEM, with the authorities that the receiver's certificate is checked against.",
    )
    certificate_file: str | None = setting(
        None, optional(text, "none"), "The file, in PEM, with the certificate that the gateway shows to the receiver."
    )
    key_file: str | None = setting(
        None,
        optional(text, "it is in the file of certificate_file"),
        "The file, in PEM, with the private key of certificate_file.",
    )
    #: the gateway's name and attributes, of the settings of traces and of the environment
    service_name: str = DEFAULT_SERVICE_NAME
    resource: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def active(self) -> bool:
        """Whether metrics are exported."""
        return bool(self.enabled)

    @property
    def destination(self) -> TraceDestination:
        """Where they go, once it is resolved."""
        assert self.protocol is not None
        assert self.endpoint is not None
        return TraceDestination(
            name=DESTINATION,
            protocol=self.protocol,
            endpoint=self.endpoint,
            headers=self.headers or {},
            conventions=(),
            timeout=self.timeout or DEFAULT_TIMEOUT,
            ca_file=self.ca_file,
            certificate_file=self.certificate_file,
            key_file=self.key_file,
            compression=self.compression,
        )

    @property
    def secrets(self) -> list[str]:
        """The values of the headers."""
        return list(self.destination.secrets) if self.active else []


def resolved(written: OtlpMetricsSettings, tracing: TracingSettings, root: Place) -> OtlpMetricsSettings:
    """Return the settings, completed from the ``OTEL_*`` variables; the file wins.

    Args:
        written: what the file says.
        tracing: the settings of traces, which name the gateway.
        root: the place of the environment; problems and warnings are reported there.
    """
    said = OtelEnvironment(root, "METRICS")
    own = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"
    enabled = written.enabled
    if enabled is None:
        by_environment = ("otlp" in said.exporters or bool(root.environ.get(own))) and "none" not in said.exporters
        enabled = not said.disabled and bool(written.endpoint or by_environment)
        if enabled and not written.endpoint and not is_installed():
            # the variable may be meant for another program
            root.at("OTEL_METRICS_EXPORTER").warn(f"has no effect: OTLP metrics need {EXTRA}")
            enabled = False
    if not enabled:
        return attrs.evolve(written, enabled=False)
    check_installed(root.at("passthrough.otlp_metrics"))
    check_key_file(written.key_file, written.certificate_file, root.at("passthrough.otlp_metrics.key_file"))
    named = written.protocol or said.protocol()
    service_name, resource = identity(tracing, said)
    headers_of_environment = {} if written.endpoint else said.headers()
    return attrs.evolve(
        written,
        enabled=True,
        endpoint=written.endpoint or said.endpoint(named),
        protocol=named,
        headers=headers_of_environment if written.headers is None else written.headers,
        interval=written.interval or _seconds("OTEL_METRIC_EXPORT_INTERVAL", root) or DEFAULT_INTERVAL,
        timeout=written.timeout or _seconds("OTEL_METRIC_EXPORT_TIMEOUT", root) or said.timeout() or DEFAULT_TIMEOUT,
        temporality=written.temporality or _temporality(root) or CUMULATIVE,
        ca_file=written.ca_file or said.file("CERTIFICATE"),
        certificate_file=written.certificate_file or said.file("CLIENT_CERTIFICATE"),
        key_file=written.key_file or said.file("CLIENT_KEY"),
        service_name=service_name,
        resource=resource,
    )


def _seconds(name: str, root: Place) -> float | None:
    """Return a variable in milliseconds as seconds; None without it."""
    value = root.environ.get(name, "").strip()
    if not value:
        return None
    if not _MILLISECONDS.fullmatch(value) or int(value) < _LEAST_INTERVAL:
        root.at(name).warn(f"is no number of milliseconds, {_LEAST_INTERVAL} or more: ignored (a minute is 60000)")
        return None
    return int(value) / 1000


def _temporality(root: Place) -> str | None:
    name = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    value = root.environ.get(name, "").strip().lower()
    if value and value not in TEMPORALITIES:
        root.at(name).warn(f"must be one of {', '.join(TEMPORALITIES)}: ignored")
        return None
    return value or None
