"""The URL of Redis: where it is, and what it is told to be let in."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

import attrs

from twisted_vllm.config.place import Place, Rejected
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.shape import text

_DEFAULT_PORT = 6379
_SPELLING = "redis://USER:PASSWORD@HOST:PORT/DATABASE, or rediss:// with TLS"


@attrs.frozen
class RedisServer:
    """A Redis server.

    Attributes:
        host: its name or address.
        port: its TCP port.
        database: the number of the database on it.
        tls: whether to speak TLS to it, and to check its certificate.
        username: the user of Redis' access lists; None is its default user.
        password: that user's.
    """

    host: str
    port: int = _DEFAULT_PORT
    database: int = 0
    tls: bool = False
    username: str | None = None
    password: Secret | None = None

    @property
    def name(self) -> str:
        """What logs call it: no user, no password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.database}"


def redis_url(value: object, place: Place) -> RedisServer:
    """Check for the URL of a Redis server. Of a refused one, only the scheme is repeated: it may hold a password."""
    found = text(value, place)
    scheme, separator, _ = found.partition("://")
    if not separator or not re.fullmatch(r"[a-z][a-z0-9+.-]{0,30}", scheme):
        raise Rejected(f"must be a URL ({_SPELLING})")
    if scheme not in ("redis", "rediss"):
        raise Rejected(f"{scheme} is not supported (write {_SPELLING}; sockets, sentinels and clusters are not)")
    try:
        parts = urlsplit(found)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise Rejected("is not a valid URL (percent-encode special characters of the password)") from None
    if not host or "," in host or port == 0 or " " in found:
        raise Rejected(f"names no host, or none that can be one ({_SPELLING})")
    if parts.query or parts.fragment:
        raise Rejected("has parameters, of which there are none (percent-encode ? and # in a password)")
    database = parts.path.removeprefix("/") or "0"
    if not re.fullmatch(r"[0-9]{1,4}", database):
        raise Rejected("must end in the database's number, as in /0, or without one")
    if parts.username and parts.password is None:
        raise Rejected("names a user without a password (for a password alone: redis://:PASSWORD@HOST)")
    return RedisServer(
        host=host,
        port=port or _DEFAULT_PORT,
        database=int(database),
        tls=scheme == "rediss",
        username=unquote(parts.username) if parts.username else None,
        password=Secret(unquote(parts.password)) if parts.password else None,
    )
