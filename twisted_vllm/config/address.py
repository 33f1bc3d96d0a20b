"""Where a vLLM server is reached: an ``api_base``, checked and brought to one form."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address
from urllib.parse import SplitResult, urlsplit

import attrs

from twisted_vllm.config.place import Place, Rejected
from twisted_vllm.config.shape import text

_DEFAULT_PORTS = {"http": 80, "https": 443}
_EXAMPLE = "http://gpu-1:8000"
#: RFC 1123 names, and the underscore that container networks use
_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?\.?")
#: RFC 3986 §3.3, without empty segments
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+)*")
_DOTS = re.compile(r"/(?:\.|%2[Ee]){1,2}(?:/|$)")


@attrs.frozen
class Address:
    """Where a server is reached, whatever the spelling of its ``api_base``.

    Attributes:
        tls: whether to speak TLS.
        host: a name in lower case, or an address without brackets.
        port: the TCP port.
        base_path: what stands before every path, without a trailing slash and without ``/v1``.
    """

    tls: bool
    host: str
    port: int
    base_path: str

    @property
    def name(self) -> str:
        """The name for logs: ``host:port`` and the base path."""
        return f"{self._bracketed}:{self.port}{self.base_path}"

    @property
    def url(self) -> str:
        """The ``api_base`` in its one form."""
        return f"{self._scheme}://{self.name}"

    @property
    def host_header(self) -> bytes:
        """The value of ``Host``: without the scheme's own port (RFC 9110 §7.2)."""
        usual = self.port == _DEFAULT_PORTS[self._scheme]
        return (self._bracketed if usual else f"{self._bracketed}:{self.port}").encode("ascii")

    @property
    def _scheme(self) -> str:
        return "https" if self.tls else "http"

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def api_base(value: object, place: Place) -> Address:
    """Check for the URL of a vLLM server; a trailing ``/`` or ``/v1`` makes no difference.

    Nothing of the URL is repeated in a message: it may hold a password.
    """
    found = text(value, place)
    if re.search(r"[^\x21-\x7e]|\\", found):
        raise Rejected("holds a space, a backslash or a character outside ASCII (write the URL in its ASCII form)")
    scheme, separator, _ = found.partition("://")
    if not separator or scheme.lower() not in _DEFAULT_PORTS:
        raise Rejected(f"must begin with http:// or https:// (such as {_EXAMPLE})")
    try:
        parts = urlsplit(found)
        port = parts.port
    except ValueError:
        raise Rejected(f"is not a URL with a valid host and port (such as {_EXAMPLE})") from None
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


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    if not host:
        raise Rejected(f"has no host (such as {_EXAMPLE})")
    if parts.netloc.startswith("["):
        try:
            address = IPv6Address(host)
        except AddressValueError:
            raise Rejected("has an IPv6 address that is not valid") from None
        if address.scope_id is not None:
            raise Rejected("has an IPv6 address with a zone, which is not supported (use another address)")
        return str(address)
    if not _HOST.fullmatch(host):
        raise Rejected(f"has a host that is not a valid name or address (such as {_EXAMPLE})")
    return host


def _base_path(path: str) -> str:
    base = path.rstrip("/").removesuffix("/v1").rstrip("/")
    if not _PATH.fullmatch(base) or _DOTS.search(base):
        raise Rejected("has a path with empty segments, dot segments or characters that need percent-encoding")
    return base
