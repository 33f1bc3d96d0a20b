"""Reading requests: llhttp's callbacks, made into requests whose head was judged."""

from __future__ import annotations

from collections.abc import Callable

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from twisted_vllm.config.settings import Limits
from twisted_vllm.errors import BodyTooLarge, GatewayError, HeadTooLarge, MalformedHttp
from twisted_vllm.wire.heads import closes, origin_form
from twisted_vllm.wire.request import GatewayRequest

#: bytes that Twisted reads from a socket at once (twisted.internet.abstract.FileDescriptor.bufferSize)
READ_SIZE = 65_536

#: the headers that say where a body ends
FRAMING = (b"content-length", b"transfer-encoding")


class RequestReader:
    """Reads the requests of one connection.

    Attributes:
        current: the request that is being read, or None between two.
        in_head: whether its head is being read.
        final: whether nothing that follows is a request.
    """

    def __init__(self, begin: Callable[[], GatewayRequest], limits: Limits) -> None:
        """Make a reader.

        Args:
            begin: makes a request and puts it in line.
            limits: caps on heads and bodies.
        """
        self.current: GatewayRequest | None = None
        self.in_head = False
        self.final = False
        self._begin = begin
        self._limits = limits
        self._parser = HttpRequestParser(self)
        self._fed_in_head = 0
        self._priming = False

    def feed(self, data: bytes) -> GatewayError | None:
        """Read `data`; return why what comes can be read no further, or None."""
        before = self._fed_in_head
        self._fed_in_head = before + len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            return self._without_upgrade(data[upgrade.args[0] :])
        except HttpParserCallbackError as error:
            raise error.__context__ or error from None
        except HttpParserError:
            return None if self.final else MalformedHttp("The request is not well-formed HTTP/1.1.")
        if not self.in_head:
            self._fed_in_head = 0
        elif self._fed_in_head > self._limits.max_head_bytes + READ_SIZE:
            return self._head_too_large()
        return None

    def give_up(self) -> GatewayRequest:
        """Read no more; return the request that cannot be read, or a new one for bytes that are none."""
        request, self.current = self.current or self._begin(), None
        self.in_head = False
        self.final = True
        return request

    def _head_too_large(self) -> HeadTooLarge:
        return HeadTooLarge(f"The request's head is over {self._limits.max_head_bytes} bytes.")

    def _without_upgrade(self, rest: bytes) -> GatewayError | None:
        """Go on as if no upgrade had been asked for: RFC 9110 §7.8 lets a server ignore it.

        llhttp takes the request for complete and skips its body, so a fresh parser gets a head with the same framing.
        """
        request = self.current
        if request is None or request.fault is not None:
            return None
        head = request.head
        framing = [b"POST / HTTP/1.1\r\nHost: h\r\n"]
        framing += [b"%b: %b\r\n" % (name, head[name]) for name in FRAMING if name in head]
        self._parser = HttpRequestParser(self)
        self._priming = True
        self._parser.feed_data(b"".join(framing) + b"\r\n")
        self._priming = False
        return self.feed(rest) if rest else None

    # llhttp's callbacks

    def on_message_begin(self) -> None:
        """Begin a request."""
        if not self._priming:
            self.current = self._begin()
            self.in_head = True

    def on_url(self, piece: bytes) -> None:
        """Take a piece of the request target."""
        if self.in_head and self.current is not None:
            self.current.uri += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer is left out, as RFC 9110 §6.5.1 permits."""
        request = self.current
        if self.in_head and request is not None:
            value = value.rstrip(b" \t")
            request.raw_headers.append((name, value))
            request.head.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        """Judge the head."""
        request = self.current
        if self._priming or request is None:
            return
        self.in_head = False
        parser = self._parser
        version = parser.get_http_version()
        request.method = parser.get_method()
        request.clientproto = b"HTTP/1.1" if version == "1.1" else b"HTTP/" + version.encode("ascii")
        request.head_complete = True
        request.upgrade = parser.should_upgrade()
        try:
            self._judge(request, version)
        except GatewayError as fault:
            request.fault = fault

    def _judge(self, request: GatewayRequest, version: str) -> None:
        headers = request.raw_headers
        head = request.head
        limits = self._limits
        if len(headers) > limits.max_header_count:
            raise HeadTooLarge(f"The request has over {limits.max_header_count} headers.")
        # what was fed bounds the head from above, and is known without counting
        if self._fed_in_head > limits.max_head_bytes and _size(request) > limits.max_head_bytes:
            raise self._head_too_large()
        request.uri = origin_form(request.method, request.uri, version, headers, head)
        length = head.get(b"content-length")
        if length is not None:
            request.body_length = int(length)
            if request.body_length > limits.max_body_bytes:
                raise self._body_too_large()
        elif b"transfer-encoding" in head:
            request.body_length = None
        request.persistent = not closes(version, head)

    def _body_too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request's body is over {self._limits.max_body_bytes} bytes.")

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        request = self.current
        if request is None or request.finished:
            return
        request.body_received += len(data)
        if request.body_received > self._limits.max_body_bytes:
            request.fault = request.fault or self._body_too_large()
        else:
            request.body_pieces.append(data)

    def on_message_complete(self) -> None:
        """End the request, unless it asked for an upgrade and its body is still to be read."""
        request = self.current
        if request is None:
            return
        if request.upgrade:
            request.upgrade = False
            return
        request.body_complete = True
        self.current = None
        if not request.persistent:
            self.final = True


def _size(request: GatewayRequest) -> int:
    return len(request.uri) + sum(len(name) + len(value) + 4 for name, value in request.raw_headers)
