"""Header lists as pairs of bytes: which headers are forwarded, and how a head is serialized.

A header list keeps the order, case and repetitions of the received headers. Names are compared in lower case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

HeaderList = list[tuple[bytes, bytes]]

#: headers that concern one connection only: RFC 9110 §7.6.1, and older ones that clients and proxies still send
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection te transfer-encoding upgrade "
    b"proxy-authenticate proxy-authorization http2-settings".split()
)

_INTERPRETED = HOP_BY_HOP | {b"content-length", b"x-request-id", b"content-type", b"content-encoding"}

#: headers that are never forwarded as trailers
_NO_TRAILERS = HOP_BY_HOP | frozenset(
    b"content-length host trailer expect authorization www-authenticate set-cookie cookie content-encoding "
    b"content-type content-range range cache-control max-forwards x-request-id".split()
)

#: the headers that say where a body ends
FRAMING = (b"content-length", b"transfer-encoding")

#: statuses whose responses never have a body (RFC 9112 §6.3)
BODILESS = frozenset((204, 304))


#: headers whose repeated values are joined: each value may nominate headers, say "close" or contain a key
JOINED_HEADERS = frozenset((b"connection", b"sec-websocket-protocol"))

#: headers whose values vary between the requests of one client
PER_REQUEST_HEADERS = frozenset((b"content-length", b"traceparent", b"tracestate", b"x-request-id"))

NO_PROTOCOLS: frozenset[bytes] = frozenset()


def nominated(connection: bytes | None) -> frozenset[bytes]:
    """Return the lower-case names that a ``Connection`` value nominates as hop-by-hop (RFC 9110 §7.6.1).

    ``close``, ``keep-alive`` and ``upgrade`` are options; those that are headers too are in `HOP_BY_HOP`.
    """
    if connection is None:
        return frozenset()
    return frozenset(token.strip().lower() for token in connection.split(b",")) - {b"", b"close"}


def listed(headers: HeaderList, name: bytes) -> list[bytes]:
    """Return the list members, in lower case, of all headers with this lower-case name together."""
    values = b",".join(value for key, value in headers if key.lower() == name)
    return [member for token in values.lower().split(b",") if (member := token.strip())]


def relayed_trailers(trailers: HeaderList, drop: frozenset[bytes] = frozenset()) -> HeaderList:
    """Return the trailers to forward: none that frames, routes or authenticates (RFC 9110 §6.5.1).

    Args:
        trailers: the trailers as received.
        drop: more lower-case names to drop: some servers (uvicorn with httptools) treat trailers as headers.
    """
    never = _NO_TRAILERS | drop
    return [pair for pair in trailers if pair[0].lower() not in never]


class RequestHead:
    """A request's head.

    The parser builds it, and it never changes afterwards: requests with equal heads share it.

    Attributes:
        method: the method; empty if the request line was not read.
        target: the request target in origin form (RFC 9112 §3.2.1); in a refused head, the part that arrived.
        version: ``HTTP/1.1`` or ``HTTP/1.0``.
        headers: the headers as received.
        names: their names in lower case, in the same order.
        first: the first value of each header by lower-case name; for `JOINED_HEADERS` all values, joined with commas.
        length: the body's declared size in bytes; 0 without a body, None for a chunked one.
        keep_alive: whether the client keeps the connection after the response.
        protocols: the protocols, in lower case, that the connection may switch to if a server agrees.
        template: the `RequestTemplate` of this head and of those that differ only in `PER_REQUEST_HEADERS`; None if the
            header cache does not hold it.
    """

    __slots__ = (
        "first",
        "headers",
        "keep_alive",
        "length",
        "method",
        "names",
        "protocols",
        "target",
        "template",
        "version",
    )

    def __init__(self, method: bytes, target: bytes, version: bytes, headers: HeaderList) -> None:
        """Index the headers. The other attributes get the values of a request without a body; the parser sets them."""
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers
        self.names = names = [pair[0].lower() for pair in headers]
        first: dict[bytes, bytes] = {}
        for name, (_, value) in zip(names, headers, strict=True):
            if name not in first:
                first[name] = value
            elif name in JOINED_HEADERS:
                first[name] += b", " + value
        self.first = first
        self.length: int | None = 0
        self.keep_alive = True
        self.protocols: frozenset[bytes] = NO_PROTOCOLS
        self.template: object = None


#: stands for a head that was not read
NO_REQUEST_HEAD = RequestHead(b"", b"", b"HTTP/1.1", [])


class ResponseHead:
    """A response's head, parsed in one pass.

    Attributes:
        status: the status code.
        reason: the reason phrase as received.
        headers: the headers as received.
        relayed: the headers to relay to the client, in order: without hop-by-hop headers, with ``Content-Length``,
            because the body is relayed unchanged.
        length: the value of ``Content-Length``, or None; llhttp has rejected values that are not numbers.
        coding: the value of ``Transfer-Encoding`` in lower case, or empty.
        connection: the value of ``Connection``, or empty.
        content_type: the value of ``Content-Type``, or empty.
        content_encoding: the value of ``Content-Encoding``, or empty.
        has_request_id: whether there is an ``x-request-id``.
    """

    __slots__ = (
        "_length_index",
        "_written",
        "coding",
        "connection",
        "content_encoding",
        "content_type",
        "has_request_id",
        "headers",
        "length",
        "reason",
        "relayed",
        "status",
    )

    def __init__(self, status: int, reason: bytes, headers: HeaderList) -> None:
        self._length_index = 0
        self._written: tuple[bytes, bytes] | None = None
        self.status = status
        self.reason = reason
        self.headers = headers
        self.length: int | None = None
        self.has_request_id = False
        self.content_type = self.content_encoding = coding = connection = b""
        relayed: HeaderList = []
        for pair in headers:
            key = pair[0].lower()
            if key in _INTERPRETED:
                if key == b"content-length":
                    self.length = int(pair[1])
                elif key == b"content-type":
                    self.content_type = pair[1]
                elif key == b"content-encoding":
                    self.content_encoding = pair[1]
                elif key == b"x-request-id":
                    self.has_request_id = True
                else:
                    if key == b"connection":
                        connection = connection + b"," + pair[1] if connection else pair[1]
                    elif key == b"transfer-encoding":
                        coding = coding + b"," + pair[1] if coding else pair[1]
                    continue
            relayed.append(pair)
        if connection:
            drop = nominated(connection)
            relayed = [pair for pair in relayed if pair[0].lower() not in drop]
        self.relayed = headers if len(relayed) == len(headers) else relayed
        self.coding = coding.strip().lower() if coding else coding
        self.connection = connection

    def write(self, added: bytes) -> bytes:
        """Serialize the relayed head with its empty line; the header lines `added` come last."""
        if self._written is None:
            return write_response_head(self.status, self.reason, self.relayed, added)
        before, after = self._written
        return b"%b%d%b%b\r\n" % (before, self.length or 0, after, added)

    def as_template(self) -> ResponseHead:
        """Make this the template of heads that differ only in ``Content-Length``, which it must have."""
        index = next(index for index, pair in enumerate(self.headers) if pair[0].lower() == b"content-length")
        self._length_index = index
        whole = write_response_head(self.status, self.reason, self.headers[: index + 1])
        before = whole[: -len(self.headers[index][1] + b"\r\n\r\n")]
        after = b"".join(b"\r\n%b: %b" % pair for pair in self.headers[index + 1 :]) + b"\r\n"
        self._written = before, after
        return self

    def of_length(self, length: int) -> ResponseHead:
        """Return this head with another length; it must be a template."""
        head: ResponseHead = ResponseHead.__new__(ResponseHead)
        head._length_index = index = self._length_index
        head._written = self._written
        head.status = self.status
        head.reason = self.reason
        head.headers = head.relayed = headers = self.headers.copy()
        headers[index] = (headers[index][0], b"%d" % length)
        head.length = length
        head.has_request_id = self.has_request_id
        head.content_type = self.content_type
        head.content_encoding = self.content_encoding
        head.coding = self.coding
        head.connection = self.connection
        return head


#: stands for a response's head that was not read
NO_HEAD = ResponseHead(0, b"", [])


def write_header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Serialize headers, each with its CRLF."""
    return b"".join([b"%b: %b\r\n" % pair for pair in headers])


def write_response_head(
    status: int, reason: bytes, headers: Iterable[tuple[bytes, bytes]], added: bytes = b""
) -> bytes:
    """Serialize a response's head with its empty line; the header lines `added` come last."""
    lines = [b"HTTP/1.1 %d %b" % (status, reason)]
    lines += [name + b": " + value for name, value in headers]
    lines.append(added + b"\r\n")
    return b"\r\n".join(lines)


def write_last_chunk(trailers: HeaderList | None) -> bytes:
    """Serialize the last chunk of a chunked body and its trailers (RFC 9112 §7.1)."""
    if not trailers:
        return b"0\r\n\r\n"
    return b"0\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in trailers) + b"\r\n"


def is_json(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether the ``Content-Type`` is JSON; `headers` maps lower-case names to first values."""
    content_type = headers.get(b"content-type", b"")
    if content_type == b"application/json":
        return True
    media_type = content_type.partition(b";")[0].strip().lower()
    return media_type == b"application/json" or (
        media_type.startswith(b"application/") and media_type.endswith(b"+json")
    )


def is_form(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether the ``Content-Type`` is multipart/form-data; `headers` maps lower-case names to first values."""
    content_type = headers.get(b"content-type", b"")
    return (
        content_type != b"application/json"
        and content_type.partition(b";")[0].strip().lower() == b"multipart/form-data"
    )
