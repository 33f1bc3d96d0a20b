"""Describes the settings for people: ``--check``, and the environment's part of ``--help``.

A line summarizes several settings. A setting without such a line is listed if it differs from its default, so a new one
is shown without a change here.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal

import attrs

from twisted_vllm.config.declaration import Setting, values_of, yaml_of
from twisted_vllm.config.describe_telemetry import alerts, otlp_metrics, prompts, sinks, traces
from twisted_vllm.config.load import variables
from twisted_vllm.config.name_patterns import is_pattern
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.routing import DEFAULT_STRATEGY
from twisted_vllm.config.server_tls import ServerTls
from twisted_vllm.config.servers import SERVER_LIMITS, SERVER_TIMEOUTS
from twisted_vllm.config.settings import MediaUrls, ModelEntry, PriceList, Server, Settings
from twisted_vllm.config.urls import describe_database

_HELP_WIDTH = 100


def describe(settings: Settings) -> list[str]:
    """Return a summary of the settings, one line per item, without secrets."""
    return [f"{line.label + ':':16}{text}" for line in LINES for text in line.says(settings)]


def describe_refused(error: ConfigError) -> list[str]:
    """Return what keeps a configuration from being used, and what else would be left out, one line per item."""
    found = [f"{'refused:':16}{problem}" for problem in error.problems]
    found += [f"{f'{label}:':16}{text}" for label in _LEFT_OUT for text in _left_out(error.warnings, label)]
    count = len(error.problems)
    return [*found, "", f"{'It' if count == 1 else 'Each'} says in parentheses what to do. The gateway does not start."]


def summarize(settings: Settings) -> str:
    """Return one line about what is left out, and whether anything has to be done."""
    counts = {label: len(list(_left_out(settings.warnings, label))) for label in _LEFT_OUT}
    said = [
        f"{count} {one if count == 1 else many}"
        for (one, many), count in zip(_LEFT_OUT.values(), counts.values(), strict=True)
        if count
    ]
    if not said:
        return "Everything is used. The gateway would start."
    harmless = " What is ignored restricts nobody, and may stay in the file." if counts["ignored"] else ""
    return f"{', '.join(said)}.{harmless} The gateway would start."


def describe_environment() -> str:
    """Return the environment variables and their settings: the usual name, and the gateway's own, which wins."""
    lines = []
    for each in variables():
        own, usual = each.environment[0], each.environment[-1]
        lines.append(f"  {usual}" + (f", or {own}, which wins" if own != usual else ""))
        sentence = each.doc.partition(". ")[0].removesuffix(".") + "."
        lines.append(textwrap.fill(sentence, _HELP_WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)


#: what is not used of a file, and the words for one and for several
_LEFT_OUT = {
    "skipped": ("entry is skipped", "entries are skipped"),
    "ignored": ("setting is ignored", "settings are ignored"),
    "warning": ("warning", "warnings"),
}


def left_out(warnings: Iterable[str]) -> dict[str, list[str]]:
    """Return warnings by their kinds: entries that are ``skipped``, settings that are ``ignored``, all ``warnings``."""
    found: dict[str, list[str]] = {"skipped": [], "ignored": [], "warnings": []}
    for warning in warnings:
        kind = "skipped" if ": skipped (" in warning else "ignored" if ": ignored" in warning else "warnings"
        found[kind].append(warning)
    return found


def _left_out(warnings: Iterable[str], label: str) -> Iterator[str]:
    """Yield the warnings of one kind, by its label."""
    yield from left_out(warnings)["warnings" if label == "warning" else label]


def _mode(settings: Settings) -> Iterator[str]:
    if settings.master_key is not None:
        yield "master key and virtual keys"
    else:
        anywhere = "from any address" if settings.allow_anonymous else "from this machine"
        yield f"open: no master key is set, and anybody may do everything, {anywhere}"


def _tokens(settings: Settings) -> Iterator[str]:
    if not settings.enable_jwt_auth:
        return
    for url in settings.jwt_public_key_url or ():
        yield f"signed by a key of {url}"
    audience = "anybody" if settings.jwt.accept_any_audience else ", ".join(settings.jwt_audience or ())
    yield f"for {audience}, from {', '.join(settings.jwt_issuer or ()) or 'any issuer with such a key'}"


def _console(settings: Settings) -> Iterator[str]:
    console = settings.console
    if not console.enabled:
        yield "off"
    elif console.oidc.issuer is not None:
        yield f"people sign in with keys, and at {console.oidc.issuer} as {console.oidc.client_id}"


def _limits_together(settings: Settings) -> Iterator[str]:
    if settings.redis is not None:
        local = settings.limits_on_redis_loss == "local"
        without = "each process counts for itself" if local else "requests with limits are refused"
        yield f"counted in {settings.redis.name}; while it is away, {without}"


def _default_server(settings: Settings) -> Iterator[str]:
    default = settings.default_server
    first = "the first entry of the list"
    if any(is_pattern(entry.model_name) for entry in settings.models):
        first += " without a wildcard"
    yield _server(default) if default else f"none: a request that names no model goes to {first}"


def _tenant_fields(settings: Settings) -> Iterator[str]:
    fields = settings.tenant_fields
    yield from (f"{each} open to keys" for each in fields.allow)
    yield from (f"{each} closed to keys" for each in fields.deny)
    for name, most in fields.limits.items():
        yield f"{name} without the default limit" if most is None else f"{name} at most {most}"
    media = fields.media
    if not media.restrict:
        yield "servers fetch any URL for keys"
    elif media != MediaUrls():
        hosts = f"hosts {', '.join(media.allowed_hosts)}" if media.allowed_hosts else "public hosts"
        never = f", never {', '.join(media.denied_hosts)}" if media.denied_hosts else ""
        yield f"servers fetch {', '.join(media.schemes)} of {hosts} for keys{never}"


def _resolver(settings: Settings) -> Iterator[str]:
    resolver = settings.discovery.resolver
    if resolver is not None:
        yield f"{resolver.host}, port {resolver.port}"


def _drain(settings: Settings) -> Iterator[str]:
    delay = f", after {settings.drain_delay:g} s of serving on" if settings.drain_delay else ""
    yield f"{settings.drain_timeout:g} s{delay}"


def _ledger(settings: Settings) -> Iterator[str]:
    found = settings.ledger
    if not found.enabled:
        yield "off: usage is not recorded"
        return
    kept = "rows kept for ever"
    if found.usage_retention is not None:
        kept = f"rows kept for {found.usage_retention / 86_400:g} days"
    failing = ", requests refused while the spool cannot be written" if found.on_spool_failure == "refuse" else ""
    yield f"spool in {settings.spool_directory}, {kept}{failing}"


def _export(settings: Settings) -> Iterator[str]:
    found = settings.ledger.export
    if found.enabled:
        begin = "" if found.begin is None else f", from {found.begin} on"
        yield f"{found.format} of each day to {found.target}, {found.delay / 3600:g} h after midnight (UTC){begin}"


def _audit_log(settings: Settings) -> Iterator[str]:
    if settings.audit_retention is not None:
        yield f"entries kept for {settings.audit_retention / 86_400:g} days"


def _stream_usage(settings: Settings) -> Iterator[str]:
    if settings.ledger.count_stream_usage == "passive":
        yield "passive: a stream whose client does not ask for usage is estimated by its chunks"


def _default_prices(settings: Settings) -> Iterator[str]:
    if prices := _priced(settings.default_prices):
        yield prices.removeprefix(", ")


def _log(settings: Settings) -> Iterator[str]:
    log = settings.log
    target = "standard output"
    if log.file is not None:
        target = f"{log.file}, rotated at {log.rotate_bytes} bytes, {log.keep_files} old files kept"
    yield f"{log.format}, level {log.level}, to {target}"


def _routing(settings: Settings) -> Iterator[str]:
    strategy = settings.routing.routing_strategy
    if settings.models and (strategy != DEFAULT_STRATEGY or len({each.server for each in settings.models}) > 1):
        yield strategy


def _fallbacks(settings: Settings) -> Iterator[str]:
    routing = settings.routing
    for name, others in routing.fallbacks.items():
        yield f"{name} -> {', '.join(others)}"
    for name, others in routing.context_window_fallbacks.items():
        yield f"{name} -> {', '.join(others)}, if the prompt is too long"
    if routing.default_fallbacks:
        yield f"models without their own -> {', '.join(routing.default_fallbacks)}"


def _models(settings: Settings) -> Iterator[str]:
    shares: Counter[tuple[str, int]] = Counter()
    orders: dict[str, set[int]] = {}
    for entry in settings.models:
        shares[entry.model_name, entry.order] += entry.weight
        orders.setdefault(entry.model_name, set()).add(entry.order)
    for entry in settings.models:
        ranked = f", order {entry.order}" if len(orders[entry.model_name]) > 1 else ""
        yield _model(entry, shares[entry.model_name, entry.order], ranked)


def _model(entry: ModelEntry, total: int, ranked: str) -> str:
    says = [f"{entry.model_name} -> {entry.upstream_model} at {_server(entry.server)}"]
    if is_pattern(entry.model_name):
        says.append(", every name that it matches and no other entry has")
    if entry.discovery:
        says.append(f", servers by {entry.discovery}")
    if total > entry.weight:
        says.append(f", share {entry.weight} of {total}")
    says.append(ranked)
    if entry.strategy is not None:
        says.append(f", routed by {entry.strategy}")
    if entry.rpm is not None:
        says.append(f", at most {entry.rpm} requests a minute")
    if entry.tpm is not None:
        says.append(f", at most {entry.tpm} tokens a minute")
    return "".join((*says, _priced(entry.prices)))


def _priced(prices: PriceList) -> str:
    return "".join(f", {name} {price:f}" for name, price in prices.named().items() if price is not None)


def _server(server: Server) -> str:
    return f"{url_of(server)}{', with its own key' if server.api_key else ''}{_tls(server.tls_options)}"


def url_of(server: Server) -> str:
    """Return the ``api_base`` of a server in its canonical form."""
    scheme = "" if server.socket else "https://" if server.tls else "http://"
    return f"{scheme}{server.name}"


def _tls(options: ServerTls) -> str:
    says = []
    if not options.verify:
        says.append(", certificate not checked")
    if options.ca_file is not None:
        says.append(f", certificate of {options.ca_file}")
    if options.certificate_file is not None:
        says.append(f", shown {options.certificate_file}")
    return "".join(says)


def _limits(settings: Settings) -> Iterator[str]:
    return _differing(settings.limits)


def _timeouts(settings: Settings) -> Iterator[str]:
    return _differing(settings.timeouts)


def _server_limits(settings: Settings) -> Iterator[str]:
    for server in settings.servers:
        yield from _elsewhere(server, _differing_from(server, settings.limits, SERVER_LIMITS))


def _server_timeouts(settings: Settings) -> Iterator[str]:
    for server in settings.servers:
        yield from _elsewhere(server, _differing_from(server.timeouts, settings.timeouts, SERVER_TIMEOUTS))


def _elsewhere(server: Server, differing: Iterable[tuple[Setting, object, object]]) -> Iterator[str]:
    for each, value, usual in differing:
        yield f"{each.name} {_shown(value, each)} for {server.name} (elsewhere {_shown(usual, each)})"


def _differing_from(
    own: object, general: object, declared: Iterable[Setting]
) -> Iterator[tuple[Setting, object, object]]:
    """Yield the settings of a server that differ from those of all servers: its value, and the usual one."""
    for each in declared:
        value, usual = getattr(own, each.attribute), getattr(general, each.attribute)
        if value != usual:
            yield each, value, usual


def changed_of_servers(settings: Settings, servers: Iterable[Server] | None = None) -> dict[str, dict[str, object]]:
    """Return what differs for single servers, as `passthrough.servers` says it: by the URL of the server.

    Args:
        settings: the settings of all servers.
        servers: the servers; None for all.
    """
    found = {}
    for server in settings.servers if servers is None else servers:
        own = {each.name: value for each, value, _ in _differing_from(server, settings.limits, SERVER_LIMITS)}
        timeouts = _differing_from(server.timeouts, settings.timeouts, SERVER_TIMEOUTS)
        own |= {f"timeouts.{each.name}": value for each, value, _ in timeouts}
        own |= {name: value for name in _EVENTS if (value := getattr(server, name)) is not None}
        if own:
            found[url_of(server)] = own
    return found


_EVENTS = ("kv_events", "kv_events_replay")


def _others(settings: Settings) -> Iterator[str]:
    covered = {path for line in LINES for path in line.settings}
    for path, each, value in (*values_of(settings.routing), *values_of(settings)):
        if value != each.default and not any(f"{path}.".startswith(f"{other}.") for other in covered):
            yield f"{path} {_changed(value, each)}"


def _differing(holder: attrs.AttrsInstance) -> Iterator[str]:
    for _, each, value in values_of(holder):
        if value != each.default:
            yield f"{each.name} {_changed(value, each)}"


def _changed(value: object, each: Setting) -> str:
    return f"{_shown(value, each)} (default {_shown(each.default, each)})"


def _shown(value: object, each: Setting) -> str:
    in_seconds = each.measure == "seconds"
    if value is None:
        return "no limit" if in_seconds else "none"
    if isinstance(value, float) and in_seconds:
        return f"{value:g} s"
    if isinstance(value, tuple):
        return f"[{', '.join(_shown(item, each) for item in value)}]"
    # repr: no value of another class shows a secret in it
    return yaml_of(value) if isinstance(value, (bool, int, float, str, Decimal)) else repr(value)


@attrs.frozen
class Line:
    """A line of ``--check``, or several with the same label.

    Attributes:
        label: the text before the colon.
        says: returns the text after it, for each line.
        settings: the paths of the settings that it covers, or of the mappings that contain them.
    """

    label: str
    says: Callable[[Settings], Iterable[str]]
    settings: tuple[str, ...] = ()


LINES = (
    Line("listen", lambda settings: settings.listen, ("passthrough.listen",)),
    Line("mode", _mode, ("general_settings.master_key", "passthrough.allow_anonymous")),
    Line(
        "tokens",
        _tokens,
        (
            "general_settings.enable_jwt_auth",
            "passthrough.jwt_public_key_url",
            "passthrough.jwt_audience",
            "passthrough.jwt_issuer",
            "passthrough.jwt.accept_any_audience",
        ),
    ),
    Line(
        "console",
        _console,
        (
            "passthrough.console.enabled",
            *(f"passthrough.console.oidc.{name}" for name in ("issuer", "client_id", "client_secret")),
        ),
    ),
    Line("database", lambda settings: [describe_database(settings.database_url)], ("general_settings.database_url",)),
    Line("limits", _limits_together, ("passthrough.redis_url", "passthrough.limits_on_redis_loss")),
    Line("default server", _default_server),
    Line(
        "path aliases",
        lambda settings: ["on" if settings.path_aliases else "off: only vLLM's own paths work"],
        ("passthrough.path_aliases",),
    ),
    Line(
        "root routes",
        lambda settings: ["on" if settings.root_routes else "off: vLLM's routes are below /vllm alone"],
        ("passthrough.root_routes",),
    ),
    Line("open to keys", lambda settings: settings.tenant_routes.allow, ("passthrough.tenant_routes.allow",)),
    Line("closed to keys", lambda settings: settings.tenant_routes.deny, ("passthrough.tenant_routes.deny",)),
    Line("fields", _tenant_fields, ("passthrough.tenant_fields",)),
    Line(
        "trusted proxy",
        lambda settings: map(str, settings.trusted_proxies),
        ("passthrough.trusted_proxies",),
    ),
    Line("served address", lambda settings: map(str, settings.allowed_ips), ("general_settings.allowed_ips",)),
    Line("dns server", _resolver, ("passthrough.discovery.resolver",)),
    Line("drain", _drain, ("passthrough.drain_delay", "passthrough.drain_timeout")),
    Line(
        "revoking",
        lambda settings: ["running requests end when their key is not valid any more"] * settings.revoke_running,
        ("passthrough.revoke_running",),
    ),
    Line("limit", _limits, ("passthrough.limits",)),
    Line(
        "ledger",
        _ledger,
        (
            "passthrough.ledger.enabled",
            "passthrough.ledger.spool_directory",
            "passthrough.ledger.usage_retention",
            "passthrough.ledger.on_spool_failure",
        ),
    ),
    Line(
        "usage export",
        _export,
        (
            *(f"passthrough.ledger.usage_export.{name}" for name in ("format", "directory", "begin", "delay")),
            *("passthrough.ledger.usage_export.s3", "passthrough.ledger.usage_export_directory"),
        ),
    ),
    Line("audit log", _audit_log, ("passthrough.audit_retention",)),
    Line("stream usage", _stream_usage, ("passthrough.ledger.count_stream_usage",)),
    Line("usage header", lambda settings: settings.ledger.usage_headers, ("passthrough.ledger.usage_headers",)),
    Line("default prices", _default_prices, ("passthrough.default_prices",)),
    Line(
        "log",
        _log,
        (
            "passthrough.log.format",
            "passthrough.log.file",
            "passthrough.log.rotate_bytes",
            "passthrough.log.keep_files",
            "passthrough.log.level",
        ),
    ),
    Line(
        "sink",
        sinks,
        (
            "passthrough.sinks",
            *(f"litellm_settings.{name}" for name in ("callbacks", "success_callback", "failure_callback")),
            "litellm_settings.s3_callback_params",
        ),
    ),
    Line(
        "traces",
        traces,
        tuple(
            f"passthrough.tracing.{name}"
            for name in (
                *("enabled", "destinations", "service_name", "resource_attributes", "sampler", "sample_ratio"),
                "propagate",
            )
        ),
    ),
    Line(
        "otlp metrics",
        otlp_metrics,
        tuple(
            f"passthrough.otlp_metrics.{name}"
            for name in ("enabled", "endpoint", "protocol", "headers", "interval", "timeout", "temporality")
        ),
    ),
    Line(
        "prompts",
        prompts,
        (
            *(f"passthrough.log_bodies.{name}" for name in ("mode", "models", "redact_fields", "redact_patterns")),
            "litellm_settings.turn_off_message_logging",
        ),
    ),
    Line(
        "alerts",
        alerts,
        (
            *(f"general_settings.{name}" for name in ("alerting", "alert_types", "alert_to_webhook_url")),
            *(f"passthrough.alerts.{name}" for name in ("slack_webhook_url", "webhook_url")),
        ),
    ),
    Line("routing", _routing, ("router_settings.routing_strategy",)),
    Line("model", _models),
    Line(
        "alias",
        lambda settings: (f"{alias} -> {name}" for alias, name in settings.routing.model_group_alias.items()),
        ("router_settings.model_group_alias",),
    ),
    Line(
        "fallback",
        _fallbacks,
        (
            "router_settings.fallbacks",
            "router_settings.context_window_fallbacks",
            "router_settings.default_fallbacks",
        ),
    ),
    Line("timeout", _timeouts, ("passthrough.timeouts", "router_settings.timeout")),
    Line("timeout", _server_timeouts),
    Line("limit", _server_limits),
    Line("setting", _others),
    Line("skipped", lambda settings: _left_out(settings.warnings, "skipped")),
    Line("ignored", lambda settings: _left_out(settings.warnings, "ignored")),
    Line("warning", lambda settings: _left_out(settings.warnings, "warning")),
)
