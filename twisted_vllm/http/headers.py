"""Header lists as bytes pairs: which go on, which stay, and how a head is written.

A header list keeps the order, the case and the repetitions that came over the wire. Names are compared in lower case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

HeaderList = list[tuple[bytes, bytes]]

#: RFC 9110 §7.6.1 and what older clients and proxies send in its place; these speak about one connection only
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection te transfer-encoding upgrade "
    b"proxy-authenticate proxy-authorization http2-settings".split()
)

_OF_NOTE = HOP_BY_HOP | {b"content-length", b"x-request-id", b"content-type", b"content-encoding"}

#: headers of the standards for everybody on the way. Without one of them a message would be framed, routed or read in
#: another way, so a ``Connection`` value cannot take them away (RFC 9110 §7.6.1 forbids a sender to try).
FOR_EVERYBODY = frozenset(
    b"content-length transfer-encoding host trailer expect max-forwards x-request-id "
    b"content-type content-encoding content-range content-location content-disposition content-language "
    b"origin access-control-request-method access-control-request-headers "
    b"authorization www-authenticate cookie set-cookie location retry-after allow date "
    b"range if-range if-match if-none-match if-modified-since if-unmodified-since accept-ranges etag last-modified "
    b"cache-control expires age pragma vary via".split()
)

#: beginnings of the headers in which the gateway itself speaks to a client; a server cannot send them
OWN_WORDS = (b"x-vllm-passthrough-", b"x-litellm-", b"x-ratelimit-")

#: what a trailer must not carry on
_NO_TRAILERS = HOP_BY_HOP | frozenset(
    b"content-length host trailer expect authorization www-authenticate set-cookie cookie content-encoding "
    b"content-type content-range range cache-control max-forwards x-request-id".split()
)

#: the headers that say where a body ends
FRAMING = (b"content-length", b"transfer-encoding")

#: statuses whose responses never have a body (RFC 9112 §6.3)
BODILESS = frozenset((204, 304))


#: headers whose values count together: each may nominate headers, say "close" or hold a key
JOINED_HEADERS = frozenset((b"connection", b"sec-websocket-protocol"))

#: headers whose values differ from request to request of one client
PER_REQUEST_HEADERS = frozenset(
    (b"content-length", b"traceparent", b"tracestate", b"baggage", b"sentry-trace", b"x-request-id")
)

#: the headers that may hold a key besides ``Authorization``, in order of precedence
KEY_HEADERS = (b"x-litellm-api-key", b"api-key", b"x-api-key")

#: all headers that may hold a key, in lower case. They are never forwarded to a server.
CREDENTIAL_HEADERS: frozenset[bytes] = frozenset((b"authorization", *KEY_HEADERS))

#: the headers of W3C Trace Context, which a span of the gateway's replaces
TRACE_HEADERS = frozenset((b"traceparent", b"tracestate"))

NO_PROTOCOLS: frozenset[bytes] = frozenset()

#: bytes to read of a response's ``Content-Type`` and ``Content-Encoding``; its headers go on as they came
MAX_CONTENT_TYPE = 256


def nominated(connection: bytes | None) -> frozenset[bytes]:
    """Return the lower-case names that a ``Connection`` value takes away as hop-by-hop (RFC 9110 §7.6.1).

    Names in `FOR_EVERYBODY` are not among them. ``close``, ``keep-alive`` and ``upgrade`` are options, not headers, and
    stand in `HOP_BY_HOP` where they are both.
    """
    if connection is None:
        return frozenset()
    return frozenset(token.strip().lower() for token in connection.split(b",")) - _NOT_NOMINATED


_NOT_NOMINATED = FOR_EVERYBODY | {b"", b"close"}

#: a header's name as CGI and WSGI servers read it: any byte but a letter or a digit counts as one
_AS_VARIABLE = bytes(at if chr(at).isascii() and chr(at).isalnum() else ord("-") for at in range(256))


def twin(name: bytes) -> bytes:
    """Return the name, in lower case, that some servers take `name` for: ``content_length`` is ``content-length``.

    CGI makes ``HTTP_CONTENT_LENGTH`` of both (RFC 3875 §4.1.18), and WSGI inherited that.
    """
    return name.translate(_AS_VARIABLE)


def without_twins(headers: HeaderList, names: Sequence[bytes], never: frozenset[bytes]) -> HeaderList:
    """Return headers without those that some servers take for one of `never` or of `FOR_EVERYBODY`: see `twin`.

    Args:
        headers: the headers.
        names: their names in lower case, in the same order.
        never: lower-case names.
    """
    joined = b"".join(names)
    if twin(joined) == joined:
        return headers
    return [
        pair
        for name, pair in zip(names, headers, strict=True)
        if (read := twin(name)) == name or (read not in never and read not in FOR_EVERYBODY)
    ]


def listed(headers: HeaderList, name: bytes) -> list[bytes]:
    """Return the members, in lower case, of the list that all headers of this lower-case name make together."""
    values = b",".join(value for key, value in headers if key.lower() == name)
    return [member for token in values.lower().split(b",") if (member := token.strip())]


def relayed_trailers(trailers: HeaderList, drop: frozenset[bytes] = frozenset()) -> HeaderList:
    """Return the trailers that go on: none that frames, routes or authenticates (RFC 9110 §6.5.1), nor a `twin` of one.

    Args:
        trailers: the trailers as they came.
        drop: lower-case names of more that stay: some servers (uvicorn with httptools) take trailers for headers.
    """
    never = _NO_TRAILERS | drop
    names = [twin(name.lower()) for name, _ in trailers]
    return [
        pair for name, pair in zip(names, trailers, strict=True) if name not in never and not name.startswith(OWN_WORDS)
    ]


class RequestHead:
    """A request's head.

    The parser builds it and nobody changes it afterwards: heads are shared by requests that are alike.

    Attributes:
        method: the method; empty where the request line was not read.
        target: the request target in origin form (RFC 9112 §3.2.1); in a head that was refused, as far as it came.
        version: ``HTTP/1.1`` or ``HTTP/1.0``.
        headers: the headers as they came, in order. The value of ``Content-Length`` is empty in a head from the header
            cache, so that heads which differ in it alone share one list: use `length`, or `complete_headers`.
        names: their names in lower case, in the same order.
        first: the first value of each header by its lower-case name, likewise; of `JOINED_HEADERS` all values, with
            commas.
        length: the body's declared size in bytes, 0 without a body, None for a chunked one.
        keep_alive: whether the client keeps the connection after the response.
        protocols: the protocols, in lower case, to one of which the connection may switch if a server agrees.
        template: what all heads have in common that differ from this one in `PER_REQUEST_HEADERS` and
            `CREDENTIAL_HEADERS` alone; None where the header cache does not hold it.
        credential: in a head with a template, what stands in its `CREDENTIAL_HEADERS` without the scheme: one word, or
            one in each line; empty without any.
    """

    __slots__ = (
        "credential",
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
        """Index the headers of a request without a body; the parser sets what it finds beyond."""
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
        self.credential = b""

    def value(self, name: bytes) -> bytes | None:
        """Return the value of a header as in `first`, also of ``Content-Length``; None without the header."""
        if name == b"content-length" and name in self.first and self.length is not None:
            return b"%d" % self.length
        return self.first.get(name)

    def complete_headers(self) -> HeaderList:
        """Return the headers as they came, with the value of ``Content-Length``."""
        if self.template is None or self.length is None:
            return self.headers
        length = b"%d" % self.length
        return [
            (pair[0], length) if name == b"content-length" else pair
            for name, pair in zip(self.names, self.headers, strict=True)
        ]


#: stands for a head that was not read
NO_REQUEST_HEAD = RequestHead(b"", b"", b"HTTP/1.1", [])


class ResponseHead:
    """A response's head, read in one pass.

    Attributes:
        status: the status code.
        reason: the reason phrase as it came.
        headers: the headers as they came, in order.
        relayed: those that go on to the client, in order, less hop-by-hop and less what only the gateway says.
            ``Content-Length`` stays: the body is relayed as it is.
        length: the value of ``Content-Length``, or None where there is none; llhttp has refused all but numbers.
        coding: the value of ``Transfer-Encoding`` in lower case, or empty.
        connection: the value of ``Connection``, or empty.
        content_type: the first `MAX_CONTENT_TYPE` bytes of the value of ``Content-Type``, or empty.
        content_encoding: those of ``Content-Encoding``, likewise.
        has_request_id: whether there is an ``x-request-id``.
    """

    __slots__ = (
        "_length_at",
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
        self._length_at = 0
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
            if key in _OF_NOTE:
                if key == b"content-length":
                    self.length = int(pair[1])
                elif key == b"content-type":
                    self.content_type = pair[1][:MAX_CONTENT_TYPE]
                elif key == b"content-encoding":
                    self.content_encoding = pair[1][:MAX_CONTENT_TYPE]
                elif key == b"x-request-id":
                    self.has_request_id = True
                else:
                    if key == b"connection":
                        connection = connection + b"," + pair[1] if connection else pair[1]
                    elif key == b"transfer-encoding":
                        coding = coding + b"," + pair[1] if coding else pair[1]
                    continue
            elif key.startswith(OWN_WORDS):
                continue
            relayed.append(pair)
        if connection:
            drop = nominated(connection)
            relayed = [pair for pair in relayed if pair[0].lower() not in drop]
        self.relayed = headers if len(relayed) == len(headers) else relayed
        self.coding = coding.strip().lower() if coding else coding
        self.connection = connection

    @classmethod
    def own(cls, status: int, reason: bytes, headers: HeaderList) -> ResponseHead:
        """Return a head of the gateway's own, all of whose headers go to the client."""
        made = cls(status, reason, headers)
        made.relayed = headers
        return made

    def replacing(self, headers: HeaderList) -> ResponseHead:
        """Return this head with other headers in place of `relayed`; the framing must be the same."""
        made = ResponseHead(self.status, self.reason, self.headers)
        made.relayed = headers
        return made

    def write(self, added: bytes) -> bytes:
        """Return what goes on of it, written out, with the empty line; `added` are whole lines that end the list."""
        if self._written is None:
            return write_response_head(self.status, self.reason, self.relayed, added)
        before, after = self._written
        return b"%b%d%b%b\r\n" % (before, self.length or 0, after, added)

    def as_template(self) -> ResponseHead:
        """Prepare to be the template of heads that differ in their ``Content-Length`` alone; it must have one."""
        self._length_at = at = next(at for at, pair in enumerate(self.headers) if pair[0].lower() == b"content-length")
        whole = write_response_head(self.status, self.reason, self.headers[: at + 1])
        before = whole[: -len(self.headers[at][1] + b"\r\n\r\n")]
        after = b"".join(b"\r\n%b: %b" % pair for pair in self.headers[at + 1 :]) + b"\r\n"
        self._written = before, after
        return self

    def of_length(self, length: int) -> ResponseHead:
        """Return this head with another length; it must be a template."""
        made: ResponseHead = ResponseHead.__new__(ResponseHead)
        made._length_at = at = self._length_at
        made._written = self._written
        made.status = self.status
        made.reason = self.reason
        made.headers = made.relayed = headers = self.headers.copy()
        headers[at] = (headers[at][0], b"%d" % length)
        made.length = length
        made.has_request_id = self.has_request_id
        made.content_type = self.content_type
        made.content_encoding = self.content_encoding
        made.coding = self.coding
        made.connection = self.connection
        return made


#: stands for a response's head that was not read
NO_HEAD = ResponseHead(0, b"", [])


def write_header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return headers written out, each with its line end."""
    return b"".join([b"%b: %b\r\n" % pair for pair in headers])


def write_response_head(
    status: int, reason: bytes, headers: Iterable[tuple[bytes, bytes]], added: bytes = b""
) -> bytes:
    """Return a response's head, with the empty line that ends it; `added` are whole lines that end the list."""
    lines = [b"HTTP/1.1 %d %b" % (status, reason)]
    lines += [name + b": " + value for name, value in headers]
    lines.append(added + b"\r\n")
    return b"\r\n".join(lines)


def write_last_chunk(trailers: HeaderList | None) -> bytes:
    """Return what ends a chunked body (RFC 9112 §7.1)."""
    if not trailers:
        return b"0\r\n\r\n"
    return b"0\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in trailers) + b"\r\n"


def is_json(headers: Mapping[bytes, bytes]) -> bool:
    """Tell whether ``Content-Type`` says JSON; `headers` maps lower-case names to first values."""
    given = headers.get(b"content-type", b"")
    if given == b"application/json":
        return True
    media_type = given.partition(b";")[0].strip().lower()
    return media_type == b"application/json" or (
        media_type.startswith(b"application/") and media_type.endswith(b"+json")
    )


def is_form(headers: Mapping[bytes, bytes]) -> bool:
    """Tell whether ``Content-Type`` says multipart/form-data; `headers` maps lower-case names to first values."""
    given = headers.get(b"content-type", b"")
    return given != b"application/json" and given.partition(b";")[0].strip().lower() == b"multipart/form-data"
