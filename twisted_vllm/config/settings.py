"""What the operator decided, as plain frozen values: the result of loading, and what the rest is given."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network

import attrs

from twisted_vllm.config.redis import RedisServer
from twisted_vllm.config.secret import Secret


@attrs.frozen
class Timeouts:
    """How long the gateway waits, in seconds; ``None`` waits without limit.

    Attributes:
        connect: for a TCP (and TLS) connection to a vLLM server.
        response_head: from the end of the request to the head of the response.
        idle: between two pieces of a response.
        total: for the whole exchange; a tunnel is none.
        tunnel_idle: for a byte in either direction of a tunnel: a WebSocket, or another protocol that a request
            switched to.
        queue: for a server that has its ``max_concurrent_requests`` in work.
        client_head: for the whole head of a client's request.
        client_body: between two pieces of a client's body.
        keep_alive: for a client's idle connection.
        redis: for an answer of Redis, and for a connection to it.
    """

    connect: float = 5.0
    response_head: float | None = 600.0
    idle: float | None = 300.0
    total: float | None = None
    queue: float | None = 30.0
    tunnel_idle: float | None = 300.0
    client_head: float = 15.0
    client_body: float = 60.0
    keep_alive: float = 75.0
    redis: float = 0.25


@attrs.frozen(cache_hash=True)
class Server:
    """One vLLM server as the gateway reaches it.

    Attributes:
        name: the name for logs and metrics: ``host:port`` and the base path, never a credential.
        host: the host name or address to connect to.
        port: its TCP port.
        tls: whether to speak TLS to it.
        base_path: what stands before every path, without a trailing slash and without ``/v1``: ``b""`` or
            ``b"/prefix"``.
        host_header: the value of ``Host``.
        api_key: the server's own key, sent as ``Authorization: Bearer``.
        timeouts: the waiting times for this server.
        max_concurrent_requests: in work at its address, at a time; ``None`` is no cap.
        max_queued_requests: that may wait for that.
    """

    name: str
    host: str
    port: int
    tls: bool
    base_path: bytes
    host_header: bytes
    api_key: Secret | None
    timeouts: Timeouts
    max_concurrent_requests: int | None = None
    max_queued_requests: int = 100

    @property
    def url(self) -> bytes:
        """The URL that the path of a request is appended to."""
        return b"%b://%b%b" % (b"https" if self.tls else b"http", self.host_header, self.base_path)


@attrs.frozen
class PriceList:
    """What a model costs, in US dollars, by LiteLLM's names; what is None costs nothing.

    Attributes:
        input_cost_per_token: for a token of the prompt.
        output_cost_per_token: for a token of the answer, reasoning included.
        cache_read_input_token_cost: for a token of the prompt that came from the prefix cache; None: as any other.
        input_cost_per_second: for a second of audio that was read.
        input_cost_per_request: for an answer at all.
    """

    input_cost_per_token: Decimal | None = None
    output_cost_per_token: Decimal | None = None
    cache_read_input_token_cost: Decimal | None = None
    input_cost_per_second: Decimal | None = None
    input_cost_per_request: Decimal | None = None

    def named(self) -> Mapping[str, Decimal | None]:
        """Return the prices by name."""
        return {field.name: getattr(self, field.name) for field in attrs.fields(PriceList)}


@attrs.frozen
class ModelEntry:
    """One row of ``model_list``.

    Attributes:
        model_name: the name that callers use.
        upstream_model: the name that the server uses: NAME of ``hosted_vllm/NAME``.
        server: where it runs.
        weight: its share among entries of the same ``model_name``, above 0.
        prices: what it costs; where it names no price at all, the default prices hold.
    """

    model_name: str
    upstream_model: str
    server: Server
    weight: int = 1
    prices: PriceList = PriceList()


@attrs.frozen
class TenantRoutes:
    """Routes that the operator opened to, or took from, every virtual key: paths, ``prefix/*`` and class names."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


@attrs.frozen
class LogSettings:
    """Where and how the log is written.

    Attributes:
        format: ``json``, ``text``, or ``auto``: text on a terminal, else JSON.
        file: the file to write, rotated; ``None`` is standard output.
        rotate_bytes: the size in bytes at which the file is rotated.
        keep_files: how many rotated files are kept.
        level: the lowest level written: ``debug``, ``info``, ``warn``, ``error`` or ``critical``.
    """

    format: str = "auto"
    file: str | None = None
    rotate_bytes: int = 100_000_000
    keep_files: int = 10
    level: str = "info"


@attrs.frozen
class LedgerSettings:
    """How what requests used is counted and kept.

    Attributes:
        enabled: whether there is a ledger; budgets need it.
        spool_directory: where rows are until the database has them; None is beside the database's file, or in the run
            directory where the database is a server.
        usage_retention: the age in seconds at which a request's row is deleted; None keeps all. Sums stay.
        on_spool_failure: while the spool cannot be written: ``continue`` keeps rows in memory, ``refuse`` takes no
            requests.
        count_stream_usage: ``inject`` asks vLLM for the usage of a stream where the client did not, and takes it out
            again; ``passive`` changes no body and counts the chunks of such a stream.
        usage_headers: the request headers that are noted, in lower case.
    """

    enabled: bool = True
    spool_directory: str | None = None
    usage_retention: float | None = None
    on_spool_failure: str = "continue"
    count_stream_usage: str = "inject"
    usage_headers: tuple[str, ...] = ()


@attrs.frozen
class EndUserSettings:
    """How a caller says for whom it asks.

    Attributes:
        headers: the request headers that name the end user, in lower case, the first one present winning; they win
            over what the body says.
    """

    headers: tuple[str, ...] = ("x-litellm-end-user-id",)


@attrs.frozen
class Limits:
    """Caps that protect the process.

    Attributes:
        max_head_bytes: of a request's line and headers together, in bytes.
        max_header_count: of a request's headers.
        max_body_bytes: of a request's body, in bytes.
        max_held_body_bytes: of a JSON body that must be held whole to find its model, and of what of a form comes
            before its field "model", in bytes.
        max_admin_body_bytes: of a body sent to the admin API, in bytes.
        max_connections: of clients, at a time; ``None`` is no cap.
        max_concurrent_requests: in work at one server, at a time; ``None`` is no cap.
        max_queued_requests: that may wait for one server.
        max_failed_authentications: of keys that are not valid from one address in a minute; ``None`` is no cap.
        assumed_output_tokens: of an answer whose request names no most, to be reserved where tokens or money are
            limited.
    """

    max_head_bytes: int = 65_536
    max_header_count: int = 200
    max_body_bytes: int = 1_073_741_824
    max_held_body_bytes: int = 67_108_864
    max_admin_body_bytes: int = 1_048_576
    max_connections: int | None = 10_000
    max_concurrent_requests: int | None = None
    max_queued_requests: int = 100
    max_failed_authentications: int | None = 60
    assumed_output_tokens: int = 1024


@attrs.frozen
class Settings:
    """Everything that was configured, checked and resolved.

    Attributes:
        listen: Twisted endpoint strings.
        master_key: the administrator's key; ``None`` is open mode.
        allow_anonymous: whether open mode may listen on other addresses than loopback.
        database_url: an SQLAlchemy URL (``sqlite:///FILE`` or ``postgresql+psycopg://…``); it may hold a password.
        default_server: what serves a request that no entry of ``models`` names (``HOSTED_VLLM_API_BASE``).
        models: the rows of ``model_list``, in order.
        path_aliases: whether OpenAI's and Anthropic's routes work without their ``/v1``.
        tenant_routes: routes opened to, or taken from, every virtual key.
        trusted_proxies: networks whose ``X-Forwarded-*`` headers are believed.
        limits: caps.
        timeouts: waiting times, before a server's own overrides.
        drain_delay: seconds at shutdown for which the gateway serves on, and says that it is not ready.
        drain_timeout: seconds that running requests are given at shutdown.
        revoke_running: whether running requests end when their key is not valid any more.
        log: the log.
        ledger: how use is counted.
        end_users: how a caller says for whom it asks.
        default_prices: what models cost whose entries name no price, or that no entry names.
        redis: where processes count limits together; ``None`` has each count for itself.
        limits_on_redis_loss: what happens to requests while Redis does not answer: ``local``, each process counts for
            itself, or ``refuse``.
        metrics_are_open: whether everybody may read the gateway's metrics, and not administrators alone.
        warnings: one line each on what was accepted and is not used.
    """

    listen: tuple[str, ...]
    master_key: Secret | None
    allow_anonymous: bool
    database_url: Secret
    default_server: Server | None
    models: tuple[ModelEntry, ...]
    path_aliases: bool = True
    tenant_routes: TenantRoutes = TenantRoutes()
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    drain_delay: float = 0.0
    drain_timeout: float = 30.0
    revoke_running: bool = False
    log: LogSettings = LogSettings()
    ledger: LedgerSettings = LedgerSettings()
    end_users: EndUserSettings = EndUserSettings()
    default_prices: PriceList = PriceList()
    redis: RedisServer | None = None
    limits_on_redis_loss: str = "local"
    metrics_are_open: bool = True
    warnings: tuple[str, ...] = ()
