"""URLs of vLLM servers, the database and Redis. Messages repeat no more than a scheme: a URL may hold a password."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import AddressValueError, IPv6Address, ip_address
from urllib.parse import SplitResult, urlsplit

import attrs
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from twisted_vllm.config.checks import checker, text
from twisted_vllm.config.problems import Place, Rejected
from twisted_vllm.config.secret import Secret

#: a scheme that a message may repeat
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,30}")

_DEFAULT_PORTS = {"http": 80, "https": 443}
_EXAMPLE_BASE = "http://gpu-1:8000"
_EXAMPLE_SOCKET = "unix:/run/vllm.sock"
#: bytes of a socket's path (unix(7): sun_path, with the zero byte at its end)
_MAX_SOCKET = 107
#: RFC 1123 names, and the underscore that container networks use
_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?\.?")
#: RFC 3986 §3.3, without empty segments
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+)*")
_SOCKET = re.compile(r"(?:/[^/?#%@]+)+")
#: what makes no difference after the path of a socket
_END = re.compile(r"(?:/|/v1)+\Z")
_DOTS = re.compile(r"/(?:\.|%2[Ee]){1,2}(?:/|$)")

_POSTGRESQL = "postgresql+psycopg"
#: other spellings of SQLAlchemy's ``postgresql+psycopg``
_DATABASE_SCHEMES = {"postgres": _POSTGRESQL, "postgresql": _POSTGRESQL, _POSTGRESQL: _POSTGRESQL, "sqlite": "sqlite"}
#: parameters of Prisma, LiteLLM's database client, that PostgreSQL's own client refuses
_PRISMA_ONLY = frozenset(
    {"schema", "connection_limit", "pool_timeout", "socket_timeout", "pgbouncer", "statement_cache_size", "sslaccept"}
)

_DNS_PORT = 53
_MAX_PORT = 65_535
#: ``[IPv6]``, ``[IPv6]:PORT`` or ``HOST:PORT``
_HOST_AND_PORT = re.compile(r"(?:\[([0-9a-fA-F:.]{2,45})\]|([^:\[\]]+))(?::([0-9]{1,5}))?")

_REDIS_PORT = 6379


@attrs.frozen
class Address:
    """The address of a server, independent of the spelling of its ``api_base``.

    Attributes:
        tls: whether to speak TLS.
        host: a name in lower case, or an address without brackets.
        port: the TCP port.
        base_path: the prefix of every path, without a trailing slash and without ``/v1``.
        socket: the path of a UNIX socket; empty for a TCP port.
    """

    tls: bool
    host: str
    port: int
    base_path: str
    socket: str = ""

    @property
    def name(self) -> str:
        """The name for logs: ``host:port`` or ``unix:/path/of/socket``, and the base path."""
        if self.socket:
            return f"unix:{self.socket}{f':{self.base_path}' if self.base_path else ''}"
        return f"{self._bracketed}:{self.port}{self.base_path}"

    @property
    def url(self) -> str:
        """The ``api_base`` in its canonical form."""
        return self.name if self.socket else f"{self._scheme}://{self.name}"

    @property
    def host_header(self) -> bytes:
        """The value of ``Host``, without the scheme's default port (RFC 9110 §7.2)."""
        usual = self.port == self.default_port
        return (self._bracketed if usual else f"{self._bracketed}:{self.port}").encode("ascii")

    @property
    def default_port(self) -> int:
        """The port that the scheme has."""
        return _DEFAULT_PORTS[self._scheme]

    @property
    def _scheme(self) -> str:
        return "https" if self.tls else "http"

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def is_name(host: str) -> bool:
    """Return whether a host is a name, not an address."""
    try:
        ip_address(host)
    except ValueError:
        return True
    return False


@attrs.frozen
class ResolverAddress:
    """The address and the port of a DNS server."""

    host: str
    port: int = _DNS_PORT


@checker("address", "an IP address, and a port unless it is 53")
def resolver_address(value: object, place: Place) -> ResolverAddress:
    """Check for the address of a DNS server: ``10.96.0.10``, ``127.0.0.1:5353``, ``[fd00::a]:5353`` or ``fd00::a``."""
    found = text(value, place)
    host, port = found, str(_DNS_PORT)
    if (parts := _HOST_AND_PORT.fullmatch(found)) is not None:
        host, port = parts[1] or parts[2], parts[3] or port
    if is_name(host) or not 0 < int(port) <= _MAX_PORT:
        raise Rejected("must be the address of a DNS server (such as 10.96.0.10, 127.0.0.1:5353 or [fd00::a]:53)")
    return ResolverAddress(host, int(port))


@checker("URL", "http://, https:// or unix:")
def api_base(value: object, place: Place) -> Address:
    """Check for the URL of a vLLM server; a trailing ``/`` or ``/v1`` makes no difference.

    ``unix:/run/vllm.sock`` is the server at a UNIX socket; a base path follows a second colon, as in nginx.
    No message repeats the URL: it may contain a password.
    """
    found = text(value, place)
    if re.search(r"[^\x21-\x7e]|\\", found):
        raise Rejected("holds a space, a backslash or a character outside ASCII (write the URL in its ASCII form)")
    scheme, separator, _ = found.partition("://")
    if found.lower().startswith("unix:"):
        return _unix(found[5:])
    if re.match(r"(?i)http\+unix:|https?://unix:", found):
        raise Rejected(f"is another program's spelling of a UNIX socket (write {_EXAMPLE_SOCKET})")
    if not separator or scheme.lower() not in _DEFAULT_PORTS:
        raise Rejected(f"must begin with http://, https:// or unix: (such as {_EXAMPLE_BASE} or {_EXAMPLE_SOCKET})")
    try:
        parts = urlsplit(found)
        port = parts.port
    except ValueError:
        raise Rejected(f"is not a URL with a valid host and port (such as {_EXAMPLE_BASE})") from None
    if "@" in parts.netloc:
        raise Rejected("must not hold a user name or a password (put the server's key into api_key)")
    if "?" in found or "#" in found:
        raise Rejected("must not have a query or a fragment (end it before the '?' or '#')")
    if port == 0:
        raise Rejected("must have a port from 1 to 65535, or none")
    return Address(
        tls=parts.scheme == "https",
        host=_host(parts),
        port=port or _DEFAULT_PORTS[parts.scheme],
        base_path=_base_path(parts.path),
    )


def _unix(found: str) -> Address:
    """Return the address of ``unix:``, which was cut off; ``unix://`` before the path is the same."""
    socket, _, base = found.removeprefix("//").partition(":")
    if not base:
        socket = _END.sub("", socket)
    if not _SOCKET.fullmatch(socket) or _DOTS.search(socket):
        raise Rejected(
            f"must name the whole path of the socket, as it is in the file system (such as {_EXAMPLE_SOCKET})"
        )
    if len(socket) > _MAX_SOCKET:
        raise Rejected(f"has a path of more than {_MAX_SOCKET} bytes, which no UNIX socket can have")
    path = _base_path(base)
    if base and not path:
        return _unix(socket)
    # What the server sees in Host, and may redirect to.
    return Address(tls=False, host="localhost", port=80, base_path=path, socket=socket)


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    if not host:
        raise Rejected(f"has no host (such as {_EXAMPLE_BASE})")
    if parts.netloc.startswith("["):
        try:
            address = IPv6Address(host)
        except AddressValueError:
            raise Rejected("has an IPv6 address that is not valid") from None
        if address.scope_id is not None:
            raise Rejected("has an IPv6 address with a zone, which is not supported (use another address)")
        return str(address)
    if not _HOST.fullmatch(host):
        raise Rejected(f"has a host that is not a valid name or address (such as {_EXAMPLE_BASE})")
    return host


def _base_path(path: str) -> str:
    base = path.rstrip("/").removesuffix("/v1").rstrip("/")
    if not _PATH.fullmatch(base) or _DOTS.search(base):
        raise Rejected("has a path with empty segments, dot segments or characters that need percent-encoding")
    return base


@checker("URL", "postgresql:// or sqlite://")
def database_url(value: object, place: Place) -> Secret:
    """Check for a PostgreSQL or SQLite URL. Of a refused one, only the scheme is repeated: it may hold a password."""
    found = text(value, place)
    scheme, separator, rest = found.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        raise Rejected("must be a URL (postgresql://USER:PASSWORD@HOST/NAME or sqlite:///FILE)")
    if scheme not in _DATABASE_SCHEMES:
        raise Rejected(f"{scheme} is not supported (write postgresql://USER:PASSWORD@HOST/NAME or sqlite:///FILE)")
    normal = f"{_DATABASE_SCHEMES[scheme]}://{rest}"
    try:
        url = make_url(normal)
    except (ArgumentError, ValueError):
        raise Rejected("is not a valid URL (percent-encode special characters of the password)") from None
    if scheme == "sqlite":
        if not rest.startswith("/") or not url.database:
            raise Rejected("names no file (write sqlite:///FILE, or sqlite:////DIRECTORY/FILE for an absolute path)")
    elif foreign := sorted(_PRISMA_ONLY & url.query.keys()):
        raise Rejected(f"has parameters that PostgreSQL does not know: {', '.join(foreign)} (remove them)")
    return Secret(normal)


def describe_database(url: Secret) -> str:
    """Return the kind and place of a database, without the user's name and password."""
    parsed: URL = make_url(url.reveal())
    if parsed.get_backend_name() == "sqlite":
        return f"SQLite, file {parsed.database}"
    host = parsed.host or "the local socket"
    return f"PostgreSQL, {host}{f':{parsed.port}' if parsed.port else ''}, database {parsed.database or '(default)'}"


@attrs.frozen
class RedisServer:
    """A Redis server, or one that speaks its protocol, as Valkey does.

    Attributes:
        host: its name or address.
        port: its TCP port.
        database: the number of the database on it.
        tls: whether to speak TLS to it and check its certificate.
        username: the user in Redis' access control lists; ``None`` means the default user.
        password: that user's password.
    """

    host: str
    port: int = _REDIS_PORT
    database: int = 0
    tls: bool = False
    username: str | None = None
    password: Secret | None = None

    @property
    def name(self) -> str:
        """The name for logs: without user and password."""
        return f"{'rediss' if self.tls else 'redis'}://{self.address}/{self.database}"

    @property
    def address(self) -> str:
        """``host:port``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def passwords(self) -> Sequence[Secret]:
        """What no log may show."""
        return () if self.password is None else (self.password,)
