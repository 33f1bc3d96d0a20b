"""Decides whether a server may fetch a URL that a client names: by its scheme, and by the host as it is written.

vLLM 0.32 fetches media URLs (``vllm/multimodal/media/connector.py``) with urllib3, requests and aiohttp, whose parsers
differ, and the C library reads an IPv4 address in several spellings (``inet_aton``). So only the plain form of a URL
counts as readable: every other spelling is refused instead of interpreted.

The names are not resolved: a public name may resolve to a private address.
"""

from __future__ import annotations

import fnmatch
import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import attrs

#: the schemes that a server may fetch, unless the operator says otherwise
DEFAULT_SCHEMES = ("data", "http", "https")

#: stands in `MediaRules.allowed_hosts` for every public host
PUBLIC = "*"

#: the longest URL in characters, except ``data:``
MAX_URL = 8192

# RFC 3986 §3.1
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
# the authority without userinfo, backslashes, escapes and characters beyond ASCII
_PLAIN_HTTP = re.compile(
    r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{0,5})?(?:[/?#]|\Z)", re.IGNORECASE | re.ASCII
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# what a URL parser or `inet_aton` takes for a number: decimal, octal or hexadecimal
_NUMBER = re.compile(r"0[xX][0-9A-Fa-f]*|[0-9]+")
_PLAIN_IPV4 = re.compile(r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(?:\.(?!\Z)|\Z)){4}")

#: the last labels of names that only private networks resolve: RFC 6761, 6762, 8375, 9476, ICANN's list of collisions,
#: and the search domains of clusters
PRIVATE_SUFFIXES = frozenset(
    (
        *("localhost", "local", "internal", "localdomain", "lan", "home", "corp", "intranet", "private", "svc"),
        *("test", "invalid", "onion", "arpa", "alt"),
    )
)

# IETF protocol assignments (RFC 6890), of which older versions of Python take some for public; Oracle Cloud's metadata
_IETF = IPv4Network("192.0.0.0/24")
#: public addresses that only machines of a cloud reach: Azure's virtual public IP serves them their secrets
_CLOUD = frozenset((IPv4Address("168.63.129.16"),))

_NAT64 = int(IPv6Address("64:ff9b::")) >> 32
# RFC 9637, which older versions of Python do not know
_DOCUMENTATION = IPv6Network("3fff::/20")
_SIX_TO_FOUR = 0x2002
_TEREDO = 0x20010000


@attrs.frozen
class MediaRules:
    """Which URLs a server may fetch for a key.

    Attributes:
        schemes: the allowed schemes, in lower case.
        allowed_hosts: patterns of hosts with ``*`` as wildcard. Empty, and `PUBLIC` among them, allows every public
            host; any other pattern allows the hosts that it matches, private ones too.
        denied_hosts: patterns of hosts that are never allowed.
    """

    schemes: tuple[str, ...] = DEFAULT_SCHEMES
    allowed_hosts: tuple[str, ...] = ()
    denied_hosts: tuple[str, ...] = ()

    def refusal(self, url: str) -> str | None:
        """Return why a server may not fetch `url`, in words that follow "the URL"; None if it may.

        An empty URL fetches nothing.
        """
        if url[:5].lower() == "data:":
            return None if "data" in self.schemes else self._refused_scheme("data")
        if not url:
            return None
        if len(url) > MAX_URL:
            return f"is longer than {MAX_URL} characters"
        if _CONTROL.search(url) is not None:
            return "has a control character"
        scheme = _SCHEME.match(url)
        if scheme is None:
            return f"has no scheme: begin it with {_listed(self.schemes)}"
        name = scheme[1].lower()
        if name not in self.schemes:
            return self._refused_scheme(name)
        if name not in ("http", "https"):
            return None
        plain = _PLAIN_HTTP.match(url)
        if plain is None:
            return (
                "has a host that can be read in more than one way: write it as plain ASCII, without a user name, "
                "backslashes or escapes"
            )
        return self._refused_host(plain[1].lower())

    def _refused_scheme(self, name: str) -> str:
        return f"has the scheme {name[:20]!r}: allowed are {_listed(self.schemes)}"

    def _refused_host(self, host: str) -> str | None:
        host = host.removesuffix(".")
        literal = _canonical(host[1:-1]) if host.startswith("[") else host
        if self.denied_hosts and _matches(self.denied_hosts, literal):
            return "names a host that the operator denies"
        if self.allowed_hosts:
            named = tuple(pattern for pattern in self.allowed_hosts if pattern != PUBLIC)
            if named and _matches(named, literal):
                return None
            if len(named) == len(self.allowed_hosts):
                return "names a host that is not among those that the operator allows"
        return refused_as_private(host)


def refused_as_private(host: str) -> str | None:
    """Return why a host counts as private, in words that follow "the URL"; None if it is public.

    Args:
        host: a name or an address as it stands in a URL (IPv6 in brackets), in lower case, without its trailing dot.
    """
    if host.startswith("["):
        try:
            return None if _is_public_ipv6(IPv6Address(host[1:-1])) else _PRIVATE
        except ValueError:
            return "has an IPv6 address that is malformed"
    labels = host.split(".")
    if not all(labels):
        return "has an empty label in its host"
    if _NUMBER.fullmatch(labels[-1]) is not None:
        if _PLAIN_IPV4.fullmatch(host) is None:
            return "has an IPv4 address that is not written as four decimal numbers"
        return None if _is_public_ipv4(IPv4Address(host)) else _PRIVATE
    if len(labels) == 1 or labels[-1] in PRIVATE_SUFFIXES:
        return "names a host that only a private network resolves"
    return None


def _canonical(literal: str) -> str:
    """Return the canonical text of an IPv6 address, or of the IPv4 address that is mapped into it."""
    try:
        address = IPv6Address(literal)
    except ValueError:
        return literal
    return str(address.ipv4_mapped or address)


_PRIVATE = "has an address that is private, local or reserved"


def _is_public_ipv4(address: IPv4Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and address not in _IETF
        and address not in _CLOUD
    )


def _is_public_ipv6(address: IPv6Address) -> bool:
    """Return whether an IPv6 address is public, and so is the IPv4 address in it, if it holds one."""
    number = int(address)
    inner = None
    if number >> 32 in (0, 0xFFFF, 0xFFFF << 16, _NAT64):
        # IPv4-compatible, -mapped and -translated (RFC 4291 §2.5.5, RFC 2765), NAT64 (RFC 6052)
        inner = number & 0xFFFFFFFF
    elif number >> 112 == _SIX_TO_FOUR:
        inner = number >> 80 & 0xFFFFFFFF
    elif number >> 96 == _TEREDO:
        return False
    elif number >> 32 & 0xFFFFFFFF in (0x5EFE, 0x02005EFE):
        # ISATAP (RFC 5214 §6.1)
        inner = number & 0xFFFFFFFF
    if inner is not None:
        return _is_public_ipv4(IPv4Address(inner))
    return (
        address.is_global
        and not address.is_private
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_site_local
        and not address.is_link_local
        and address not in _DOCUMENTATION
    )


@lru_cache(maxsize=256)
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(
        "|".join(fnmatch.translate(each.lower().removesuffix(".").strip("[]").replace("[", "[[]")) for each in patterns)
    )


def _matches(patterns: tuple[str, ...], host: str) -> bool:
    return _compiled(patterns).match(host) is not None


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"{name}:" for name in names)
