"""Parses Twisted endpoint strings without a reactor: whether one is valid, and who can reach it."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address

from twisted_vllm.config.checks import checker, text
from twisted_vllm.config.problems import Place, Rejected

DEFAULT_LISTEN = "tcp:4000:interface=127.0.0.1"

#: the position of ``interface`` among the arguments of each type that has one (``twisted/internet/endpoints.py``)
_INTERFACE_POSITION = {"tcp": 1, "ssl": 4, "tcp6": 2, "tls": 3}
_PORT_POSITION = {"tcp": 0, "ssl": 0, "tcp6": 0, "tls": 1}
#: the position of ``backlog``, likewise
_BACKLOG_POSITION = {"tcp": 2, "ssl": 5, "tcp6": 1, "unix": 2}

#: connections that may wait to be accepted. Twisted's 50 overflow in a burst of clients: the kernel drops the rest,
#: which retry after a second. The kernel's own limit (``net.core.somaxconn``) also applies.
BACKLOG = 4096

_HOST_PORT = re.compile(
    r"(?:(?P<host>\[[0-9A-Fa-f:.]*\]|\*|localhost|[A-Za-z0-9_.-]*\.[A-Za-z0-9_.-]*|):)?(?P<port>[0-9]{1,5})/?"
)
_WRAPPER = "haproxy:"
#: the arguments of ``ssl:`` in their order, and those that name files (``twisted/internet/endpoints.py``)
_TLS = "ssl"
_TLS_POSITIONS = (
    "port",
    "privateKey",
    "certKey",
    "sslmethod",
    "interface",
    "backlog",
    "extraCertChain",
    "dhParameters",
)
_TLS_FILES = frozenset(("privateKey", "certKey", "extraCertChain", "dhParameters"))
_TLS_DEFAULTS = {"privateKey": "server.pem"}
#: the types whose sockets several processes can accept from
_SHARED = frozenset(("tcp", "tcp6", "ssl", "unix", "systemd"))
#: those of them where each process has a socket of its own; the others have one for all
_OWN = frozenset(("tcp", "tcp6", "ssl"))
_TYPE = re.compile(r"[a-z][a-z0-9_-]*")
_BARE_IPV6 = re.compile(r"(?:^|:)interface=\[?[0-9A-Fa-f]*:[0-9A-Fa-f:]*:")


@checker("endpoint")
def endpoint(value: object, place: Place) -> str:
    """Check for an endpoint string: its type and, for TCP, its port. The rest is Twisted's to parse."""
    if isinstance(value, int) and not isinstance(value, bool):
        raise Rejected(f"must be a Twisted endpoint (write {_suggest(None, str(value))})")
    found = text(value, place)
    plain = _HOST_PORT.fullmatch(re.sub(r"^https?://", "", found))
    if plain:
        raise Rejected(f"must be a Twisted endpoint (write {_suggest(plain['host'], plain['port'])})")
    kind, arguments, named = split(found)
    if not _TYPE.fullmatch(kind) or ":" not in found:
        raise Rejected(f"must be a Twisted endpoint, such as {DEFAULT_LISTEN} or unix:/run/vllm.sock")
    if _BARE_IPV6.search(found):
        raise Rejected(r"has an IPv6 address whose colons need a backslash each (write interface=\:\:1)")
    if kind in _PORT_POSITION:
        _check_port(kind, arguments, named)
    return found


def is_loopback(endpoint: str) -> bool:
    """Return whether only this machine can reach an endpoint; False for unknown types."""
    kind, arguments, named = split(_unwrapped(endpoint))
    if kind == "unix":
        return True
    if kind not in _INTERFACE_POSITION:
        return False
    position = _INTERFACE_POSITION[kind]
    interface = named.get("interface", arguments[position] if len(arguments) > position else "")
    if interface.lower() == "localhost":
        return True
    try:
        return ip_address(interface).is_loopback
    except ValueError:
        return False


def with_backlog(endpoint: str) -> str:
    """Return an endpoint string with `BACKLOG` as its backlog, unless it names one."""
    kind, arguments, named = split(_unwrapped(endpoint))
    position = _BACKLOG_POSITION.get(kind)
    if position is None or "backlog" in named or len(arguments) > position or endpoint.endswith("\\"):
        return endpoint
    return f"{endpoint}:backlog={BACKLOG}"


def is_tls(endpoint: str) -> bool:
    """Return whether Twisted itself speaks TLS at an endpoint: ``ssl:``, also behind ``haproxy:``."""
    return split(_unwrapped(endpoint))[0] == _TLS


def can_be_shared(endpoint: str) -> bool:
    """Return whether several processes can accept from an endpoint."""
    return split(_unwrapped(endpoint))[0] in _SHARED


def has_socket_each(endpoint: str) -> bool:
    """Return whether each of several processes gets a socket of its own at an endpoint, rather than one for all."""
    return split(_unwrapped(endpoint))[0] in _OWN


def same_place(endpoint: str, other: str) -> bool:
    """Return whether two endpoints differ at most in the files of their certificates."""
    return endpoint == other or (is_tls(endpoint) and is_tls(other) and _place(endpoint) == _place(other))


def below(endpoint: str, directory: str) -> str:
    """Return an ``ssl:`` endpoint with the names of its files below a directory, unless they are absolute."""
    prefix = endpoint.removesuffix(_unwrapped(endpoint))
    named = _tls_arguments(endpoint)
    for name in _TLS_FILES & named.keys():
        named[name] = os.path.join(directory, named[name])
    return f"{prefix}{_TLS}:" + ":".join(f"{name}={_quoted(value)}" for name, value in named.items())


def _unwrapped(endpoint: str) -> str:
    while endpoint.startswith(_WRAPPER):
        endpoint = endpoint.removeprefix(_WRAPPER)
    return endpoint


def _tls_arguments(endpoint: str) -> dict[str, str]:
    """Return the arguments of an ``ssl:`` endpoint by name."""
    _, arguments, named = split(_unwrapped(endpoint))
    return {**_TLS_DEFAULTS, **dict(zip(_TLS_POSITIONS, arguments, strict=False)), **named}


def _place(endpoint: str) -> tuple[str, dict[str, str]]:
    prefix = endpoint.removesuffix(_unwrapped(endpoint))
    return prefix, {name: value for name, value in _tls_arguments(endpoint).items() if name not in _TLS_FILES}


def _quoted(value: str) -> str:
    return re.sub(r"([\\:=])", r"\\\1", value)


def _check_port(kind: str, arguments: list[str], named: dict[str, str]) -> None:
    position = _PORT_POSITION[kind]
    port = named.get("port", arguments[position] if len(arguments) > position else "443" if kind == "tls" else "")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise Rejected(f"needs a port from 0 to 65535 after '{kind}:' (such as {DEFAULT_LISTEN})")


def _suggest(host: str | None, port: str) -> str:
    """Return the endpoint that ``HOST:PORT`` or a port alone stands for."""
    if host is None or host in ("localhost", "127.0.0.1"):
        return f"tcp:{port}:interface=127.0.0.1"
    if host in ("", "*", "0.0.0.0"):
        return f"tcp:{port}:interface=0.0.0.0"
    return f"tcp:{port}:interface={host.strip('[]').replace(':', chr(92) + ':')}"


def split(endpoint: str) -> tuple[str, list[str], dict[str, str]]:
    """Split an endpoint string as Twisted does.

    Returns:
        Its type, its positional arguments and its named ones.
    """
    pieces: list[list[str]] = [[""]]
    characters = iter(endpoint)
    for character in characters:
        if character == ":":
            pieces.append([""])
        elif character == "=" and len(pieces[-1]) == 1:
            pieces[-1].append("")
        else:
            pieces[-1][-1] += next(characters, "") if character == "\\" else character
    positional = [piece[0] for piece in pieces if len(piece) == 1]
    named = {piece[0]: piece[1] for piece in pieces if len(piece) == 2}
    return (positional[0] if positional else ""), positional[1:], named
