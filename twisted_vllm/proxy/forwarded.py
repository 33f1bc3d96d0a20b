"""The client's address behind proxies, and the ``X-Forwarded-*`` headers for vLLM.

``X-Forwarded-For``, ``-Proto``, ``-Host`` and ``-Prefix`` are accepted only from a peer in ``trusted_proxies``; from
any other peer they are replaced. (``Forwarded`` of RFC 7239 is not used: uvicorn does not read it.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from twisted_vllm.client_address import is_loopback
from twisted_vllm.context import Peer, RequestContext

Network = IPv4Network | IPv6Network
HeaderPairs = list[tuple[bytes, bytes]]

FORWARDED_FOR = b"x-forwarded-for"
FORWARDED_PROTO = b"x-forwarded-proto"
FORWARDED_HOST = b"x-forwarded-host"
#: the path that a proxy in front cut off; it is not sent to servers, which are asked by their own paths
FORWARDED_PREFIX = b"x-forwarded-prefix"

#: the address of a peer on a UNIX socket, which has none (RFC 7239 §6.2)
UNKNOWN = "unknown"

# plain segments: a prefix begins the path of a redirect, which must lead to no other host
_PREFIX = re.compile(rb"(?:/(?!\.\.?(?:/|\Z))[A-Za-z0-9._~-]+)*")
#: a host with or without a port, which pages and redirects repeat
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
#: longer prefixes, in bytes, are ignored
MAX_PREFIX_LENGTH = 256

#: fits an IPv6 address with a zone; longer texts are neither parsed nor cached
MAX_ADDRESS_LENGTH = 64


def said_by_proxies(headers: HeaderPairs, trusted: Sequence[Network]) -> dict[bytes, bytes]:
    """Return the ``X-Forwarded-*`` headers by lower-case name, repeated ones joined as `client_headers` requires.

    Args:
        headers: the request's headers, as received.
        trusted: the trusted networks; without any, the result is empty.
    """
    joined: dict[bytes, bytes] = {}
    if not trusted:
        return joined
    for name, value in headers:
        name = name.lower()
        if name in (FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST, FORWARDED_PREFIX):
            joined[name] = joined[name] + b", " + value if name in joined else value
    return joined


def client_headers(
    peer: str,
    secure: bool,
    host: bytes | None,
    headers: Mapping[bytes, bytes],
    trusted: Sequence[Network],
) -> HeaderPairs:
    """Return the ``X-Forwarded-*`` headers for vLLM, which replace the client's.

    Args:
        peer: the address that the connection comes from, empty on a UNIX socket.
        secure: whether the connection is TLS.
        host: the request's ``Host``.
        headers: lower-case names to values. Repeated headers must be joined with commas in order (RFC 9110 §5.3): a
            proxy may append its own line, and the first line alone may be forged by the client.
        trusted: the trusted networks.
    """
    chain = (peer or UNKNOWN).encode("latin-1")
    scheme = b"https" if secure else b"http"
    if trusted and _is_trusted(peer, tuple(trusted)):
        earlier = headers.get(FORWARDED_FOR, b"").strip()
        if earlier:
            chain = earlier + b", " + chain
        scheme = headers.get(FORWARDED_PROTO) or scheme
        host = headers.get(FORWARDED_HOST) or host
    found = [(b"X-Forwarded-For", chain), (b"X-Forwarded-Proto", scheme)]
    if host:
        found.append((b"X-Forwarded-Host", host))
    return found


def client_address(peer: str, headers: Mapping[bytes, bytes], trusted: Sequence[Network]) -> str:
    """Return the client's address for the log: the right-most one in the chain that is not a trusted proxy's.

    If all are trusted, it is the left-most. An entry that is not an address ends the chain: nothing to its left can be
    trusted. `headers` is as for `client_headers`.
    """
    if not trusted:
        return peer or UNKNOWN
    networks = tuple(trusted)
    if not _is_trusted(peer, networks):
        return peer or UNKNOWN
    address = peer
    for entry in reversed(headers.get(FORWARDED_FOR, b"").split(b",")):
        text = _bare_address(entry.strip().decode("latin-1"))
        trust = _trust(text, networks)
        if trust is None:
            break
        address = text
        if not trust:
            break
    return address


def path_prefix(peer: str, headers: Mapping[bytes, bytes], trusted: Sequence[Network]) -> bytes:
    """Return the path that proxies in front cut off; empty without any.

    Several values, of several proxies, are joined in order, the outermost first. `headers` is as for `client_headers`.
    """
    said = headers.get(FORWARDED_PREFIX, b"")
    if not said or not _is_trusted(peer, tuple(trusted)):
        return b""
    prefix = b"".join(each.strip().removesuffix(b"/") for each in said.split(b","))
    return prefix if len(prefix) <= MAX_PREFIX_LENGTH and _PREFIX.fullmatch(prefix) else b""


class ClientAddresses:
    """Which client a request comes from, by the proxies that the operator trusts, and whether it is served.

    Attributes:
        trusted: the networks of trusted proxies.
        restricts: whether clients of some networks only are served.
    """

    trusted: tuple[Network, ...]

    def __init__(self, trusted: Sequence[Network] = (), allowed: Sequence[Network] = ()) -> None:
        """Set up.

        Args:
            trusted: the networks of trusted proxies.
            allowed: the networks of the clients that are served; none serves all.
        """
        self.reconfigure(trusted, allowed)

    def reconfigure(self, trusted: Sequence[Network], allowed: Sequence[Network]) -> None:
        """Use other settings from now on; the arguments are the constructor's."""
        self.trusted = tuple(trusted)
        self._allowed = tuple(allowed)
        self.restricts = bool(self._allowed)

    def of(self, context: RequestContext) -> str:
        """Return the client's address of a request; see `client_address`."""
        trusted = self.trusted
        if not trusted:
            return context.peer.host or UNKNOWN
        return client_address(context.peer.host, said_by_proxies(context.head.headers, trusted), trusted)

    def prefix(self, context: RequestContext) -> bytes:
        """Return the path that trusted proxies in front of the gateway cut off; see `path_prefix`."""
        trusted = self.trusted
        return path_prefix(context.peer.host, said_by_proxies(context.head.headers, trusted), trusted)

    def origin(self, context: RequestContext) -> str:
        """Return where the client believes to be, such as ``https://gateway.example.com``, without the prefix."""
        trusted, peer, first = self.trusted, context.peer, context.head.first
        said = said_by_proxies(context.head.headers, trusted)
        told = dict(client_headers(peer.host, peer.secure, first.get(b"host"), said, trusted))
        # the outermost proxy's word is the first
        scheme, host = (
            told.get(name, b"").split(b",")[0].strip().decode("latin-1")
            for name in (b"X-Forwarded-Proto", b"X-Forwarded-Host")
        )
        return f"{'https' if scheme.lower() == 'https' else 'http'}://{host if _HOST.fullmatch(host) else 'localhost'}"

    def allows(self, context: RequestContext) -> bool:
        """Return whether a request comes from an address that is served.

        A client on a UNIX socket has no address: it is in no network.
        """
        return not self._allowed or _is_trusted(self.of(context), self._allowed)

    def kind_of(self, peer: Peer) -> object:
        """Return what the ``X-Forwarded-*`` headers of equal heads depend on, besides the peer's address at the end."""
        return (peer.secure, _is_trusted(peer.host, self.trusted)) if self.trusted else peer.secure

    def may_take_all_connections(self, host: str) -> bool:
        """Return whether an address stands for many clients: this machine, where proxies run, or a trusted proxy."""
        return is_loopback(host) or _is_trusted(host, self.trusted)


#: trusts no proxy, and serves all
EVERYBODY = ClientAddresses()


def _bare_address(entry: str) -> str:
    """Strip the port and the brackets that some proxies add: ``[2001:db8::1]:80``, ``192.0.2.1:80``."""
    entry = entry.strip('"')
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # how a dual-stack socket reports IPv4 peers (RFC 4291 §2.5.5.2)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _is_trusted(text: str, networks: tuple[Network, ...]) -> bool:
    return _trust(text, networks) is True


def _trust(text: str, networks: tuple[Network, ...]) -> bool | None:
    """Return whether `text` is a trusted proxy's address; None if it is not an address."""
    return _memoised_trust(text, networks) if len(text) <= MAX_ADDRESS_LENGTH else None


@lru_cache(maxsize=1024)
def _memoised_trust(text: str, networks: tuple[Network, ...]) -> bool | None:
    address = _parse(text)
    return None if address is None else any(address in network for network in networks)
