"""The settings: each declared once, and stored as plain frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from urllib.parse import quote

import attrs
from sqlalchemy.engine import make_url

from twisted_vllm.config import jwt
from twisted_vllm.config.alerting import IGNORED_ARGS, AlertingArgs, AlertSettings, alert_types, channel, urls_by_type
from twisted_vllm.config.callbacks import NO_CALLBACKS, Callbacks, callback_names, s3_params
from twisted_vllm.config.checks import (
    MAX_DOLLARS,
    amount,
    duration,
    field_limits,
    field_path,
    flag,
    header_name,
    host_pattern,
    list_of,
    master_key,
    network,
    one_field_path,
    one_number_of,
    one_of,
    optional,
    origin,
    period,
    price,
    process_count,
    route_rule,
    seconds,
    secret,
    share,
    status,
    text,
    url_path,
    url_scheme,
    whole,
)
from twisted_vllm.config.console import ConsoleSettings
from twisted_vllm.config.declaration import Section, section, setting, settings_of
from twisted_vllm.config.jwt import JwtClaims, JwtSettings
from twisted_vllm.config.listen import DEFAULT_LISTEN, endpoint
from twisted_vllm.config.log import LEVELS, request_lines
from twisted_vllm.config.log_bodies import LogBodiesSettings
from twisted_vllm.config.metrics import MetricsSettings
from twisted_vllm.config.model_ids import lasting_secret
from twisted_vllm.config.new_records import NewKeyDefaults, NewTeamDefaults, NewUserDefaults, RecordDefaults
from twisted_vllm.config.origins import Origins
from twisted_vllm.config.otlp_metrics import OtlpMetricsSettings
from twisted_vllm.config.problems import Place
from twisted_vllm.config.redis_places import RedisPlace, redis_url
from twisted_vllm.config.routing import (
    DEFAULT_STRATEGY,
    aliases,
    fallback_lists,
    model_names,
    routing_strategy,
)
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.server_tls import DEFAULT_TLS, ServerTls, TlsParams
from twisted_vllm.config.sinks import SINK_ITEMS, SinkSettings, sinks
from twisted_vllm.config.tracing import TracingSettings
from twisted_vllm.config.urls import ResolverAddress, database_url, resolver_address
from twisted_vllm.config.usage_export import EXPORT_DIRECTORY, EXPORT_SECTION, UsageExportSettings
from twisted_vllm.field_policy.media_hosts import DEFAULT_SCHEMES

DEFAULT_DATABASE_URL = "sqlite:///twisted_vllm.sqlite3"

#: what the spool's directory is called: this after the name of the database's file, or the other in the run directory
SPOOL_SUFFIX = ".spool"
SPOOL_NAME = "vllm_passthrough.spool"


@attrs.frozen
class TenantRoutes:
    """Routes that the operator opened or closed to every virtual key."""

    allow: tuple[str, ...] = setting((), list_of(route_rule), "Opened to every key, such as /tokenizer_info.")
    deny: tuple[str, ...] = setting((), list_of(route_rule), "Closed to every key, such as /metrics or read_only.")


@attrs.frozen
class MediaUrls:
    """Which URLs of images, audio and video vLLM may fetch for virtual keys."""

    restrict: bool = setting(
        True,
        flag,
        "Whether URLs are checked. Hosts are judged as they are written, not as DNS resolves them: give vLLM "
        "--allowed-media-domains as well.",
    )
    schemes: tuple[str, ...] = setting(DEFAULT_SCHEMES, list_of(url_scheme), "The schemes that are allowed.")
    allowed_hosts: tuple[str, ...] = setting(
        (),
        list_of(host_pattern),
        "The only hosts that are allowed, with * as wildcard. Empty allows every public host; so does * alone in the "
        "list, which can name private hosts beside it.",
    )
    denied_hosts: tuple[str, ...] = setting((), list_of(host_pattern), "Hosts that are never allowed.")


@attrs.frozen
class TenantFields:
    """What the operator opened, closed and limited of the bodies of every virtual key."""

    allow: tuple[str, ...] = setting(
        (), list_of(field_path), "Opened to every key, such as vllm_xargs, which keys may not send by default."
    )
    deny: tuple[str, ...] = setting(
        (), list_of(one_field_path), "Closed to every key, such as background or response_format.type=json_schema."
    )
    limits: Mapping[str, int | None] = setting(
        {},
        field_limits,
        "The largest value of a number, or size of a list, an object (members), a text (bytes) or a schema (bytes), "
        "such as n: 8. It replaces the default of the field; null lifts it.",
    )
    media: MediaUrls = setting(MediaUrls(), section(MediaUrls), "Which URLs vLLM may fetch for virtual keys.")


@attrs.frozen
class Limits:
    """Limits that protect the process and the servers."""

    max_head_bytes: int = setting(
        65_536, whole(), "The request line and all headers of a request together.", unit="bytes", concerns="clients"
    )
    max_header_count: int = setting(200, whole(), "The headers of a request.", unit="headers", concerns="clients")
    max_body_bytes: int = setting(
        1_073_741_824,
        whole(),
        "The body of a request.",
        unit="bytes",
        concerns="clients",
        litellm="general_settings.max_request_size_mb",
    )
    max_held_body_bytes: int = setting(
        67_108_864,
        whole(),
        "A JSON body that must be buffered whole to find its model, and the part of a multipart form before its field "
        '"model".',
        unit="bytes",
        concerns="clients",
    )
    max_admin_body_bytes: int = setting(
        1_048_576,
        whole(),
        "The body of a request to the gateway's own endpoints, such as POST /key/generate.",
        unit="bytes",
        concerns="clients",
    )
    max_held_total_bytes: int = setting(
        536_870_912,
        whole(),
        "All bodies in memory at a time. Further requests wait unread for timeouts.held_body, then they are answered "
        "503 no_room_for_body. Make it at least twice max_held_body_bytes: one body goes ahead alone whatever its "
        "size.",
        unit="bytes",
        concerns="clients",
    )
    max_held_bytes_per_key: int | None = setting(
        None,
        optional(whole(), "a quarter of max_held_total_bytes"),
        "The bodies of one key in memory at a time. Its further requests wait, and those of other keys do not.",
        unit="bytes",
        concerns="clients",
    )
    max_connections: int | None = setting(
        10_000,
        optional(whole(), "as many as the open-file limit allows"),
        "Client connections at a time; for one more an idle one is closed, or it is answered 503 too_many_connections. "
        "Each needs up to two open files: where the open-file limit (ulimit -n) is too low, this limit is lowered at "
        "the start, which the log says.",
        unit="connections",
        concerns="clients",
    )
    max_connections_share: float = setting(
        0.25,
        share,
        "The share of max_connections that one address (IPv6: one /64) may take; more are answered 503 "
        "too_many_connections. Addresses of trusted_proxies, of this machine and UNIX sockets may take all.",
        concerns="clients",
    )
    min_client_rate: int | None = setting(
        500,
        optional(whole(), "any rate"),
        "The bytes in a second that a client must send of a body, counted without the framing of chunks, once "
        "timeouts.client_body is used up, and that it must read of a response that waits for it. A slower body is "
        "answered 408.",
        unit="bytes/s",
        concerns="clients",
    )
    max_spooled_form_bytes: int = setting(
        4_294_967_296,
        whole(),
        'The parts of multipart forms before their field "model" that wait in temporary files, of all requests '
        "together; more are answered 503 form_spool_full.",
        unit="bytes",
        concerns="clients",
    )
    max_concurrent_requests: int | None = setting(
        None,
        optional(whole(), "no limit"),
        "Requests in flight at one server (one address) at a time. More wait in the queue of their model for "
        "timeouts.queue; after that, or when the queue is full, they are answered 503 server_busy.",
        unit="requests",
        per_server="128",
    )
    max_queued_requests: int = setting(
        100,
        whole(0),
        "Requests that may wait for one server; the queue of a model has the places of all its servers.",
        unit="requests",
        per_server="500",
    )
    max_failed_authentications: int | None = setting(
        60,
        optional(whole(), "no limit"),
        "Failed authentications from one address (IPv6: one /64) in a minute; more are answered 429. A valid key works "
        "whatever others from its address do.",
        unit="attempts",
        concerns="clients",
    )
    max_reports: int = setting(
        4,
        whole(),
        "Reports of usage that read the database at a time, such as GET /spend/logs. Each has a thread and a "
        "connection. Others wait.",
        unit="reports",
        concerns="clients",
        reload=False,
    )
    max_reports_per_key: int = setting(
        1,
        whole(),
        "Reports at a time of one key, and of all keys of one user or one team together. Administrators have none but "
        "max_reports.",
        unit="reports",
        concerns="clients",
    )
    max_queued_reports: int = setting(
        100,
        whole(),
        "Reports that may wait; one more is answered 503 reports_busy. One key, user or team may take a quarter of the "
        "places; one more of its own is answered 429 too_many_reports.",
        unit="reports",
        concerns="clients",
    )
    max_uncounted_requests: int | None = setting(
        600,
        optional(whole(), "no limit"),
        "Requests of one key in a minute that no rpm_limit counts: read-only routes such as /v1/models and /metrics, "
        "GET /v1/responses/{id} and its cancel, and what the key reads from the admin API; and preflights of one "
        "address (IPv6: one /64) in a minute. More are answered 429. Keys that administer are not limited.",
        unit="requests",
        concerns="clients",
    )
    assumed_output_tokens: int = setting(
        1024,
        whole(),
        "The output tokens to reserve for a request that names no max_tokens, where tokens or money are limited.",
        unit="tokens",
        concerns="requests",
    )


@attrs.frozen
class Timeouts:
    """How long the gateway waits, in seconds; ``None`` waits without limit."""

    connect: float = setting(5.0, seconds(), "For a connection to a server, TLS included.", per_server="2")
    response_head: float | None = setting(
        600.0,
        optional(seconds(), "no limit"),
        "From the end of the request to the status and headers of the response.",
        per_server="1200",
    )
    idle: float | None = setting(
        300.0, optional(seconds(), "no limit"), "Between two chunks of a response.", per_server="600"
    )
    total: float | None = setting(
        None,
        optional(seconds(), "no limit"),
        "For a whole exchange with a server; tunnels are exempt.",
        litellm="litellm_settings.request_timeout",
        per_server="1800",
    )
    queue: float | None = setting(
        30.0,
        optional(seconds(), "no limit"),
        "In the queue of a model whose servers have all max_concurrent_requests in flight; of several servers, the "
        "longest.",
        per_server="60",
    )
    tunnel_idle: float | None = setting(
        300.0,
        optional(seconds(), "no limit"),
        "For a byte in either direction of a tunnel: a WebSocket, or another protocol that a request switched to. vLLM "
        "sends a ping every 20 s and closes a WebSocket whose pong does not come.",
        per_server="3600",
    )
    client_head: float = setting(
        15.0,
        seconds(),
        "For the request line and all headers of a client's request, and before them for the TLS handshake.",
        concerns="clients",
    )
    client_body: float = setting(
        60.0,
        seconds(),
        "Between two pieces of a client's body; limits.min_client_rate says how much must come.",
        concerns="clients",
    )
    held_body: float | None = setting(
        30.0,
        optional(seconds(), "no limit"),
        "For room in memory, for a body that must be read whole: see limits.max_held_total_bytes.",
        concerns="clients",
    )
    keep_alive: float = setting(
        75.0,
        seconds(),
        "For a client's next request on an idle connection; blank lines do not count.",
        concerns="clients",
    )
    redis: float = setting(
        0.25, seconds(), "For a connection to Redis, and for an answer.", concerns="Redis", reload=False
    )
    database: float = setting(
        5.0,
        seconds(),
        "For an administrative request in the database, its wait for others included; then it is undone and answered "
        "503.",
        concerns="the database",
    )
    report: float = setting(
        30.0,
        seconds(),
        "For a report of usage, or for the next part of GET /usage/report: to wait for others, and again to be read. "
        "Then it is stopped and answered 504.",
        concerns="the database",
    )


@attrs.frozen
class LedgerSettings:
    """How the usage of requests is counted and stored; times are in seconds."""

    enabled: bool = setting(True, flag, "Whether usage is recorded. Budgets and reports need it.", reload=False)
    spool_directory: str | None = setting(
        None,
        optional(
            text, "beside the SQLite file, as in twisted_vllm.sqlite3.spool; with PostgreSQL, vllm_passthrough.spool"
        ),
        "Where rows wait until the database has them: a directory on a local disk, relative to the run directory. "
        "Processes may share it or have one each.",
        reload=False,
    )
    usage_retention: float | None = setting(
        None,
        # A day: a spool that waited for longer would bring back rows that were deleted.
        optional(duration("1d"), "for ever"),
        "How long the row of a request is kept, such as 90d. Sums stay.",
        litellm="general_settings.maximum_spend_logs_retention_period",
    )
    on_spool_failure: str = setting(
        "continue",
        one_of("continue", "refuse"),
        "What happens while the spool cannot be written (a full disk). continue: requests go on, and their rows wait "
        "in memory for the database; the log says how many found no room and were lost. refuse: requests are "
        "answered 503.",
    )
    count_stream_usage: str = setting(
        "inject",
        one_of("inject", "passive"),
        "How the usage of a stream is counted whose client does not ask for it (stream_options.include_usage). inject: "
        "the gateway asks, and removes the extra event from the answer. passive: no body is changed; the gateway "
        "counts chunks and marks the figures as estimated. Multipart forms (audio) are never changed.",
        litellm="general_settings.always_include_stream_usage",
    )
    usage_headers: tuple[str, ...] = setting(
        (),
        list_of(header_name),
        "Request headers to store with each row, such as x-project.",
        litellm="litellm_settings.extra_spend_tag_headers",
    )
    request_tags: bool = setting(
        True,
        flag,
        "Whether a row keeps what its client says of the request: tags (x-litellm-tags, metadata.tags) and metadata "
        "(x-litellm-spend-logs-metadata). The tags also count in the reports by tag.",
    )
    usage_export: UsageExportSettings = setting(
        UsageExportSettings(),
        EXPORT_SECTION,
        "Files for DuckDB, ClickHouse or BigQuery: the rows of each closed day (UTC). See docs/export.md.",
    )
    usage_export_directory: str | None = setting(
        None,
        optional(text, f"{EXPORT_DIRECTORY} in the run directory"),
        "The directory of the files where usage_export names none.",
    )

    top_end_users: int = setting(
        10_000,
        whole(0, 100_000),
        "How many end users have sums of their own in a day, and in a month: those with most requests. The usage of "
        "all others is added up as (other). Rows and spend are those of each end user in any case.",
    )
    top_tags: int = setting(
        10_000,
        whole(0, 100_000),
        "Likewise tags that clients give their requests. Tags of keys always have sums of their own.",
    )

    @property
    def export(self) -> UsageExportSettings:
        """The export, with its directory."""
        found = self.usage_export
        if not self.enabled:
            return UsageExportSettings()
        directory = found.directory or self.usage_export_directory or EXPORT_DIRECTORY
        return attrs.evolve(found, directory=directory)


class _LedgerSection(Section[LedgerSettings]):
    """The section, which says which of its settings do nothing."""

    def __call__(self, value: object, place: Place, /) -> LedgerSettings:
        found = super().__call__(value, place)
        exports = found.usage_export.enabled
        if exports and not found.enabled:
            place.key("usage_export").warn("nothing is exported: passthrough.ledger.enabled is false")
        if found.usage_export_directory is not None and not exports:
            place.key("usage_export_directory").warn("nothing is exported: usage_export is not set")
        return found


@attrs.frozen
class EndUserSettings:
    """How a caller names the end user of a request."""

    headers: tuple[str, ...] = setting(
        ("x-litellm-end-user-id",),
        list_of(header_name),
        "Request headers that name the end user. The first one present wins, and wins over the body's field (user).",
    )


@attrs.frozen
class SelfServiceSettings:
    """What people may do for themselves with the keys of their users."""

    enabled: bool = setting(
        True,
        flag,
        "Whether keys of users with the role internal_user may make and change the keys of their user, and those of "
        "teams that the user administers. false leaves that to administrators; everybody still sees what is their own.",
    )
    max_keys: int | None = setting(
        50,
        optional(whole(0), "any number"),
        "Keys that one user may have made for itself, at a time.",
        unit="keys",
    )
    max_changes: int | None = setting(
        10,
        optional(whole(0), "no limit"),
        "Changes that all keys of one user may ask for in a minute. More are answered 429. Each process counts by "
        "itself.",
        unit="changes",
    )
    max_changes_per_day: int | None = setting(
        200,
        optional(whole(0), "no limit"),
        "The same in a day: each change leaves a row in the audit log.",
        unit="changes",
    )


@attrs.frozen(cache_hash=True)
class PriceList:
    """The prices of a model in US dollars, by LiteLLM's names."""

    input_cost_per_token: Decimal | None = setting(None, optional(price, "free"), "Price of a prompt token.")
    output_cost_per_token: Decimal | None = setting(
        None, optional(price, "free"), "Price of an output token, reasoning included."
    )
    cache_read_input_token_cost: Decimal | None = setting(
        None,
        optional(price, "as any prompt token"),
        "Price of a prompt token that came from the prefix cache.",
    )
    input_cost_per_second: Decimal | None = setting(
        None, optional(price, "free"), "Price of a second of audio that is transcribed."
    )
    input_cost_per_request: Decimal | None = setting(
        None, optional(price, "free"), "Price of each request that is answered."
    )

    def named(self) -> Mapping[str, Decimal | None]:
        """Return the prices by name."""
        return {name: getattr(self, name) for name in _PRICES}

    def or_else(self, default: PriceList) -> PriceList:
        """Return these prices, or the default ones if none is set."""
        return default if all(price is None for price in self.named().values()) else self

    def over(self, other: PriceList) -> PriceList:
        """Return these prices, completed by the other's."""
        others = other.named()
        return PriceList(**{name: others[name] if found is None else found for name, found in self.named().items()})


_PRICES = tuple(field.name for field in attrs.fields(PriceList))


@attrs.frozen
class KeyUpperBounds:
    """The most that a key may be given, by LiteLLM's names; ``None`` sets no bound."""

    max_budget: Decimal | None = setting(None, optional(amount(MAX_DOLLARS), "no bound"), "The budget.")
    budget_duration: str | None = setting(None, optional(period, "no bound"), "The period of the budget.")
    duration: str | None = setting(None, optional(period, "no bound"), "The time until the key expires.")
    max_parallel_requests: int | None = setting(
        None, optional(whole(0), "no bound"), "Requests in flight at a time.", unit="requests"
    )
    tpm_limit: int | None = setting(None, optional(whole(0), "no bound"), "Tokens in a minute.", unit="tokens")
    rpm_limit: int | None = setting(None, optional(whole(0), "no bound"), "Requests in a minute.", unit="requests")


#: keys may be given anything
NO_BOUNDS = KeyUpperBounds()


@attrs.frozen
class LogSettings:
    """Where and how the log is written."""

    format: str = setting(
        "auto",
        one_of("auto", "json", "text"),
        "The format of a line. auto: text on a terminal, else JSON.",
        litellm="litellm_settings.json_logs",
    )
    file: str | None = setting(
        None,
        optional(text, "standard output"),
        "The file to write, relative to where twistd is started. It is rotated.",
    )
    rotate_bytes: int = setting(100_000_000, whole(), "The size at which the file is rotated.", unit="bytes")
    keep_files: int = setting(10, whole(), "Rotated files to keep.", unit="files")
    max_unsent_lines: int | None = setting(
        600,
        optional(whole(), "no limit"),
        "Lines in a minute about requests of one key that reached no server, such as refused ones, or of one address "
        "without a key; ten times as many about all requests without a key together. What more there were is counted, "
        "and one line says it at the end of the minute. Requests of administrators always have their line.",
        unit="lines",
    )
    level: str = setting(
        "info",
        one_of(*LEVELS),
        "The lowest level that is written. PUT /config/log_level changes it until the next reload.",
    )
    requests: float = setting(
        1.0,
        request_lines,
        "Which completed requests have a line: all, failures (none that went well), or a share such as 0.1. Requests "
        "that failed, were refused or were slow (slow_request_warning) have theirs in any case. What is left out is "
        "counted, and one line a minute says it.",
        example="all",
    )
    slow_request_warning: float | None = setting(
        60.0,
        optional(seconds(), "no warnings"),
        "How long a request waits for a place, for the first byte of its answer, or for the next one, before a line "
        "at level warn names the server; and again each time as long. One line is for all requests of one route at "
        "one server.",
    )


@attrs.frozen
class DiscoverySettings:
    """How servers are found by DNS, for entries of ``model_list`` with ``discovery``."""

    interval: float = setting(
        10.0,
        seconds(),
        "A name is resolved again at the latest after this time, and earlier where DNS says that its answer is valid "
        "for less.",
    )
    timeout: float = setting(5.0, seconds(), "For all answers about one name.")
    resolver: ResolverAddress | None = setting(
        None,
        optional(resolver_address, "the resolvers of /etc/resolv.conf, after /etc/hosts", empty=True),
        "The DNS server to ask, over TCP: an address, with a port unless it is 53, such as 10.96.0.10 or "
        "127.0.0.1:5353.",
    )
    max_servers: int = setting(
        256, whole(), "Servers behind one name; of a longer answer the rest is left out.", unit="servers"
    )


@attrs.frozen
class HealthSettings:
    """How the gateway finds out whether a server works."""

    path: str = setting(
        "/health",
        url_path,
        "The path of a check, below the server's base path. Every answer but 5xx says that the server works: one that "
        "does not have this path answers 404.",
    )
    interval: float | None = setting(
        5.0,
        optional(seconds(), "no checks"),
        "How long after a check, or after a request that succeeded there, a server is checked.",
    )
    timeout: float = setting(2.0, seconds(), "How long a check may take.")
    rise: int = setting(2, whole(), "Good checks in a row after which a dead server is used again.", unit="checks")
    fall: int = setting(
        3,
        whole(),
        "Failed checks in a row after which a server counts as dead. Requests that wait there for the first byte of "
        "their answers are then sent to another.",
        unit="checks",
    )
    slow_start: float = setting(
        30.0,
        seconds(zero=True),
        "How long a server's share of the requests grows, from a tenth, after it came back. 0 gives it all at once.",
    )
    max_cooldown: float = setting(
        60.0, seconds(), "The most that router_settings.cooldown_time grows to: it doubles with each trial that fails."
    )
    scrape_metrics: bool = setting(
        False,
        flag,
        "Whether to read vllm:num_requests_waiting and vllm:kv_cache_usage_perc from each server's /metrics at every "
        "interval: with other gateways or direct clients of a server, they show what this gateway cannot count.",
    )


@attrs.frozen
class RetrySettings:
    """Which attempts are followed by another, on another server."""

    statuses: tuple[int, ...] = setting(
        (502, 503, 504),
        list_of(status),
        "A server's answers that are not relayed while another server of the model may give a better one.",
    )
    budget: float = setting(
        0.2,
        share,
        "The most retries, as a share of the requests. It keeps a fleet in trouble from getting twice the load.",
    )


@attrs.frozen
class RoutingSettings:
    """Which server gets a request, and what happens if it fails."""

    routing_strategy: str = setting(
        DEFAULT_STRATEGY,
        routing_strategy,
        "How the servers of a model share its requests. prefix: a conversation goes where its beginning is in the "
        "prefix cache, as far as the load allows. least-busy: fewest requests in flight for its weight. "
        "latency-based-routing: first bytes come soonest. session: each session (passthrough.session_header, else the "
        "key) stays on one server. round-robin: in turn, by weight. simple-shuffle: at random, by weight.",
        block="router_settings",
    )
    num_retries: int = setting(
        2,
        whole(0),
        "Further attempts, each on another server of the model, if one fails before the first byte of its answer.",
        unit="attempts",
        block="router_settings",
    )
    allowed_fails: int = setting(
        3,
        whole(0),
        "Failures of a server in a row; after one more it gets no requests for cooldown_time.",
        unit="failures",
        block="router_settings",
    )
    cooldown_time: float = setting(
        5.0,
        seconds(),
        "How long a server that failed gets no requests, before one tries it. It doubles with each trial that fails, "
        "up to passthrough.health.max_cooldown.",
        block="router_settings",
    )
    retry_after: float = setting(
        0.0, seconds(zero=True), "The pause between a failed attempt and the next.", block="router_settings"
    )
    timeout: float | None = setting(
        None,
        optional(seconds(), "no limit"),
        "For a whole exchange with a server, as passthrough.timeouts.total, which wins.",
        block="router_settings",
    )
    fallbacks: Mapping[str, tuple[str, ...]] = setting(
        {},
        fallback_lists,
        "Models to try, in order, when no server of a model can answer: [{qwen: [qwen-small]}]. The key must be "
        "allowed to use them. The answer names the model that served in x-litellm-model-group.",
        block="router_settings",
    )
    context_window_fallbacks: Mapping[str, tuple[str, ...]] = setting(
        {},
        fallback_lists,
        "Models to try, in order, when a prompt is too long for a model: [{qwen: [qwen-long]}].",
        block="router_settings",
    )
    default_fallbacks: tuple[str, ...] = setting(
        (), model_names, "Models to try, in order, for models without fallbacks.", block="router_settings"
    )
    model_group_alias: Mapping[str, str] = setting(
        {},
        aliases,
        "Further names of models: {gpt-4o: qwen}. A request that uses one is a request for the model.",
        block="router_settings",
    )


@attrs.frozen(cache_hash=True)
class Server:
    """One vLLM server.

    Attributes:
        name: the name for logs and metrics: ``host:port`` and the base path, never a credential.
        host: the host name or address to connect to.
        port: its TCP port.
        tls: whether to speak TLS to it.
        base_path: the prefix of every path, without a trailing slash and without ``/v1``: ``b""`` or ``b"/prefix"``.
        host_header: the value of ``Host``.
        api_key: the server's own key, sent as ``Authorization: Bearer``.
        timeouts: how long to wait for this server.
        max_concurrent_requests: the maximum requests in flight at its address; ``None`` means no limit.
        max_queued_requests: requests that may be queued for it.
        socket: the path of its UNIX socket; empty if it is reached by TCP.
        tls_options: how to speak TLS to it.
        address: the address to connect to, of a server that discovery found below the name `host`; ``None`` resolves
            `host` at each connection.
        kv_events: where it publishes the events of its prefix cache; None if it does not.
        kv_events_replay: where it sends them again; None if it does not.
    """

    name: str
    host: str
    port: int
    tls: bool
    base_path: bytes
    host_header: bytes
    api_key: Secret | None
    timeouts: Timeouts
    max_concurrent_requests: int | None = Limits().max_concurrent_requests
    max_queued_requests: int = Limits().max_queued_requests
    socket: str = ""
    tls_options: ServerTls = DEFAULT_TLS
    address: str | None = None
    kv_events: str | None = None
    kv_events_replay: str | None = None

    #: the scheme and authority of its URLs; for `url`, the base path follows. Of a server that discovery found it has
    #: the address, which tells it from the others of its name.
    origin: bytes = attrs.field(init=False, eq=False, repr=False)
    #: the URL that the path of a request is appended to
    url: bytes = attrs.field(init=False, eq=False, repr=False)

    @origin.default
    def _origin(self) -> bytes:
        if self.socket:
            return b"http+unix://%b" % quote(self.socket, safe="").encode("ascii")
        authority = self.host_header
        if self.address is not None:
            host = f"[{self.address}]" if ":" in self.address else self.address
            authority = f"{host}:{self.port}".encode("ascii")
        return b"%b://%b" % (b"https" if self.tls else b"http", authority)

    @url.default
    def _url(self) -> bytes:
        return self.origin + self.base_path


@attrs.frozen(cache_hash=True)
class ModelEntry:
    """One entry of ``model_list``, resolved.

    Attributes:
        model_name: the name that callers use, perhaps with wildcards (`twisted_vllm.config.name_patterns`).
        upstream_model: the name that the server uses: NAME of ``hosted_vllm/NAME``. Its wildcards stand for what those
            of `model_name` stand for.
        server: the server that runs it.
        weight: its share among entries of the same ``model_name``, above 0.
        prices: its prices; if it sets none, the default prices apply.
        order: entries with a lower number are used first, the others when none of these can serve.
        rpm: the most requests in a minute; None means no limit.
        tpm: the most tokens in a minute; None means no limit.
        strategy: the routing strategy of its ``model_name``; None for the general one.
        discovery: how servers are found below the server's name: ``dns`` or ``srv``; None if it is one server.
        model_id: its id; the servers of one service share it.
        description: its ``model_info`` as it is written, in JSON.
        log_bodies: what is kept of its prompts and answers; None says nothing.
    """

    model_name: str
    upstream_model: str
    server: Server
    weight: int = 1
    prices: PriceList = PriceList()
    order: int = 1
    rpm: int | None = None
    tpm: int | None = None
    strategy: str | None = None
    discovery: str | None = None
    model_id: str = ""
    description: bytes = b"{}"
    log_bodies: str | None = None


_NO_TLS = TlsParams()


@attrs.frozen
class Settings:
    """All settings, checked and resolved.

    The servers in the file (``model_list``, ``api_base``, ``api_key``, ``servers``) are declared in ``servers``, and
    resolved here.

    Attributes:
        default_server: serves requests for models without an entry in ``models``.
        models: the entries of ``model_list``, in order.
        usual_tls: how TLS is spoken to servers that do not say it themselves.
        callbacks: what LiteLLM's callbacks ask for.
        warnings: one line for each setting that is accepted but not used.
    """

    master_key: Secret | None = setting(
        None,
        optional(master_key, "open mode"),
        "The administrator's key, which creates virtual keys with POST /key/generate: itself, or sha256: and its "
        "SHA-256 in hex. Without one the gateway is in open mode: whoever reaches it may do everything, and it listens "
        "on this machine only.",
        block="general_settings",
        example="os.environ/LITELLM_MASTER_KEY",
        environment=("VLLM_PASSTHROUGH_MASTER_KEY", "VLLM_PASSTHROUGH_LITELLM_MASTER_KEY", "LITELLM_MASTER_KEY"),
    )
    salt_key: Secret | None = setting(
        None,
        optional(secret, "the master key", empty=True),
        "Encrypts the api_key of models that are added with POST /model/new. Set it before the master key changes: "
        "keys that were encrypted with another one cannot be read, and their models are not served. The ids of models "
        "that have no model_info.id depend on it as well.",
        block="general_settings",
        environment=("VLLM_PASSTHROUGH_SALT_KEY", "LITELLM_SALT_KEY"),
    )
    store_model_in_db: bool | None = setting(
        None,
        optional(flag, "true, and at least one server must be configured"),
        "Whether administrators may add models with POST /model/new; the database keeps them. true lets the gateway "
        "also start without any server.",
        block="general_settings",
        environment=("VLLM_PASSTHROUGH_STORE_MODEL_IN_DB", "STORE_MODEL_IN_DB"),
    )
    database_url: Secret = setting(
        Secret(DEFAULT_DATABASE_URL),
        database_url,
        "Where keys and usage are stored: postgresql://USER:PASSWORD@HOST:5432/NAME, sqlite:///FILE (relative to the "
        "run directory) or sqlite:////DIRECTORY/FILE.",
        block="general_settings",
        environment=("VLLM_PASSTHROUGH_DATABASE_URL", "DATABASE_URL"),
        reload=False,
    )
    audit_retention: float | None = setting(
        None,
        optional(duration("1d"), "for ever"),
        "How long an entry of the audit log is kept, such as 730d. PostgreSQL drops a month once all of it is older.",
    )
    enable_jwt_auth: bool | None = setting(
        False,
        optional(flag, "false"),
        "Whether callers may send a JSON Web Token of the company's issuer in place of a virtual key, which still "
        "works. It needs passthrough.jwt_public_key_url and jwt_audience.",
        block="general_settings",
    )
    litellm_jwtauth: JwtClaims = setting(
        JwtClaims(),
        section(JwtClaims, ignored=jwt.IGNORED, restricting=jwt.RESTRICTING),
        "What the claims of a token say of its caller.",
        block="general_settings",
    )
    alerting: tuple[str, ...] = setting(
        (),
        list_of(channel, lone=True),
        "Where alerts go: slack (a message for people, to SLACK_WEBHOOK_URL) and webhook (JSON of budgets for "
        "programs, to WEBHOOK_URL). Others of LiteLLM's are refused.",
        block="general_settings",
    )
    alerting_threshold: float = setting(
        300.0,
        seconds(),
        "How long a request takes, or waits for its answer, before people are told.",
        block="general_settings",
    )
    alert_types: tuple[str, ...] | None = setting(
        None,
        optional(alert_types, "all kinds"),
        "Which alerts go to slack: budget_alerts, outage_alerts (a server is dead, or back), cooldown_deployment (a "
        "server fails requests and gets none for a while), db_exceptions, failed_tracking_spend (the ledger), "
        "llm_exceptions, llm_requests_hanging, llm_too_slow.",
        block="general_settings",
    )
    alert_to_webhook_url: Mapping[str, tuple[Secret, ...]] = setting(
        {},
        urls_by_type,
        "Other URLs for single kinds of alerts to slack, one or a list each.",
        block="general_settings",
    )
    alerting_args: AlertingArgs = setting(
        AlertingArgs(),
        section(AlertingArgs, ignored=IGNORED_ARGS),
        "LiteLLM's arguments of alerts.",
        block="general_settings",
    )
    allowed_ips: tuple[IPv4Network | IPv6Network, ...] = setting(
        (),
        list_of(network),
        "Addresses and networks of the clients that are served; all others are answered 403. Behind a proxy of "
        "passthrough.trusted_proxies the client's own address counts. /health/liveliness and /health/readiness answer "
        "everybody. An empty list serves all addresses.",
        block="general_settings",
    )
    user_header_name: str | None = setting(
        None,
        optional(header_name, "none", empty=True),
        "One more request header that names the end user, after those of passthrough.end_users.headers.",
        block="general_settings",
    )
    enforce_user_param: bool | None = setting(
        False,
        optional(flag, "false"),
        "Whether a request to an inference route must name its end user: in a header of passthrough.end_users.headers "
        "or user_header_name, or in its body (user).",
        block="general_settings",
    )
    upperbound_key_generate_params: KeyUpperBounds = setting(
        NO_BOUNDS,
        section(KeyUpperBounds),
        "The most that POST /key/generate, /key/update and /key/regenerate may give a key, whoever asks. More is "
        "answered 400. A limit that a new key leaves out, or an update sets to null, is set to this bound.",
        block="litellm_settings",
    )
    max_budget: Decimal | None = setting(
        None,
        optional(amount(MAX_DOLLARS), "no budget"),
        "What all requests together may cost in one period, those of the master key included, from when it is set. "
        "More is answered 429. 0 is no budget, as in LiteLLM.",
        block="litellm_settings",
    )
    budget_duration: str | None = setting(
        None,
        optional(period, "one endless period"),
        "The period of litellm_settings.max_budget, such as 30d or 1mo.",
        block="litellm_settings",
    )
    max_end_user_budget: Decimal | None = setting(
        None,
        optional(amount(MAX_DOLLARS), "no budget"),
        "What each end user without limits of its own (POST /customer/new) may spend. Requests are read for their "
        "end user then.",
        block="litellm_settings",
    )
    max_end_user_budget_id: str | None = setting(
        None,
        optional(text, "none"),
        "The budget (POST /budget/new) whose limits hold for each end user without any; max_end_user_budget wins.",
        block="litellm_settings",
    )
    default_key_generate_params: NewKeyDefaults = setting(
        NewKeyDefaults(),
        section(NewKeyDefaults),
        "What POST /key/generate gives a key where the request has nothing.",
        block="litellm_settings",
    )
    default_internal_user_params: NewUserDefaults = setting(
        NewUserDefaults(),
        section(NewUserDefaults),
        "What POST /user/new gives a user where the request has nothing.",
        block="litellm_settings",
    )
    max_internal_user_budget: Decimal | None = setting(
        None,
        optional(amount(MAX_DOLLARS), "none"),
        "The budget of a new user with the role internal_user, where neither the request nor "
        "default_internal_user_params has one.",
        block="litellm_settings",
    )
    internal_user_budget_duration: str | None = setting(
        None,
        optional(period, "one endless period"),
        "The period of the budget of such a user, likewise.",
        block="litellm_settings",
    )
    default_team_params: NewTeamDefaults = setting(
        NewTeamDefaults(),
        section(NewTeamDefaults),
        "What POST /team/new gives a team where the request has nothing.",
        block="litellm_settings",
    )
    budget_exceeded_status_code: int = setting(
        429,
        one_number_of(400, 402, 403, 422, 429),
        "The status of the answer budget_exceeded. LiteLLM's own default is 422, which clients do not send again.",
        block="litellm_settings",
    )
    litellm_callbacks: tuple[str, ...] = setting(
        (),
        callback_names,
        "LiteLLM's callbacks: prometheus (its names in /metrics), generic_api and s3_v2 (sinks), otel, langfuse, "
        "langfuse_otel, arize_phoenix, arize, mlflow, datadog, braintrust, langsmith and others (traces by OTLP), "
        "names of callback_settings, and import paths of loggers. Any other keeps the gateway from starting.",
        name="callbacks",
        block="litellm_settings",
    )
    success_callback: tuple[str, ...] = setting(
        (),
        callback_names,
        "As callbacks, for requests that were answered below 400 alone.",
        block="litellm_settings",
    )
    failure_callback: tuple[str, ...] = setting(
        (), callback_names, "As callbacks, for the other requests alone.", block="litellm_settings"
    )
    s3_callback_params: Mapping[str, object] = setting(
        {},
        s3_params,
        "Where the callbacks s3_v2 and s3 write: s3_bucket_name, s3_path, s3_region_name, s3_endpoint_url, "
        "s3_aws_access_key_id, s3_aws_secret_access_key, s3_aws_session_token, s3_flush_interval, s3_batch_size.",
        block="litellm_settings",
    )
    turn_off_message_logging: bool = setting(
        False,
        flag,
        "Whether no text of any prompt or answer is kept, whatever passthrough.log_bodies, a model, a team or a key "
        "say: metadata is the most.",
        block="litellm_settings",
    )
    store_prompts_in_spend_logs: bool = setting(
        False,
        flag,
        "Whether prompts and answers are kept in the database, and shown with the requests of the ledger: a sink of "
        "type database named spend_logs, unless passthrough.sinks has one. passthrough.log_bodies.mode is then full, "
        "for all sinks and traces, unless it is written.",
        block="general_settings",
    )
    global_disable_no_log_param: bool = setting(
        False,
        flag,
        "Whether clients may not ask that nothing is kept of a request (x-litellm-no-log, or no-log in the body).",
        block="litellm_settings",
    )
    require_auth_for_metrics_endpoint: bool = setting(
        False,
        flag,
        "Whether GET /metrics needs an administrator's key. Without it, whoever reaches the port may read them, with "
        "numbers in place of the names of models and servers, and nothing of keys, users and teams. LiteLLM's own "
        "default is true.",
        block="litellm_settings",
    )

    listen: tuple[str, ...] = setting(
        (DEFAULT_LISTEN,),
        list_of(endpoint, lone=True),
        "Where to listen: Twisted endpoints, one or a list. tcp:4000 listens on every IPv4 address; "
        "ssl:443:privateKey=key.pem:certKey=cert.pem, unix:/run/vllm.sock and systemd:domain=INET:index=0 work as "
        "well. The colons of an IPv6 address need a backslash each. The backlog is 4096 unless the endpoint names one "
        "(tcp:4000:backlog=50). The option --listen wins over it.",
        environment=("VLLM_PASSTHROUGH_LISTEN",),
        reload=False,
    )
    workers: int | str = setting(
        1,
        process_count,
        "How many processes serve clients, which count as one: limits, metrics and changes are of all together. auto "
        "is one for each core that the gateway may use, with regard to the CPU limit of a container or a unit of "
        "systemd. Beside them, one process writes the ledger and checks the servers, and one starts the others; with "
        "1, one process does it all. The option --workers wins over it.",
        reload=False,
    )
    allow_anonymous: bool = setting(
        False, flag, "Whether a gateway without a master key may listen on addresses that other machines reach."
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        list_of(host_pattern),
        "Without a master key: hosts, with * as wildcard, by which clients may call the gateway, beside localhost and "
        "the loopback addresses; with allow_anonymous also beside every IP address. A request with another Host is "
        "answered 403, because a web page may have sent it.",
    )
    allowed_origins: tuple[str, ...] = setting(
        (),
        list_of(origin),
        "Origins such as https://console.example.com whose web pages may use the gateway's own routes (CORS) and read "
        "its own errors; * for every origin. Without a master key also the only foreign origins whose pages may use "
        "the models, and * is refused. With one, vLLM's --allowed-origins decides about its own routes.",
    )
    litellm_headers: bool = setting(
        True,
        flag,
        "Whether answers of vLLM's routes carry LiteLLM's headers: x-litellm-call-id, x-litellm-model-id, "
        "x-litellm-model-group, x-litellm-attempted-retries, and the limits and the spend of the key, such as "
        "x-litellm-key-rpm-limit, x-litellm-key-max-budget and x-litellm-key-spend.",
    )
    path_aliases: bool = setting(
        True, flag, "Whether the routes that vLLM has only below /v1 also work without it: /vllm/chat/completions."
    )
    root_routes: bool = setting(
        True,
        flag,
        "Whether vLLM's inference routes are also at the gateway's root, as in LiteLLM and vLLM: /v1/chat/completions, "
        "/engines/MODEL/chat/completions, /openai/deployments/MODEL/chat/completions. If not, they are below /vllm "
        "alone.",
    )
    tenant_routes: TenantRoutes = setting(
        TenantRoutes(),
        section(TenantRoutes),
        "Routes opened or closed to virtual keys. Without rules they may call the classes inference and read_only, and "
        "not privileged: LoRA loading, sleep, profiling, and every route that is not known. A rule is a path, "
        "/prefix/* or one of these three classes.",
    )
    tenant_fields: TenantFields = setting(
        TenantFields(),
        section(TenantFields),
        "Which fields of a body virtual keys may send, and how large these may be. By default: all ordinary "
        "fields, and none that steers a server, evades the count or reads files. A field is a top-level name, or "
        "a path such as sampling_params.extra_args or tools.type=mcp.",
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = setting(
        (),
        list_of(network),
        "Addresses and networks of proxies in front whose X-Forwarded-* headers are trusted, such as 10.0.0.0/8.",
    )
    limits: Limits = setting(Limits(), section(Limits), "Limits that protect the process and the servers.")
    timeouts: Timeouts = setting(Timeouts(), section(Timeouts), "How long the gateway waits.")
    readiness_requires_database: bool = setting(
        False,
        flag,
        "Whether /health/readiness answers 503 while the database does not answer. Without it, the body says so and "
        "the status is 200, because requests are served: a load balancer would take out every gateway at once.",
    )
    drain_delay: float = setting(
        0.0,
        seconds(zero=True),
        "How long the gateway serves on after it is told to stop (SIGTERM), while /health/readiness answers 503: time "
        "for a load balancer to take it out. After that it takes no new connections.",
    )
    drain_timeout: float = setting(
        30.0,
        seconds(zero=True),
        "How long running requests may take after that. A second SIGTERM or SIGINT ends them at once.",
    )
    revoke_running: bool = setting(
        False,
        flag,
        "Whether a running request (a stream, a WebSocket, an upload, a queued request) ends within a second when its "
        "key is blocked, deleted, replaced or expires, or its team is blocked. Without it, only the next request "
        "is refused.",
    )
    redis: RedisPlace | None = setting(
        None,
        optional(redis_url, "each process counts for itself", empty=True),
        "Where several processes count the limits of keys, users, teams, organizations and end users together: "
        "redis://USER:PASSWORD@HOST:6379/0; the master that Sentinels name: "
        "redis+sentinel://USER:PASSWORD@HOST:26379,HOST:26379/SERVICE/0?sentinel_password=PASSWORD; a Cluster: "
        "redis+cluster://USER:PASSWORD@HOST:6379,HOST:6379. With TLS write rediss; Valkey is the same. "
        "Percent-encode special characters of the passwords. "
        "Without it, N processes admit up to N times as much.",
        name="redis_url",
        # a REDIS_URL in the environment may be meant for another program
        environment=("VLLM_PASSTHROUGH_REDIS_URL",),
        litellm="router_settings.redis_url",
        reload=False,
    )
    limits_on_redis_loss: str = setting(
        "local",
        one_of("local", "refuse"),
        "What happens to requests with limits while Redis does not answer. local: each process counts for itself. "
        "refuse: they are answered 503.",
    )
    ledger: LedgerSettings = setting(
        LedgerSettings(),
        _LedgerSection(LedgerSettings, settings_of(LedgerSettings)),
        "What each request used: a row in the database, and sums by day and month that outlast it.",
    )
    end_users: EndUserSettings = setting(
        EndUserSettings(), section(EndUserSettings), "How a caller names the end user that it asks for."
    )
    self_service: SelfServiceSettings = setting(
        SelfServiceSettings(), section(SelfServiceSettings), "What people may do for themselves."
    )
    console: ConsoleSettings = setting(
        ConsoleSettings(), section(ConsoleSettings), "The console: a web page at /ui for people."
    )
    discovery: DiscoverySettings = setting(
        DiscoverySettings(), section(DiscoverySettings), "Servers that are found by DNS."
    )
    default_prices: PriceList = setting(
        PriceList(),
        section(PriceList),
        "What models cost in US dollars whose entries name no price, and those that are in no entry.",
    )
    alerts: AlertSettings = setting(
        AlertSettings(), section(AlertSettings), "Alerts to people, where LiteLLM has no setting."
    )
    log: LogSettings = setting(LogSettings(), section(LogSettings), "The log: of requests, and of the gateway itself.")
    metrics: MetricsSettings = setting(
        MetricsSettings(), section(MetricsSettings), "GET /metrics: the metrics of requests."
    )
    sinks: tuple[SinkSettings, ...] = setting(
        (),
        sinks,
        "Where log lines and finished requests go beside the log, each with a filter, a format and a bounded queue.",
        items=SINK_ITEMS,
    )
    log_bodies: LogBodiesSettings = setting(
        LogBodiesSettings(),
        section(LogBodiesSettings),
        "Which prompts and answers traces and sinks get. The log and the ledger get none.",
    )
    tracing: TracingSettings = setting(
        TracingSettings(),
        section(TracingSettings),
        "Traces of requests by OpenTelemetry, for each request one span and one for each attempt at a server. The "
        "variables OTEL_EXPORTER_OTLP_..., OTEL_TRACES_..., OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, "
        "OTEL_PROPAGATORS and OTEL_SDK_DISABLED count where the file says nothing.",
    )
    otlp_metrics: OtlpMetricsSettings = setting(
        OtlpMetricsSettings(),
        section(OtlpMetricsSettings),
        "Metrics by OpenTelemetry: what /metrics shows administrators, sent to a collector. Name and attributes of the "
        "gateway are those of tracing.",
    )
    health: HealthSettings = setting(
        HealthSettings(), section(HealthSettings), "How the gateway finds out whether a server works."
    )
    retry: RetrySettings = setting(
        RetrySettings(),
        section(RetrySettings),
        "When a request is sent to another server: while no byte of an answer reached the client, its body is in hand, "
        "and its route is safe to repeat. A server that cannot be reached, or that breaks the connection, counts too.",
    )
    jwt_public_key_url: tuple[str, ...] | None = setting(
        None,
        optional(jwt.key_set_urls, "none"),
        "Where the issuer publishes its keys: a key set (JWKS), or an OpenID configuration that names one.",
        environment=("VLLM_PASSTHROUGH_JWT_PUBLIC_KEY_URL", "JWT_PUBLIC_KEY_URL"),
    )
    jwt_audience: tuple[str, ...] | None = setting(
        None,
        optional(jwt.audiences, "none"),
        "The audiences (aud) of tokens for this gateway; a token needs one of them.",
        environment=("VLLM_PASSTHROUGH_JWT_AUDIENCE", "JWT_AUDIENCE"),
    )
    jwt_issuer: tuple[str, ...] | None = setting(
        None,
        optional(jwt.audiences, "none"),
        "The issuers (iss) whose tokens are accepted. Without it, every token counts that a key of "
        "jwt_public_key_url signed.",
        environment=("VLLM_PASSTHROUGH_JWT_ISSUER", "JWT_ISSUER"),
    )
    jwt: JwtSettings = setting(
        JwtSettings(), section(JwtSettings), "How tokens are checked, where LiteLLM has no setting."
    )
    session_header: str = setting(
        "x-session-id",
        header_name,
        "The request header that names the session, for routing_strategy: session. Without it, the key is the session.",
    )

    routing: RoutingSettings = RoutingSettings()
    default_server: Server | None = None
    models: tuple[ModelEntry, ...] = ()
    usual_tls: TlsParams = _NO_TLS
    callbacks: Callbacks = NO_CALLBACKS
    warnings: tuple[str, ...] = ()
    #: where the values were written; settings with the same values are equal
    origins: Origins = attrs.field(factory=Origins, eq=False, repr=False)

    @property
    def record_defaults(self) -> RecordDefaults:
        """What new keys, users and teams get that the request leaves out."""
        return RecordDefaults(
            self.default_key_generate_params,
            self.default_internal_user_params,
            self.default_team_params,
            self.max_internal_user_budget,
            self.internal_user_budget_duration,
        )

    @property
    def sealing_secret(self) -> Secret | None:
        """What the keys of stored models are encrypted with, and the ids of models depend on."""
        return lasting_secret(self.salt_key, self.master_key)

    @property
    def metrics_are_open(self) -> bool:
        """Whether anyone may read ``GET /metrics``, not only administrators."""
        return not self.require_auth_for_metrics_endpoint

    @property
    def end_user_headers(self) -> tuple[str, ...]:
        """The headers that name the end user, in the order in which they count."""
        own = self.end_users.headers
        return own if self.user_header_name is None else (*own, self.user_header_name)

    @property
    def servers(self) -> list[Server]:
        """All vLLM servers without duplicates, the default server first."""
        default = [self.default_server] if self.default_server is not None else []
        return list(dict.fromkeys([*default, *(entry.server for entry in self.models)]))

    @property
    def all_sinks(self) -> tuple[SinkSettings, ...]:
        """The sinks of the file, and those that LiteLLM's callbacks ask for."""
        return (*self.sinks, *self.callbacks.sinks)

    @property
    def secrets(self) -> list[str]:
        """All secrets, for the log to redact."""
        found = [self.database_url.reveal()]
        password = make_url(self.database_url.reveal()).password
        if password is not None:
            found.append(password)
        for each in self.redis.passwords if self.redis is not None else ():
            # plain, and percent-encoded
            revealed = each.reveal()
            found += [revealed, *{quote(revealed, safe=""), quote(revealed)} - {revealed}]
        if self.master_key is not None:
            found.append(self.master_key.reveal())
        if self.salt_key is not None:
            found.append(self.salt_key.reveal())
        found += [server.api_key.reveal() for server in self.servers if server.api_key is not None]
        webhooks = [self.alerts.slack_webhook_url, self.alerts.webhook_url]
        webhooks += [url for urls in self.alert_to_webhook_url.values() for url in urls]
        found += [url.reveal() for url in webhooks if url is not None]
        found += self.tracing.secrets
        found += [secret for sink in self.all_sinks for secret in sink.secrets]
        found += self.otlp_metrics.secrets
        found += self.ledger.usage_export.s3.secrets
        if self.console.oidc.client_secret is not None:
            found.append(self.console.oidc.client_secret.reveal())
        return found

    @property
    def spool_directory(self) -> Path:
        """The directory of the ledger's spool; a relative one is below the run directory."""
        if self.ledger.spool_directory is not None:
            return Path(self.ledger.spool_directory)
        url = make_url(self.database_url.reveal())
        if url.get_backend_name() == "sqlite" and url.database:
            return Path(f"{url.database}{SPOOL_SUFFIX}")
        return Path(SPOOL_NAME)
