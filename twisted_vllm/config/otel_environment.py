"""The ``OTEL_*`` variables that every OpenTelemetry program reads.

The names and meanings are those of the OpenTelemetry specification ("Environment Variable Specification" and "OTLP
Exporter Configuration"). A variable of one signal, such as ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``, wins over the one of
all signals.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

import attrs

from twisted_vllm.config.checks import share
from twisted_vllm.config.problems import EnvironmentText, Place, Rejected
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.tracing_destinations import GRPC, HTTP

#: the protocols by the specification's names; JSON is not among those of the Python exporters
PROTOCOLS = {"http/protobuf": HTTP, "http": HTTP, "grpc": GRPC}
DEFAULT_ENDPOINTS = {HTTP: "http://localhost:4318", GRPC: "http://localhost:4317"}

#: names of headers (RFC 9110 §5.6.2) and their values, without line breaks
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]{0,8192}")
_ATTRIBUTE_NAME = re.compile(r"[\x21-\x7e]{1,255}")

_ENDPOINT = re.compile(r"https?://[\x21-\x7e]{1,2048}")
_MILLISECONDS = re.compile(r"[0-9]{1,9}")
_LEAST_TIMEOUT = 100


@attrs.frozen
class OtelEnvironment:
    """Reads the variables of one signal. A value that cannot be used causes a warning, and counts as unset.

    Attributes:
        root: the place of the environment.
        signal: ``TRACES``, ``METRICS`` or ``LOGS``.
    """

    root: Place
    signal: str = "TRACES"

    @property
    def disabled(self) -> bool:
        """Whether ``OTEL_SDK_DISABLED`` is true."""
        return self.root.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"

    @property
    def exporters(self) -> frozenset[str]:
        """The names in ``OTEL_TRACES_EXPORTER`` (or of the other signal); empty if it is not set."""
        named = self.root.environ.get(f"OTEL_{self.signal}_EXPORTER", "")
        return frozenset(each for part in named.split(",") if (each := part.strip().lower()))

    @property
    def names_endpoint(self) -> bool:
        """Whether a variable says where to export to."""
        return bool(self._of("ENDPOINT")[1])

    def protocol(self) -> str:
        """Return ``http`` or ``grpc``; ``http`` without a variable."""
        name, value = self._of("PROTOCOL")
        if not value:
            return HTTP
        found = PROTOCOLS.get(value.strip().lower())
        if found is None:
            self._warn(name, f"is no protocol of the exporters: ignored (write one of {', '.join(PROTOCOLS)})")
        return found or HTTP

    def endpoint(self, protocol: str) -> str:
        """Return where to export to: for ``http`` with the path of the signal."""
        own = f"OTEL_EXPORTER_OTLP_{self.signal}_ENDPOINT"
        name, value = self._of("ENDPOINT")
        if value and not is_endpoint(value):
            self._warn(name, "is no URL that begins with http:// or https://: ignored")
            value = ""
        if value and (protocol == GRPC or name == own):
            return value
        base = value or DEFAULT_ENDPOINTS[protocol]
        return base if protocol == GRPC else f"{base.rstrip('/')}/v1/{self.signal.lower()}"

    def headers(self) -> Mapping[str, Secret]:
        """Return the headers: ``name=value,name=value``, percent-encoded."""
        name, value = self._of("HEADERS")
        found: dict[str, Secret] = {}
        for pair in filter(None, map(str.strip, value.split(","))):
            key, equals, content = pair.partition("=")
            key, content = key.strip(), unquote(content.strip())
            if equals and is_header(key, content):
                found[key.lower()] = Secret(content)
            else:
                self._warn(name, "holds what is no header: ignored (write name=value, with commas between)")
        return found

    def timeout(self) -> float | None:
        """Return how long an export may take, in seconds; None without a variable."""
        name, value = self._of("TIMEOUT")
        if not value:
            return None
        # some programs count seconds: 10 of them as milliseconds would end every export
        if not _MILLISECONDS.fullmatch(value.strip()) or int(value) < _LEAST_TIMEOUT:
            self._warn(name, f"is no number of milliseconds, {_LEAST_TIMEOUT} or more: ignored (10 seconds are 10000)")
            return None
        return int(value) / 1000

    def file(self, what: str) -> str | None:
        """Return the name of a file: ``CERTIFICATE`` (of the authorities), ``CLIENT_CERTIFICATE``, ``CLIENT_KEY``."""
        return self._of(what)[1] or None

    def compression(self) -> str | None:
        """Return ``gzip`` or ``none``; None without a variable."""
        name, value = self._of("COMPRESSION")
        if value and value not in ("gzip", "none"):
            self._warn(name, "must be gzip or none: ignored")
            return None
        return value or None

    def resource(self) -> Mapping[str, str]:
        """Return ``OTEL_RESOURCE_ATTRIBUTES``: ``name=value,name=value``, percent-encoded."""
        found: dict[str, str] = {}
        for pair in filter(None, map(str.strip, self.root.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))):
            key, equals, content = pair.partition("=")
            key, content = key.strip(), unquote(content.strip())
            if equals and _ATTRIBUTE_NAME.fullmatch(key) and content.isprintable():
                found[key] = content
            else:
                self._warn("OTEL_RESOURCE_ATTRIBUTES", "holds what is no attribute: ignored (write name=value)")
        return found

    def service_name(self) -> str | None:
        """Return ``OTEL_SERVICE_NAME``, or ``service.name`` of the resource's attributes; None without both."""
        return self.root.environ.get("OTEL_SERVICE_NAME") or self.resource().get("service.name")

    def sampler(self, known: tuple[str, ...]) -> str | None:
        """Return ``OTEL_TRACES_SAMPLER`` if it is one of `known`; None without it."""
        value = self.root.environ.get("OTEL_TRACES_SAMPLER", "").strip().lower()
        if value and value not in known:
            self._warn("OTEL_TRACES_SAMPLER", f"is not known here: ignored (write one of {', '.join(known)})")
            return None
        return value or None

    def sample_ratio(self) -> float | None:
        """Return ``OTEL_TRACES_SAMPLER_ARG``; None without it."""
        name = "OTEL_TRACES_SAMPLER_ARG"
        value = self.root.environ.get(name, "").strip()
        if value in ("0", "0.0"):
            return 0.0
        if not value:
            return None
        try:
            return share(EnvironmentText(value), self.root.at(name))
        except Rejected as error:
            self._warn(name, f"{error.message}: ignored")
            return None

    def propagators(self) -> frozenset[str] | None:
        """Return ``OTEL_PROPAGATORS``; None without it. Those that the gateway does not speak cause a warning."""
        value = self.root.environ.get("OTEL_PROPAGATORS", "")
        named = frozenset(each for part in value.split(",") if (each := part.strip().lower()))
        if not named:
            return None
        if more := named - {"tracecontext", "baggage", "none"}:
            known = "tracecontext and baggage"
            self._warn("OTEL_PROPAGATORS", f"names {len(more)} that the gateway does not speak: ignored (use {known})")
        return named

    def _of(self, what: str) -> tuple[str, str]:
        """Return the variable of this signal, or of all signals, and its value."""
        own, general = f"OTEL_EXPORTER_OTLP_{self.signal}_{what}", f"OTEL_EXPORTER_OTLP_{what}"
        environ = self.root.environ
        return (own, environ[own]) if environ.get(own) else (general, environ.get(general, ""))

    def _warn(self, name: str, message: str) -> None:
        self.root.at(name).warn(message)


def is_header(name: str, value: str) -> bool:
    """Return whether a header can be sent as it is."""
    return _HEADER_NAME.fullmatch(name) is not None and _HEADER_VALUE.fullmatch(value) is not None


def is_endpoint(value: str) -> bool:
    """Return whether a text is the URL of a receiver: without a user name, a password, and a fragment."""
    authority = value.partition("://")[2].partition("/")[0]
    return _ENDPOINT.fullmatch(value) is not None and "@" not in authority and "#" not in value
