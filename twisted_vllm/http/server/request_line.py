"""Checks of a request's head beyond llhttp's.

llhttp refuses every malformed framing that was tried (Content-Length with Transfer-Encoding, repeated or signed
lengths, bare line feeds, folding, bad chunks, odd transfer codings). It accepts HTTP/0.9 request lines, a missing or
repeated ``Host``, and the absolute and authority forms of the request target: those are checked here. Two other
protocols that it accepts are recognised by `twisted_vllm.http.start_line`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from twisted_vllm.errors import MalformedHttp, MethodNotAllowed
from twisted_vllm.http.headers import HeaderList, listed

#: uri-host and port (RFC 3986 §3.2.2); RFC 9112 §3.2 requires a 400 for anything else. A host of http or https is never
#: empty (RFC 9110 §4.2.1).
HOST = re.compile(rb"(?:\[[\w.~!$&'()*+,;=:%-]+\]|[\w.~!$&'()*+,;=%-]+)(?::[0-9]*)?")

#: the protocols that are tunnelled. Any other is never asked of a server: it may carry HTTP requests (``h2c``,
#: ``TLS/1.2`` and whatever is still to come), which would bypass authorization.
TUNNELLED = frozenset((b"websocket",))

#: methods that are never upgraded: OPTIONS may have no credential, and the others cannot use an upgrade
WITHOUT_UPGRADE = frozenset((b"HEAD", b"OPTIONS", b"CONNECT", b"TRACE"))


def origin_form(method: bytes, target: bytes, version: str, headers: HeaderList, first: Mapping[bytes, bytes]) -> bytes:
    """Return the request target in origin form (RFC 9112 §3.2).

    Args:
        method: the method as received.
        target: the request target as received.
        version: ``1.0`` or ``1.1``, as llhttp reports it.
        headers: all headers, as received.
        first: the first value of each, by lower-case name.

    Raises:
        MalformedHttp: RFC 9112 requires a 400, or the request is ambiguous.
        MethodNotAllowed: for CONNECT.
    """
    if version not in ("1.1", "1.0") or method == b"SOURCE":
        # the method of ICE, a protocol that llhttp accepts as HTTP
        raise MalformedHttp("Speak HTTP/1.1 or HTTP/1.0.")
    host = first.get(b"host")
    if host is None:
        if version == "1.1":
            raise MalformedHttp("The Host header is missing.")
    elif len(first) != len(headers) and sum(name.lower() == b"host" for name, _ in headers) > 1:
        raise MalformedHttp("The Host header stands more than once.")
    elif not HOST.fullmatch(host):
        raise MalformedHttp("The Host header is not a host name or an address.")
    if target[:1] == b"/" and b"#" not in target and method != b"CONNECT":
        return target
    if b"#" in target:
        raise MalformedHttp("The request target has a fragment.")
    if method == b"CONNECT":
        raise MethodNotAllowed("CONNECT is not for this server.")
    if target == b"*" and method == b"OPTIONS":
        return target
    for scheme in (b"http://", b"https://"):
        if target[: len(scheme)].lower() == scheme:
            authority, slash, rest = target[len(scheme) :].partition(b"/")
            if authority.lower() != (host or b"").lower():
                raise MalformedHttp("The request target names another host than the Host header.")
            return slash + rest or b"/"
    raise MalformedHttp("The request target is not a path.")


def closes(version: str, first: Mapping[bytes, bytes]) -> bool:
    """Return whether the connection must close after this exchange; here HTTP/1.0 always closes."""
    if version != "1.1":
        return True
    connection = first.get(b"connection")
    return connection is not None and b"close" in (token.strip() for token in connection.lower().split(b","))


def asked_protocols(method: bytes, version: str, headers: HeaderList) -> frozenset[bytes]:
    """Return those of `TUNNELLED` that a request without a body wants to switch to (RFC 9110 §7.8).

    Args:
        method: the method as received.
        version: ``1.0`` or ``1.1``, as llhttp reports it.
        headers: all headers, as received; llhttp has checked that ``Connection`` names ``upgrade``.

    Returns:
        The protocols, in lower case; none if the upgrade must be ignored: on HTTP/1.0, or if it asks for others only.
    """
    if version != "1.1" or method in WITHOUT_UPGRADE:
        return frozenset()
    return TUNNELLED.intersection(listed(headers, b"upgrade"))
