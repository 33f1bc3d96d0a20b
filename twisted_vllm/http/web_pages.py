"""What a web page may do with the gateway, decided by a request's headers.

A browser sends requests for every page that it shows, also to addresses that only its own machine reaches. With keys a
page can do nothing, as it knows none. In open mode the address is the only credential, and any page could use it:

- with a name of its own that leads to this machine (DNS rebinding): ``Host`` tells the name, which must be known here;
- by a request to another origin, which the browser sends and whose answer it hides (CSRF): ``Origin`` (RFC 6454 §7)
  and ``Sec-Fetch-Site`` (W3C Fetch Metadata §2.3) tell it, and no page can forge them. A WebSocket is not even hidden.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address

from twisted_vllm.config.checks import ANY_ORIGIN
from twisted_vllm.errors import Headers, HostNotAllowed, OriginNotAllowed, UnsupportedMediaType

HOST, ORIGIN, SITE = b"host", b"origin", b"sec-fetch-site"
ASKED_METHOD, ASKED_HEADERS = b"access-control-request-method", b"access-control-request-headers"

#: the headers that decide, in lower case
DECISIVE = (HOST, ORIGIN, SITE, ASKED_METHOD, ASKED_HEADERS, b"content-type")

#: what a page may read of an answer besides its body and the headers that every page may read (Fetch §3.3.2)
_EXPOSED = (
    b"x-request-id, retry-after, x-should-retry, x-vllm-passthrough-error, www-authenticate, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)

#: seconds for which a browser may remember the answer to a preflight
_MAX_AGE = b"600"

#: what follows a host in ``Host``, and in an origin (RFC 3986 §3.2)
_PORT = re.compile(rb":([0-9]*)\Z")
_DEFAULT_PORTS = {b"http": b"80", b"https": b"443"}

_HOST_HINT = (
    "Without a master key, the gateway is called by the name or address of its own machine only: localhost, 127.0.0.1 "
    "or [::1]. Otherwise a web page could use it. Set general_settings.master_key, or name the host in "
    "passthrough.allowed_hosts."
)
_ORIGIN_HINT = (
    "Without a master key, the gateway takes no requests of web pages of another origin. Set "
    "general_settings.master_key, or name the origin in passthrough.allowed_origins."
)


class WebPages:
    """Decides about requests that a browser may have sent for a web page."""

    def __init__(
        self,
        *,
        is_open: bool = False,
        any_address: bool = False,
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
    ) -> None:
        """Set up.

        Args:
            is_open: whether the gateway has no master key.
            any_address: whether, in open mode, ``Host`` may be any IP address, and not only a loopback one: no page can
                choose which address stands there.
            hosts: in open mode, more hosts that ``Host`` may name, in lower case, with ``*`` as wildcard.
            origins: the origins whose pages may use the gateway, in lower case; `ANY_ORIGIN` for all.
        """
        self.reconfigure(is_open=is_open, any_address=any_address, hosts=hosts, origins=origins)

    def reconfigure(self, *, is_open: bool, any_address: bool, hosts: Iterable[str], origins: Iterable[str]) -> None:
        """Use other settings from now on; the arguments are the constructor's."""
        self.is_open = is_open
        self._any_address = any_address
        patterns = "|".join(re.escape(host.strip("[]")).replace(r"\*", ".*") for host in hosts)
        self._hosts = re.compile(patterns) if patterns else None
        self._origins = frozenset(origin.encode("ascii") for origin in origins)
        self._any_origin = ANY_ORIGIN.encode("ascii") in self._origins

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Check a request; with a master key all pass, as no page knows a key.

        Args:
            headers: the first value of each header, by lower-case name.

        Raises:
            HostNotAllowed: ``Host`` does not name this machine.
            OriginNotAllowed: a page of another origin sent it.
        """
        if not self.is_open:
            return
        host = headers.get(HOST)
        # without it (HTTP/1.0) it is no browser's
        if host is not None and not self._is_known(host):
            raise HostNotAllowed(_HOST_HINT)
        origin = headers.get(ORIGIN)
        if origin is None:
            if headers.get(SITE, b"none") not in (b"none", b"same-origin"):
                raise OriginNotAllowed(_ORIGIN_HINT)
        elif not (self._is_allowed(origin) or _is_own(origin, host or b"")):
            raise OriginNotAllowed(_ORIGIN_HINT)

    def check_media_type(self, is_json: bool) -> None:
        """Check the type of an administrative body: a page cannot send JSON to another origin unasked (Fetch §2.2.2).

        Raises:
            UnsupportedMediaType: it is not JSON, in open mode.
        """
        if self.is_open and not is_json:
            raise UnsupportedMediaType(
                "Send the header Content-Type: application/json. Without a master key the gateway takes no other "
                "administrative POST, because a web page could send it."
            )

    def response_headers(self, headers: Mapping[bytes, bytes]) -> Headers:
        """Return the CORS headers of an answer of the gateway's own; none unless the page's origin is allowed."""
        origin = headers.get(ORIGIN)
        if not self._origins:
            return []
        varies = (b"vary", b"Origin")
        if origin is None or not self._is_allowed(origin):
            return [varies]
        return [
            (b"access-control-allow-origin", b"*" if self._any_origin else origin),
            (b"access-control-expose-headers", _EXPOSED),
            varies,
        ]

    def error_headers(self, headers: Mapping[bytes, bytes]) -> Headers:
        """Return the CORS headers of an error of the gateway's own on a route of vLLM.

        Without ``allowed_origins``, and with a master key, every page may read it: it tells no secret, and vLLM decided
        at the preflight whether the page may send a key. Otherwise the page would learn only that it failed.
        """
        if self._origins or self.is_open or ORIGIN not in headers:
            return self.response_headers(headers)
        return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", _EXPOSED)]

    def preflight(self, method: bytes, headers: Mapping[bytes, bytes]) -> Headers | None:
        """Return the headers that answer a preflight (Fetch §4.8) from an origin that is allowed; else None."""
        origin = headers.get(ORIGIN)
        if method != b"OPTIONS" or origin is None or ASKED_METHOD not in headers or not self._is_allowed(origin):
            return None
        return [
            (b"access-control-allow-methods", b"GET, HEAD, POST, PATCH"),
            (b"access-control-allow-headers", headers.get(ASKED_HEADERS, b"authorization, content-type")),
            (b"access-control-max-age", _MAX_AGE),
        ]

    def _is_allowed(self, origin: bytes) -> bool:
        return self._any_origin or origin.lower() in self._origins

    def _is_known(self, host: bytes) -> bool:
        name = _PORT.sub(b"", host.lower()).decode("latin-1").strip("[]").removesuffix(".")
        if name == "localhost" or name.endswith(".localhost"):
            # RFC 6761 §6.3: nobody else can give these names an address.
            return True
        address = _address_in(name)
        if address is not None and (self._any_address or address.is_loopback or address.is_unspecified):
            # 0.0.0.0 and [::] lead to this machine too: a client that is told to listen there connects there.
            return True
        return self._hosts is not None and self._hosts.fullmatch(name) is not None


#: lets everybody pass, and has no origins
NO_WEB_PAGES = WebPages()


def _address_in(name: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(name)
    except ValueError:
        return None
    # RFC 4291 §2.5.5.2
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _is_own(origin: bytes, host: bytes) -> bool:
    """Return whether a page is of the origin that was asked. A proxy may have taken TLS away, so any scheme will do."""
    scheme, separator, authority = origin.lower().partition(b"://")
    default = _DEFAULT_PORTS.get(scheme)
    if not separator or default is None:
        return False
    return _with_port(authority, default) == _with_port(host.lower(), default)


def _with_port(authority: bytes, default: bytes) -> bytes:
    found = _PORT.search(authority)
    if found is None:
        return authority + b":" + default
    return authority if found[1] else authority + default
