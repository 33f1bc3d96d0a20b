"""Where Redis is: one server, the master that Sentinels name, or a Cluster. Messages repeat at most a URL's scheme."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import parse_qsl, unquote

import attrs

from twisted_vllm.config.checks import checker, text
from twisted_vllm.config.problems import Place, Rejected
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.urls import RedisServer

_PORT, _SENTINEL_PORT = 6379, 26379
_MAX_PORT = 65_535
#: more than anybody has of Sentinels, and enough nodes of a Cluster to find the others by
MAX_NODES = 32

_ONE = "redis://USER:PASSWORD@HOST:PORT/DATABASE"
_SENTINEL = "redis+sentinel://USER:PASSWORD@HOST:26379,HOST:26379/SERVICE/DATABASE"
_CLUSTER = "redis+cluster://USER:PASSWORD@HOST:PORT,HOST:PORT"
_SPELLINGS = {"": _ONE, "sentinel": _SENTINEL, "cluster": _CLUSTER}
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,30}")
#: Valkey's own spellings mean the same
_KNOWN_SCHEME = re.compile(r"(?:redis|valkey)(s?)(?:\+(sentinel|cluster))?")
#: login, hosts, path, query and fragment; urllib takes no list of hosts with IPv6 addresses
_PARTS = re.compile(r"(?:([^/?#]*)@)?([^/?#@]*)([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
_NODE = re.compile(
    r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?))(?::([0-9]{1,5}))?"
)
#: the characters that Sentinel allows in the name of a master
_SERVICE = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SENTINEL_LOGIN = ("sentinel_username", "sentinel_password")


@attrs.frozen
class RedisSentinels:
    """The master that Sentinels name.

    Attributes:
        sentinels: where the Sentinels are, and how to log in to them.
        service: what they call the master.
        master: how to log in to the master; its host and port are those of the first Sentinel and mean nothing.
    """

    sentinels: tuple[RedisServer, ...]
    service: str
    master: RedisServer

    @property
    def name(self) -> str:
        """The name for logs: without users and passwords."""
        nodes = ",".join(each.address for each in self.sentinels)
        scheme = "rediss" if self.master.tls else "redis"
        return f"{scheme}+sentinel://{nodes}/{self.service}/{self.master.database}"

    @property
    def passwords(self) -> Sequence[Secret]:
        """What no log may show."""
        return (*self.master.passwords, *self.sentinels[0].passwords)


@attrs.frozen
class RedisCluster:
    """A Redis Cluster.

    Attributes:
        nodes: the nodes that are asked for the others, and how to log in to all.
    """

    nodes: tuple[RedisServer, ...]

    @property
    def name(self) -> str:
        """The name for logs: without user and password."""
        return f"{'rediss' if self.nodes[0].tls else 'redis'}+cluster://{','.join(each.address for each in self.nodes)}"

    @property
    def passwords(self) -> Sequence[Secret]:
        """What no log may show."""
        return self.nodes[0].passwords


RedisPlace = RedisServer | RedisSentinels | RedisCluster


@checker("URL", "redis://, redis+sentinel:// or redis+cluster://, each with rediss for TLS")
def redis_url(value: object, place: Place) -> RedisPlace:
    """Check for the URL of a Redis server, of Sentinels or of a Cluster.

    Of a refused one, only the scheme is repeated: it may hold a password.
    """
    found = text(value, place)
    scheme, separator, rest = found.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        raise Rejected(f"must be a URL ({_ONE}, or rediss:// with TLS)")
    known = _KNOWN_SCHEME.fullmatch(scheme)
    if known is None:
        raise Rejected(f"{scheme} is not supported (write {_ONE}, {_SENTINEL} or {_CLUSTER}; with TLS rediss)")
    kind = known[2] or ""
    parts = _PARTS.fullmatch(rest)
    assert parts is not None, "it matches any text"
    written, hosts, path, query, fragment = (part or "" for part in parts.groups())
    login, nodes = _login(written, tls=bool(known[1])), _nodes(hosts, kind)
    if fragment or (query and kind != "sentinel"):
        raise Rejected("has parameters, of which there are none (percent-encode ? and # in a password)")
    path = path.removeprefix("/")
    if kind == "sentinel":
        service, _, database = path.partition("/")
        if not _SERVICE.fullmatch(service):
            raise Rejected(f"names no service, which is what the Sentinels call the master ({_SENTINEL})")
        master = attrs.evolve(login, host=nodes[0][0], database=_database(database))
        return RedisSentinels(_servers(nodes, _sentinel_login(query, tls=login.tls)), service, master)
    if kind == "cluster":
        if path not in ("", "0"):
            raise Rejected("must not end in a database: a Cluster has only the first, 0")
        return RedisCluster(_servers(nodes, login))
    [(host, port)] = nodes
    return attrs.evolve(login, host=host, port=port, database=_database(path))


def _nodes(hosts: str, kind: str) -> list[tuple[str, int]]:
    listed = hosts.split(",")
    spelling = _SPELLINGS[kind]
    if not kind and len(listed) > 1:
        raise Rejected(f"names no host, or none that can be one ({spelling}; several are for Sentinels and Clusters)")
    if len(listed) > MAX_NODES:
        raise Rejected(f"names more than {MAX_NODES} hosts")
    found = []
    for each in listed:
        match = _NODE.fullmatch(each)
        if match is None and ":" in each and each.rpartition(":")[0]:
            # repeats nothing: what looks like a port may be the end of a password with an @ in it
            raise Rejected("is not a valid URL (percent-encode special characters of the password)")
        port = int(match[3] or (_SENTINEL_PORT if kind == "sentinel" else _PORT)) if match else 0
        if match is None or not 0 < port <= _MAX_PORT:
            raise Rejected(f"names no host, or none that can be one ({spelling})")
        found.append(((match[1] or match[2]).lower(), port))
    if len(set(found)) < len(found):
        raise Rejected("names a host and port twice")
    return found


def _login(written: str, *, tls: bool) -> RedisServer:
    """Return how to log in, as a server without a host."""
    username, separator, password = written.partition(":")
    if username and not separator:
        raise Rejected("names a user without a password (for a password alone: redis://:PASSWORD@HOST)")
    return RedisServer(
        host="",
        tls=tls,
        username=unquote(username) or None,
        password=Secret(unquote(password)) if password else None,
    )


def _sentinel_login(query: str, *, tls: bool) -> RedisServer:
    """Return how to log in to the Sentinels: never with what the master wants."""
    try:
        given = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=10)
    except ValueError:
        raise Rejected(f"has parameters that are not {' and '.join(_SENTINEL_LOGIN)}") from None
    named = dict(given)
    if len(named) < len(given) or named.keys() - set(_SENTINEL_LOGIN):
        raise Rejected(f"has parameters that are not, or not once, {' and '.join(_SENTINEL_LOGIN)}")
    username, password = (named.get(name) for name in _SENTINEL_LOGIN)
    if username and not password:
        raise Rejected("names sentinel_username without sentinel_password")
    return RedisServer(host="", tls=tls, username=username or None, password=Secret(password) if password else None)


def _servers(nodes: Sequence[tuple[str, int]], login: RedisServer) -> tuple[RedisServer, ...]:
    return tuple(attrs.evolve(login, host=host, port=port) for host, port in nodes)


def _database(path: str) -> int:
    if not re.fullmatch(r"[0-9]{0,4}", path):
        raise Rejected("must end in the database's number, as in /0, or without one")
    return int(path or "0")
