"""The settings of traces, ``passthrough.tracing``; the ``OTEL_*`` variables are their defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec

import attrs

from twisted_vllm.config.checks import checker, flag, kind_of, list_of, one_of, optional, seconds, share, text, whole
from twisted_vllm.config.declaration import Items, Required, section, setting
from twisted_vllm.config.named_items import item_name, named_items
from twisted_vllm.config.otel_environment import (
    DEFAULT_ENDPOINTS,
    PROTOCOLS,
    OtelEnvironment,
    is_endpoint,
    is_header,
)
from twisted_vllm.config.problems import Place, Rejected
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.tracing_destinations import GRPC, HTTP, TraceDestination

#: the samplers by OpenTelemetry's names
SAMPLERS = (
    *("parentbased_traceidratio", "parentbased_always_on", "parentbased_always_off"),
    *("traceidratio", "always_on", "always_off"),
)
#: who may be trusted, each including the next
EVERYBODY, KEYS, ADMINISTRATORS, NOBODY = TRUSTED = ("everybody", "keys", "administrators", "nobody")
#: which names of attributes a destination may get; `observability.tracing.attributes` writes them
CONVENTIONS = ("gen_ai", "gen_ai_legacy", "openinference", "langfuse", "mlflow", "litellm")

DEFAULT_SERVICE_NAME = "vllm-passthrough"
#: the name of the destination that the environment names
ENVIRONMENT_DESTINATION = "otlp"

#: what must be installed, and how
EXTRA = "pip install 'twisted-vllm[otel]'"


@checker("URL", "http:// or https://")
def endpoint_url(value: object, place: Place) -> str:
    """Check for the URL of a receiver of OTLP."""
    found = text(value, place)
    if "@" in found.partition("://")[2].partition("/")[0]:
        raise Rejected("must not hold a user name or a password (put the key into headers)")
    if not is_endpoint(found):
        raise Rejected("must be a URL that begins with http:// or https:// (such as http://127.0.0.1:4318/v1/traces)")
    return found


@checker("choice", ", ".join(PROTOCOLS))
def protocol(value: object, place: Place) -> str:
    """Check for a protocol of OTLP, by the specification's name or ours."""
    return PROTOCOLS[one_of(*PROTOCOLS)(value, place)]


@checker("mapping of header names to values")
def headers(value: object, place: Place) -> Mapping[str, Secret]:
    """Check for request headers; a value may be ``os.environ/NAME``."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Rejected(f"must be a mapping, not {kind_of(value)}")
    found: dict[str, Secret] = {}
    for index, (name, content) in enumerate(value.items()):
        # a key that was written in place of a name must not be shown
        here = place.item(index)
        content = here.attempt(text, content)
        if content is None:
            continue
        if isinstance(name, str) and is_header(name, content):
            found[name.lower()] = Secret(content)
        else:
            here.refuse("is no header that can be sent (write the name, a colon and a value in ASCII)")
    return found


@checker("mapping of names to text")
def resource_attributes(value: object, place: Place) -> Mapping[str, str]:
    """Check for attributes of the resource."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Rejected(f"must be a mapping, not {kind_of(value)}")
    found: dict[str, str] = {}
    for name, content in value.items():
        here = place.key(name)
        if not isinstance(name, str) or not name.strip():
            here.refuse("must have a name that is text")
        elif (checked := here.attempt(text, content)) is not None:
            found[name] = checked
    return found


@checker("number", "0 to 1")
def ratio(value: object, place: Place) -> float:
    """Check for a part of all traces."""
    if not isinstance(value, bool) and value == 0:
        return 0.0
    return share(value, place)


@attrs.frozen
class DestinationParams:
    """A receiver of traces, as the file has it."""

    name: str = setting(
        Required("a name for metrics and the log, such as tempo"),
        item_name,
        "Its name in metrics and in the log.",
        example="tempo",
    )
    endpoint: str | None = setting(
        None,
        optional(endpoint_url, "this machine's collector: http://localhost:4318/v1/traces, or port 4317 for gRPC"),
        "Its URL: for http/protobuf the whole one, with /v1/traces; for grpc without a path. https:// checks its "
        "certificate.",
        example="http://127.0.0.1:4318/v1/traces",
    )
    protocol: str = setting(HTTP, protocol, "Protobuf over HTTP, or gRPC.", example="http/protobuf")
    headers: Mapping[str, Secret] = setting({}, headers, "Headers of each export, such as a key: os.environ/NAME.")
    conventions: tuple[str, ...] = setting(
        ("gen_ai",),
        list_of(one_of(*CONVENTIONS)),
        "Which names of attributes it gets. gen_ai are OpenTelemetry's present names, gen_ai_legacy the older.",
    )
    resource: Mapping[str, str] = setting(
        {}, resource_attributes, "Attributes of the resource for this destination alone."
    )
    timeout: float = setting(10.0, seconds(), "How long one export may take.")
    compression: str = setting("gzip", one_of("gzip", "none"), "How an export is compressed.")
    ca_file: str | None = setting(
        None,
        optional(text, "the system's authorities"),
        "The file, in PEM, with the authorities that its certificate is checked against.",
    )
    certificate_file: str | None = setting(
        None, optional(text, "none"), "The file, in PEM, with the certificate that the gateway shows to it."
    )
    key_file: str | None = setting(
        None,
        optional(text, "it is in the file of certificate_file"),
        "The file, in PEM, with the private key of certificate_file.",
    )


DESTINATION_SECTION = section(DestinationParams)

#: how many there may be: each has a queue and a thread
MOST_DESTINATIONS = 16


@checker("list of destinations")
def destinations(value: object, place: Place) -> tuple[TraceDestination, ...]:
    """Check for destinations with names of their own."""
    return named_items(value, place, "destination", MOST_DESTINATIONS, _destination)


def _destination(content: object, place: Place) -> TraceDestination | None:
    params = place.attempt(DESTINATION_SECTION, content)
    if params is None:
        return None
    check_key_file(params.key_file, params.certificate_file, place.key("key_file"))
    base = DEFAULT_ENDPOINTS[params.protocol]
    default = base if params.protocol == GRPC else f"{base}/v1/traces"
    values = attrs.asdict(params, recurse=False)
    return TraceDestination(**{**values, "endpoint": params.endpoint or default})


@attrs.frozen
class TracingSettings:
    """Which requests have traces, and where these go.

    `resolved` replaces each ``None`` by what the environment says, or by the default.
    """

    enabled: bool | None = setting(
        None,
        optional(flag, "on if a destination is named here or by an OTEL_... variable"),
        "Whether requests have traces. Needs the extra otel.",
        example="false",
    )
    destinations: tuple[TraceDestination, ...] = setting(
        (),
        destinations,
        "Where traces go, by OTLP. Without any, to what OTEL_EXPORTER_OTLP_ENDPOINT names, or to a collector on this "
        "machine if enabled is true.",
        items=Items(DESTINATION_SECTION, "[]"),
    )
    service_name: str | None = setting(
        None,
        optional(text, f"OTEL_SERVICE_NAME, else {DEFAULT_SERVICE_NAME}"),
        "The gateway's name in traces (service.name).",
    )
    resource_attributes: Mapping[str, str] = setting(
        {},
        resource_attributes,
        "What the traces say of this gateway, such as deployment.environment.name: production, beside "
        "OTEL_RESOURCE_ATTRIBUTES.",
    )
    sampler: str | None = setting(
        None,
        optional(one_of(*SAMPLERS), "OTEL_TRACES_SAMPLER, else parentbased_traceidratio"),
        "Which traces are recorded. parentbased_...: a trace that a trusted caller began is recorded if that caller "
        "records it; all others by the rest of the name. traceidratio: sample_ratio of them.",
    )
    sample_ratio: float | None = setting(
        None,
        optional(ratio, "OTEL_TRACES_SAMPLER_ARG, else 1, which is all"),
        "The part of all traces that is recorded, with a sampler that goes by ratio.",
    )
    always_sample_errors: bool = setting(
        True,
        flag,
        "Whether a request that failed by a fault of the gateway or of a server (502, 504, a broken stream) has a "
        "trace although it was not sampled. Refusals and mistakes of clients do not count.",
    )
    max_sampled_errors: int = setting(
        10, whole(), "The most of these in a second: a dead server must not flood the collector.", unit="traces"
    )
    trust_incoming: str = setting(
        KEYS,
        one_of(*TRUSTED),
        "Whose traceparent is continued: the ids of its trace, not its decision to record it. keys: everybody with a "
        "valid key; without a master key, everybody who is let in. All others begin a trace of their own.",
    )
    trust_sampled: str = setting(
        ADMINISTRATORS,
        one_of(*TRUSTED),
        "Whose decision to record a trace, the flag in traceparent, holds with a sampler that begins with "
        "parentbased_. administrators: the master key and keys that administer. For all others the gateway decides, "
        "so that no tenant can have more recorded than sample_ratio, or less. keys: if all tenants are your own.",
    )
    propagate: bool | None = setting(
        None,
        optional(flag, "true, unless OTEL_PROPAGATORS lacks tracecontext"),
        "Whether servers get a traceparent for each attempt. If not, they get the client's as it came.",
    )
    refused: str = setting(
        KEYS,
        one_of("all", KEYS, NOBODY),
        "Whose requests have traces that reached no server: a limit was reached, a model is not known. keys leaves "
        "out strangers.",
    )
    gateway_routes: bool = setting(
        False,
        flag,
        "Whether requests to the gateway's own routes (the admin API, not /health and /metrics) have traces.",
    )
    max_queued_bytes: int = setting(
        16_777_216,
        whole(65_536),
        "What may wait for each destination. More is dropped and counted.",
        unit="bytes",
    )

    @property
    def active(self) -> bool:
        """Whether traces are recorded."""
        return bool(self.enabled) and bool(self.destinations)

    @property
    def secrets(self) -> list[str]:
        """The values of the headers of all destinations."""
        return [secret for each in self.destinations for secret in each.secrets]


def resolved(
    written: TracingSettings, root: Place, asked_at: str = "passthrough.tracing.destinations"
) -> TracingSettings:
    """Return the settings with what the ``OTEL_*`` variables say where the file says nothing.

    Args:
        written: the settings that were written.
        root: where problems and warnings are reported.
        asked_at: the setting that asked for the destinations.
    """
    said = OtelEnvironment(root)
    enabled = written.enabled
    by_environment = (said.names_endpoint or "otlp" in said.exporters) and "none" not in said.exporters
    if enabled is None:
        enabled = not said.disabled and bool(written.destinations or by_environment)
        if enabled and not written.destinations and not is_installed():
            # the variable may be meant for another program
            root.at("OTEL_EXPORTER_OTLP_ENDPOINT").warn(f"has no effect: traces need {EXTRA}")
            enabled = False
    elif enabled:
        check_installed(root.at("passthrough.tracing.enabled"))
    if not enabled:
        return written
    if written.destinations:
        check_installed(root.at(asked_at))
    propagators = said.propagators()
    speaks = propagators is None or "tracecontext" in propagators
    sampler = written.sampler or said.sampler(SAMPLERS) or SAMPLERS[0]
    if written.sample_ratio is not None and "ratio" not in sampler:
        root.at("passthrough.tracing.sample_ratio").warn(
            f"has no effect with the sampler {sampler} (write sampler: parentbased_traceidratio)"
        )
    ratio = said.sample_ratio() if written.sample_ratio is None else written.sample_ratio
    service_name, resource = identity(written, said)
    return attrs.evolve(
        written,
        enabled=True,
        destinations=written.destinations or (_of_environment(said),),
        service_name=service_name,
        resource_attributes=resource,
        sampler=sampler,
        sample_ratio=1.0 if ratio is None else ratio,
        propagate=speaks if written.propagate is None else written.propagate,
        trust_incoming=written.trust_incoming if speaks or written.propagate else NOBODY,
    )


def identity(tracing: TracingSettings, said: OtelEnvironment) -> tuple[str, Mapping[str, str]]:
    """Return the gateway's name in telemetry, and the attributes of its resource; the file wins."""
    name = tracing.service_name or said.service_name() or DEFAULT_SERVICE_NAME
    return name, {**said.resource(), **tracing.resource_attributes}


def _of_environment(said: OtelEnvironment) -> TraceDestination:
    named = said.protocol()
    return TraceDestination(
        name=ENVIRONMENT_DESTINATION,
        protocol=named,
        endpoint=said.endpoint(named),
        headers=said.headers(),
        timeout=said.timeout() or 10.0,
        ca_file=said.file("CERTIFICATE"),
        certificate_file=said.file("CLIENT_CERTIFICATE"),
        key_file=said.file("CLIENT_KEY"),
        compression=said.compression() or "gzip",
    )


def with_destinations(tracing: TracingSettings, more: Iterable[TraceDestination], root: Place) -> TracingSettings:
    """Return settings, not yet resolved, with further destinations; those of the file with the same name win."""
    known = {each.name for each in tracing.destinations}
    added = tuple(each for each in more if each.name not in known)
    asked_at = "passthrough.tracing.destinations" if tracing.destinations else "litellm_settings.callbacks"
    return resolved(attrs.evolve(tracing, destinations=(*tracing.destinations, *added)), root, asked_at)


def is_installed(find: Callable[[str], object] = find_spec) -> bool:
    """Return whether the extra ``otel`` is installed."""
    try:
        return all(find(name) is not None for name in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"))
    except ModuleNotFoundError:
        return False


def check_key_file(key_file: str | None, certificate_file: str | None, place: Place) -> None:
    """Refuse a private key without its certificate."""
    if key_file is not None and certificate_file is None:
        place.refuse("is the key of no certificate (write certificate_file, or remove it)")


def check_installed(place: Place) -> None:
    """Refuse what needs the extra ``otel`` where it is not installed."""
    if not is_installed():
        place.refuse(f"needs the OpenTelemetry SDK ({EXTRA})")
