"""Header lists as bytes pairs: which go on, which stay, and how a head is written.

A header list keeps the order, the case and the repetitions that came over the wire. Names are compared in lower case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

HeaderList = list[tuple[bytes, bytes]]

#: RFC 9110 §7.6.1 and what older clients and proxies send in its place; these speak about one connection only
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection te transfer-encoding upgrade "
    b"proxy-authenticate proxy-authorization http2-settings".split()
)

#: statuses whose responses never have a body (RFC 9112 §6.3)
BODILESS = frozenset((204, 304))


def nominated(connection: bytes | None) -> frozenset[bytes]:
    """Return the lower-case names that a ``Connection`` value nominates as hop-by-hop (RFC 9110 §7.6.1).

    ``close``, ``keep-alive`` and ``upgrade`` are options, not headers, and stand in `HOP_BY_HOP` where they are both.
    """
    if connection is None:
        return frozenset()
    return frozenset(token.strip().lower() for token in connection.split(b",")) - {b"", b"close"}


def relayed_response_headers(headers: HeaderList) -> HeaderList:
    """Return what of a server's response headers goes on to the client, in order, less hop-by-hop.

    ``Content-Length`` stays: the body is relayed as it is.
    """
    connection = b",".join(value for name, value in headers if name.lower() == b"connection") or None
    drop = HOP_BY_HOP | nominated(connection) if connection else HOP_BY_HOP
    return [pair for pair in headers if pair[0].lower() not in drop]


def content_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """Return the value of ``Content-Length``, or None where there is none; llhttp has refused all but numbers."""
    for name, value in headers:
        if len(name) == 14 and name.lower() == b"content-length":
            return int(value)
    return None


def write_request_head(method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a request's head, with the empty line that ends it."""
    lines = [method + b" " + target + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in headers]
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


def write_response_head(status: int, reason: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a response's head, with the empty line that ends it."""
    lines = [b"HTTP/1.1 %d %s" % (status, reason)]
    lines += [name + b": " + value for name, value in headers]
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


def is_json(headers: Mapping[bytes, bytes]) -> bool:
    """Tell whether ``Content-Type`` says JSON; `headers` maps lower-case names to first values."""
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return media_type == b"application/json" or (
        media_type.startswith(b"application/") and media_type.endswith(b"+json")
    )


def is_form(headers: Mapping[bytes, bytes]) -> bool:
    """Tell whether ``Content-Type`` says multipart/form-data; `headers` maps lower-case names to first values."""
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower() == b"multipart/form-data"
