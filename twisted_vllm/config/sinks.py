"""The settings of sinks, ``passthrough.sinks``: where log lines and finished requests go beside the log.

`TYPES` says which settings each type has; a new type is one row there, and one in `app.telemetry.running_sinks`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote, urlsplit

import attrs

from twisted_vllm.config.checks import checker, duration, flag, list_of, one_of, optional, seconds, text, whole
from twisted_vllm.config.checks import secret as credential
from twisted_vllm.config.declaration import Items, Required, section, setting, settings_of
from twisted_vllm.config.name_patterns import MAX_WILDCARDS, WILDCARD
from twisted_vllm.config.named_items import item_name, named_items
from twisted_vllm.config.problems import Place, Rejected, suggestion
from twisted_vllm.config.s3 import Bucket, check_key_pair, check_s3_installed, of_bucket
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.tracing import check_installed, headers, protocol
from twisted_vllm.config.web_urls import web_url

#: the events that a sink may get
REQUESTS, SUCCESSES, FAILURES, LOG = EVENTS = ("requests", "successes", "failures", "log")
#: whose refused requests a sink gets
KEYS, NOBODY = "keys", "nobody"
LEVELS = ("debug", "info", "warn", "error", "critical")
FORMATS = ("json", "event", "litellm", "text")

#: the type of the sink that keeps prompts and answers in the gateway's own database
DATABASE = "database"
#: its name where LiteLLM's setting asks for it
SPEND_LOGS = "spend_logs"

#: how long it keeps them unless the settings say so, in seconds
KEPT_FOR = 30 * 86_400.0

#: how many sinks there may be: each has a queue, and some a thread
MOST_SINKS = 32
#: where spools are unless the settings say so, below the run directory
SPOOL_DIRECTORY = "vllm_passthrough.sinks"

SYSLOG_PORTS = {"udp": 514, "tcp": 601, "tls": 6514}
#: RFC 5424 §6.2.1
FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp"),
    *("audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"),
)

_APP_NAME = re.compile(r"[\x21-\x7e]{1,48}")
_DOTTED = re.compile(r"(?:[^\W\d]\w*\.)+[^\W\d]\w*")
#: shorter parts of a URL are hardly a token, and would be struck out of every line
_SHORTEST_TOKEN = 16


@checker("pattern", "* stands for any text")
def pattern(value: object, place: Place) -> str:
    """Check for a name with wildcards."""
    found = text(value, place)
    if found.count(WILDCARD) > MAX_WILDCARDS:
        raise Rejected(f"may have {MAX_WILDCARDS} wildcards at most")
    return found


@checker("URL", "http:// or https://")
def secret_url(value: object, place: Place) -> Secret:
    """Check for the URL of a webhook, which may hold a token; no message shows it."""
    example, instead = "https://logs.example.com/in", "write headers: {Authorization: ...}"
    return Secret(web_url(text(value, place), place, example, instead=instead))


@attrs.frozen
class SyslogAddress:
    """Where syslog listens.

    Attributes:
        transport: ``unix``, ``udp``, ``tcp`` or ``tls``.
        host: the host; for ``unix`` the path of the socket.
        port: the port; 0 for ``unix``.
    """

    transport: str
    host: str
    port: int = 0


LOCAL_SYSLOG = SyslogAddress("unix", "/dev/log")


@checker("address", "unix:/PATH, udp://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT")
def syslog_address(value: object, place: Place) -> SyslogAddress:
    """Check for the address of a syslog server."""
    found = text(value, place)
    if found.startswith("unix:"):
        path = found.removeprefix("unix:").removeprefix("//")
        if not path.startswith("/") or len(path.encode()) > 107:
            raise Rejected("must name the socket by its whole path, of at most 107 bytes (such as unix:/dev/log)")
        return SyslogAddress("unix", path)
    try:
        parts = urlsplit(found)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in SYSLOG_PORTS or not host or parts.path.strip("/") or parts.query or "@" in parts.netloc:
        raise Rejected("must be unix:/PATH, udp://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT")
    return SyslogAddress(parts.scheme, host, SYSLOG_PORTS[parts.scheme] if port is None else port)


@checker("name", "visible ASCII, at most 48 characters")
def app_name(value: object, place: Place) -> str:
    """Check for the name of an application in syslog (RFC 5424 §6.2.5)."""
    found = text(value, place)
    if not _APP_NAME.fullmatch(found):
        raise Rejected("must be at most 48 visible ASCII characters without spaces")
    return found


@checker("dotted name", "module.attribute")
def dotted_name(value: object, place: Place) -> str:
    """Check for the import path of an object."""
    found = text(value, place)
    if not _DOTTED.fullmatch(found):
        raise Rejected("must be an importable module and an attribute of it (such as my_package.loggers.audit)")
    return found


@attrs.frozen
class SinkQueue:
    """How much may wait for a sink, and when it is delivered."""

    max_items: int = setting(10_000, whole(), "The most lines and requests in memory.", unit="items")
    max_bytes: int = setting(16_777_216, whole(65_536), "The most bytes in memory.", unit="bytes")
    batch_items: int = setting(512, whole(), "The most items of one delivery.", unit="items")
    batch_bytes: int = setting(1_048_576, whole(), "The most bytes of one delivery.", unit="bytes")
    linger: float = setting(1.0, seconds(), "How long items are collected for one delivery.")
    timeout: float = setting(30.0, seconds(), "How long one delivery may take.")
    max_backoff: float = setting(
        60.0, seconds(), "The longest wait between two attempts, also where the sink asks for a longer one."
    )
    max_age: float | None = setting(
        None, optional(seconds(), "no item is too old"), "Items that waited for longer are dropped."
    )


@attrs.frozen
class SinkSpool:
    """Files in which items wait as well, so that they outlive the process."""

    enabled: bool = setting(
        False,
        flag,
        "Whether items are also written to disk before the request ends. What is not delivered when the gateway ends, "
        "also by kill -9, is delivered after its next start, perhaps twice.",
    )
    directory: str | None = setting(
        None,
        optional(text, f"{SPOOL_DIRECTORY}/NAME in the run directory"),
        "The directory of the files, which processes of the same gateway share. Its mode is made 0700.",
    )
    max_bytes: int = setting(268_435_456, whole(1_048_576), "The most bytes of one process's files.", unit="bytes")


@attrs.frozen
class SinkSettings:
    """A sink."""

    name: str = setting(
        Required("a name for metrics and the log, such as audit"),
        item_name,
        "Its name in metrics and in the log.",
        example="audit",
    )
    type: str = setting(
        Required("one of stdout, file, syslog, journald, webhook, otlp, s3, database and python"),
        text,
        "What it is: stdout, file, syslog, journald, webhook, otlp, s3, database or python.",
        example="stdout",
    )
    events: tuple[str, ...] = setting(
        (REQUESTS, LOG),
        list_of(one_of(*EVENTS)),
        "What it is told. requests: each finished request. successes: those that were answered below 400. failures: "
        "the others. log: the gateway's own log lines.",
    )
    level: str = setting("info", one_of(*LEVELS), "The lowest level of the log lines.")
    format: str = setting(
        "json",
        one_of(*FORMATS),
        "json: as a JSON log. event: requests with all that is known of them, prompts too where log_bodies keeps them. "
        "litellm: requests as LiteLLM's StandardLoggingPayload. text: as the log on a terminal, without colours. Log "
        "lines are JSON in all but text.",
    )
    models: tuple[str, ...] = setting(
        (), list_of(pattern), "The only models whose requests are told; * stands for any text. Empty means all."
    )
    teams: tuple[str, ...] = setting((), list_of(pattern), "Likewise the ids of teams.")
    keys: tuple[str, ...] = setting(
        (), list_of(pattern), "Likewise keys: by name, as the log shows it, or by the beginning of the hash."
    )
    gateway_routes: bool = setting(
        False, flag, "Whether requests to the gateway's own routes (the admin API, /metrics) are told as well."
    )
    refused: str = setting(
        KEYS,
        one_of("all", KEYS, NOBODY),
        "Whose requests are told that reached no server, as a limit was reached or a model is not known. keys leaves "
        "out strangers, who could fill the queue.",
    )
    queue: SinkQueue = setting(SinkQueue(), section(SinkQueue), "How much may wait for it.")
    spool: SinkSpool = setting(SinkSpool(), section(SinkSpool), "Files in which items wait as well.")

    path: str | None = setting(
        None, optional(text, "none"), "file: the file, relative to where twistd is started. It is rotated."
    )
    rotate_bytes: int = setting(100_000_000, whole(), "file: the size at which the file is rotated.", unit="bytes")
    keep_files: int = setting(10, whole(0), "file: rotated files to keep.", unit="files")
    address: SyslogAddress | None = setting(
        None,
        optional(syslog_address, "unix:/dev/log"),
        "syslog: where it listens: unix:/dev/log, udp://HOST:514, tcp://HOST:601 or tls://HOST:6514.",
    )
    facility: str = setting("daemon", one_of(*FACILITIES), "syslog: the facility.")
    app_name: str = setting("vllm-passthrough", app_name, "syslog and journald: the name of the program.")
    socket: str = setting("/run/systemd/journal/socket", text, "journald: the socket of the journal.")
    url: Secret | None = setting(
        None,
        optional(secret_url, "none; for otlp OTEL_EXPORTER_OTLP_LOGS_ENDPOINT, else a collector on this machine"),
        "webhook: where batches are posted. It is never shown. otlp: where log records go: for http/protobuf the whole "
        "URL, with /v1/logs; for grpc without a path.",
    )
    headers: Mapping[str, Secret] = setting(
        {}, headers, "webhook, otlp: headers of each request, such as Authorization: os.environ/NAME."
    )
    protocol: str | None = setting(
        None,
        optional(protocol, "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL, else http/protobuf"),
        "otlp: protobuf over HTTP, or gRPC.",
    )
    secret: Secret | None = setting(
        None,
        optional(credential, "batches are not signed"),
        "webhook: signs each batch: X-Vllm-Passthrough-Signature: t=UNIX-SECONDS,v1=HEX, the HMAC-SHA256 of the time, "
        "a dot and the body as it is sent.",
    )
    body: str = setting(
        "array",
        one_of("array", "lines", "single"),
        "webhook: a JSON array, JSON lines, or one request for each item.",
    )
    compression: str = setting("none", one_of("none", "gzip"), "webhook, otlp: how the body is compressed.")
    ca_file: str | None = setting(
        None,
        optional(text, "the system's authorities"),
        "webhook, otlp, s3, and syslog by TLS: the file, in PEM, with the authorities that the certificate is checked "
        "against.",
    )
    bucket: str | None = of_bucket("bucket")
    prefix: str = of_bucket(
        "prefix",
        "what the keys of objects begin with. The date, the time and a random name follow: "
        "PREFIX2026-11-30/17-05-09-0f3a….jsonl.gz.",
    )
    endpoint_url: str | None = of_bucket("endpoint_url")
    region: str | None = of_bucket("region")
    access_key_id: Secret | None = of_bucket("access_key_id")
    secret_access_key: Secret | None = of_bucket("secret_access_key")
    session_token: Secret | None = of_bucket("session_token")
    path_style: bool = of_bucket("path_style")
    object: str | None = setting(
        None,
        optional(dotted_name, "none"),
        "python: the import path of an ILogObserver, or of an object with LiteLLM's log_success_event, "
        "async_log_success_event, log_failure_event or async_log_failure_event.",
    )

    keep_for: float | None = setting(
        None,
        optional(duration("1h"), "30d"),
        "database: how long prompts and answers are kept; never longer than ledger.usage_retention.",
    )
    max_stored_bytes: int = setting(
        1_073_741_824,
        whole(1_048_576),
        "database: the most bytes of all prompts and answers, compressed. Beyond it the oldest go.",
        unit="bytes",
    )

    #: where the module of `object` is looked for first: the directory of the configuration file
    import_from: str = ""
    #: of ``otlp``: the gateway's name and attributes, which are those of its traces
    service_name: str = ""
    resource: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def spool_path(self) -> str:
        """The directory of its spool; a relative one is below the run directory."""
        return self.spool.directory or f"{SPOOL_DIRECTORY}/{self.name}"

    @property
    def gets_contents(self) -> bool:
        """Whether it takes prompts and answers out of the gateway, where they are kept."""
        return self.type == "python" or self.format in ("event", "litellm")

    @property
    def as_bucket(self) -> Bucket:
        """The bucket of a sink of type ``s3``."""
        return Bucket(**{each.attribute: getattr(self, each.attribute) for each in settings_of(Bucket)})

    @property
    def secrets(self) -> list[str]:
        """What the log must not show."""
        found = self.as_bucket.secrets
        if self.secret is not None:
            found.append(self.secret.reveal())
        for value in self.headers.values():
            whole_value = value.reveal()
            found += [each for each in (whole_value, whole_value.rpartition(" ")[2]) if len(each) >= 8]
        if self.url is not None:
            found += _tokens(self.url.reveal())
        return list(dict.fromkeys(found))


@attrs.frozen
class SinkType:
    """The settings and formats of a type of sink.

    Attributes:
        needs: the settings that it cannot do without.
        takes: its other settings, beside those of all sinks.
        formats: its formats.
    """

    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    formats: tuple[str, ...] = FORMATS


#: the types
TYPES: Mapping[str, SinkType] = {
    "stdout": SinkType(),
    "file": SinkType(("path",), ("rotate_bytes", "keep_files")),
    "syslog": SinkType((), ("address", "facility", "app_name", "ca_file")),
    "journald": SinkType((), ("socket", "app_name")),
    "webhook": SinkType(
        ("url",), ("headers", "secret", "body", "compression", "ca_file"), ("json", "event", "litellm")
    ),
    "otlp": SinkType((), ("url", "headers", "protocol", "compression", "ca_file"), ("json", "event")),
    "s3": SinkType(
        ("bucket",),
        (
            *("prefix", "endpoint_url", "region", "access_key_id", "secret_access_key", "session_token"),
            *("path_style", "ca_file"),
        ),
        ("json", "event", "litellm"),
    ),
    DATABASE: SinkType((), ("keep_for", "max_stored_bytes"), ("json",)),
    "python": SinkType(("object",), (), ("json",)),
}

#: the settings that not all types have
_OF_TYPES = frozenset(name for each in TYPES.values() for name in (*each.needs, *each.takes))

SINK_SECTION = section(SinkSettings)
_DEFAULTS = {each.attribute: each.default for each in settings_of(SinkSettings)}


@checker("list of sinks")
def sinks(value: object, place: Place) -> tuple[SinkSettings, ...]:
    """Check for sinks with names of their own."""

    def read(content: object, here: Place) -> SinkSettings | None:
        sink = here.attempt(SINK_SECTION, content)
        if sink is not None:
            check_sink(sink, content if isinstance(content, dict) else {}, here)
            if sink.type == DATABASE:
                sink = attrs.evolve(sink, events=tuple(each for each in sink.events if each != LOG))
        return sink

    return named_items(value, place, "sink", MOST_SINKS, read)


def check_sink(sink: SinkSettings, written: Mapping[object, object], place: Place) -> None:
    """Report settings that its type needs and that are missing, and those that it does not take.

    Args:
        sink: the sink.
        written: the settings that were written, by name.
        place: its place.
    """
    kind = TYPES.get(sink.type)
    if kind is None:
        known = ", ".join(TYPES)
        place.key("type").refuse(f"must be one of {known}{suggestion(sink.type, TYPES)}")
        return
    for name in kind.needs:
        if getattr(sink, name) is None and not place.report.refused_below(place.key(name).path):
            place.key(name).refuse(f"is missing (a sink of type {sink.type} needs it)")
    for given in written:
        is_others = given in _OF_TYPES and given not in (*kind.needs, *kind.takes)
        if is_others and getattr(sink, str(given)) != _DEFAULTS[str(given)]:
            place.key(given).refuse(f"does not belong to a sink of type {sink.type} (remove it, or change the type)")
    if sink.format not in kind.formats and "format" in written:
        place.key("format").refuse(f"must be one of {', '.join(kind.formats)} for a sink of type {sink.type}")
    if not sink.events and not place.report.refused_below(place.key("events").path):
        place.key("events").refuse("is empty, so that it would be told nothing (remove the sink, or name some)")
    if sink.type == DATABASE and LOG in sink.events and "events" in written:
        place.key("events").refuse("has log, but a database keeps prompts and answers alone (take log out)")
    check_key_pair(sink.as_bucket, place)
    if sink.type == "s3":
        check_s3_installed(place)
    if sink.type == "otlp":
        check_installed(place)


def _tokens(url: str) -> list[str]:
    """Return the parts of a URL that may be tokens: long segments of the path, and values of the query."""
    parts = urlsplit(url)
    found = [segment for segment in parts.path.split("/") if len(segment) >= _SHORTEST_TOKEN]
    found += [unquote(segment) for segment in found if "%" in segment]
    found += [value for _, value in parse_qsl(parts.query) if len(value) >= 8]
    if found:
        # segments that are too short for themselves
        found.append(parts.path.lstrip("/"))
    return found


SINK_ITEMS = Items(SINK_SECTION, "[]")
